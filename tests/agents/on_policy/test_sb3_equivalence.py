"""With all options off and the same data, PPO and A2C compute what SB3's compute, to 1e-5.

The same seed draws the same actions, episodes and permutations for both. They are compared over one
iteration of a few gradient steps. Over more steps a rounding error could switch a ReLU.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env as sb3_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor
from toy_goal_envs import FlipTaskEnv, MirrorReachEnv, SampledEnv

from mirl.agents import A2C, PPO
from mirl.configs.networks import GridEncoderConfig, MissionContextConfig
from mirl.envs import make_vec_env
from mirl.policies import FusionPolicy

PAIRS: dict[str, tuple[type[OnPolicyAlgorithm], type[OnPolicyAlgorithm]]] = {
    "ppo": (PPO, SB3PPO),
    "a2c": (A2C, SB3A2C),
}
ROLLOUT = {"n_steps": 32, "seed": 3, "device": "cpu", "ent_coef": 0.01}
PPO_STEPS: dict[str, Any] = {"batch_size": 64, "n_epochs": 3}
SITES = ("map", "vector", "heads")


@dataclass(frozen=True)
class World:
    """Environments, policy and options of a comparison."""

    env: Callable[[], VecEnv]
    policy: Any = "MlpPolicy"
    options: dict[str, Any] = field(default_factory=dict)


def short(env_id: str, limit: int = 11) -> Callable[[], VecEnv]:
    """Return four environments whose episodes are truncated early."""
    return lambda: sb3_vec_env(env_id, 4, env_kwargs={"max_episode_steps": limit})


def sampled(action_space: spaces.Space[Any], observation_space: Any = None) -> Callable[[], VecEnv]:
    """Return environments with random observations and rewards."""
    observed = observation_space or spaces.Dict(
        number=spaces.Box(-1, 1, (3,)),
        code=spaces.MultiDiscrete([3, 2]),
        flags=spaces.MultiBinary(2),
    )
    return lambda: DummyVecEnv([lambda: SampledEnv(observed, action_space)] * 4)


def on_missions(*env_ids: str, backend: Any, policy: Any = FusionPolicy, **fusion: Any) -> World:
    return World(
        lambda: make_vec_env(list(env_ids), 4, backend=backend), policy, {"policy_kwargs": fusion}
    )


PIXELS = spaces.Box(0, 255, (36, 36, 3), np.uint8)
DOOR, OBJECT = "MiniGrid-GoToDoor-5x5-v0", "MiniGrid-GoToObject-6x6-N2-v0"
WORLDS = {
    "discrete": World(short("CartPole-v1", 16)),
    "discrete observations": World(short("FrozenLake-v1")),
    "continuous": World(short("Pendulum-v1")),
    "state-dependent exploration": World(
        short("Pendulum-v1"), options={"use_sde": True, "sde_sample_freq": 4}
    ),
    "normalized": World(lambda: VecNormalize(short("Pendulum-v1")())),
    "a matrix of continuous actions": World(sampled(spaces.Box(-1, 1, (2, 3))), "MultiInputPolicy"),
    "multi-discrete": World(sampled(spaces.MultiDiscrete([3, 2])), "MultiInputPolicy"),
    "multi-binary": World(sampled(spaces.MultiBinary(3)), "MultiInputPolicy"),
    "pixels": World(
        sampled(spaces.Discrete(3), PIXELS), "CnnPolicy"
    ),  # which SB3 wraps in VecTransposeImage
    "missions without fusion": on_missions(DOOR, backend="gymnasium", policy="MultiInputPolicy"),
    "missions": on_missions(
        DOOR,
        backend="gymnasium",
        fusion="bilinear",
        context=MissionContextConfig(zero_start=False),
        encoder=GridEncoderConfig(attributes=0),
        sites=SITES,
    ),
    "two tasks": on_missions(DOOR, OBJECT, backend="gymnasium", sites=SITES),
    "two tasks in C++": on_missions(DOOR, OBJECT, backend="envpool", sites=SITES),
    "task ids": on_missions(DOOR, OBJECT, backend="gymnasium", sites=SITES, context="task_id"),
    "task ids alone": World(lambda: DummyVecEnv([FlipTaskEnv] * 4), FusionPolicy),
    "goals": World(lambda: DummyVecEnv([MirrorReachEnv] * 4), FusionPolicy),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "clip_range": {"clip_range": 0.001},
    "clip_range_vf": {"clip_range_vf": 0.01},
    "normalize_advantage": {"normalize_advantage": False},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "gae": {"gamma": 0.9, "gae_lambda": 0.5},
}


class Iteration(NamedTuple):
    """Results of one iteration."""

    losses: dict[str, float]
    gradients: list[dict[str, Tensor]]
    """The gradients of each step."""
    weights: dict[str, Tensor]
    ends: dict[str, int]
    """Number of episodes that were terminated and truncated."""


class CountEnds(BaseCallback):
    ends: dict[str, int]

    def _on_training_start(self) -> None:
        self.ends = {"terminated": 0, "truncated": 0}

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self.ends["truncated" if info["TimeLimit.truncated"] else "terminated"] += 1
        return True


def run_iteration(algorithm: type[OnPolicyAlgorithm], world: World, **options: Any) -> Iteration:
    env = world.env()
    model = algorithm(world.policy, env, **{**ROLLOUT, **world.options, **options})  # type: ignore[arg-type]
    update, step = model.train, model.policy.optimizer.step
    losses, gradients, count = dict[str, float](), list[dict[str, Tensor]](), CountEnds()

    def recorded_update() -> None:
        update()
        losses.update(
            {
                name: float(value)
                for name, value in model.logger.name_to_value.items()
                if "train/" in name
            }
        )

    def recorded_step() -> None:
        named = model.policy.named_parameters()
        gradients.append(
            {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
        )
        step()

    model.train, model.policy.optimizer.step = recorded_update, recorded_step  # type: ignore[method-assign, assignment]
    model.learn(model.n_steps * env.num_envs, callback=count)
    env.close()
    return Iteration(losses, gradients, model.policy.state_dict(), count.ends)


def compare(name: str, world: World, **options: Any) -> Iteration:
    """Check that our iteration equals SB3's, and return it."""
    ours, theirs = (run_iteration(algorithm, world, **options) for algorithm in PAIRS[name])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    return ours


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("world", WORLDS)
def test_iteration_matches_sb3(name: str, world: str) -> None:
    compare(name, WORLDS[world], **(PPO_STEPS if name == "ppo" else {}))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("world", ["discrete", "continuous"])
def test_ppo_options_match_sb3(world: str, option: str) -> None:
    """Every option of PPO changes the weights, as it does in SB3."""
    plain, changed = (
        run_iteration(PPO, WORLDS[world], **PPO_STEPS),
        compare("ppo", WORLDS[world], **PPO_STEPS, **OPTIONS[option]),
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(plain.weights, changed.weights, rtol=1e-5, atol=1e-5)


def test_comparison_includes_truncations() -> None:
    """Both terminations and truncations occur in the comparison."""
    ends = run_iteration(PPO, WORLDS["discrete"], **PPO_STEPS).ends
    assert min(ends.values()) >= 3


def test_target_kl_stops_same_minibatch() -> None:
    """With target_kl the update stops at the same minibatch as in SB3."""
    steps = {"n_epochs": 4, "batch_size": 32, "learning_rate": 2e-3}
    stopped = compare("ppo", WORLDS["discrete"], **steps, target_kl=0.0005)
    assert len(stopped.gradients) % 4, "should stop within an epoch"
    assert 4 < len(stopped.gradients) < 16


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("world", ["discrete", "missions"])
def test_last_minibatch_may_be_smaller(world: str) -> None:
    assert len(compare("ppo", WORLDS[world], batch_size=50, n_epochs=2).gradients) == 6
