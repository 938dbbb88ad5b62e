"""Our PPO and A2C learn what Stable-Baselines3's learn, and the same thing twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from mirl.agents import train
from mirl.agents.builder import build_on_policy, policy_kwargs, resolve_device
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.configs.agents import A2CConfig, PPOConfig
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy
from mirl.policies.popart import PopArtHead

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]
Weights = dict[str, torch.Tensor]


def trained_weights(config: TrainConfig) -> Weights:
    assert train(config).finished
    return load_file(
        config.run_dir / "checkpoints" / f"step_{config.total_timesteps:09d}" / "policy.safetensors"
    )


def equal(first: Weights, second: Weights, tolerance: float = 0.0) -> bool:
    assert first.keys() == second.keys()
    return all(
        torch.allclose(first[name], second[name], rtol=0.0, atol=tolerance) for name in first
    )


def sb3s_own(config: TrainConfig) -> SB3PPO | SB3A2C:
    """SB3's class with the options of ``config``, spelled out."""
    agent = config.agent
    env = SuiteVecEnv(config.task, agent.n_envs, backend=config.backend, seed=config.seed)
    shared: dict[str, Any] = {
        "learning_rate": LinearSchedule(agent.learning_rate, 0.0, 1.0)
        if agent.anneal
        else agent.learning_rate,
        "n_steps": agent.n_steps,
        "gamma": agent.gamma,
        "gae_lambda": agent.gae_lambda,
        "ent_coef": agent.ent_coef,
        "vf_coef": agent.vf_coef,
        "max_grad_norm": agent.max_grad_norm,
        "normalize_advantage": agent.normalize_advantage,
        "policy_kwargs": policy_kwargs(config),
        "seed": config.seed,
        "device": "cpu",
    }
    if isinstance(agent, PPOConfig):
        return SB3PPO(
            FusionPolicy,
            env,
            batch_size=agent.batch_size,
            n_epochs=agent.n_epochs,
            clip_range=agent.clip_range,
            **shared,
        )
    return SB3A2C(FusionPolicy, env, rms_prop_eps=agent.rms_prop_eps, **shared)


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
@pytest.mark.parametrize("agent", ["ppo", "a2c"])
def test_the_same_seed_trains_the_same_weights_and_another_seed_others(
    tiny_in: Build, tmp_path: Path, agent: str, backend: str
) -> None:
    words = (f"agent={agent}", f"backend={backend}", "total_timesteps=256")
    first = trained_weights(tiny_in(tmp_path / "first", *words))
    assert equal(first, trained_weights(tiny_in(tmp_path / "second", *words)))
    assert not equal(first, trained_weights(tiny_in(tmp_path / "first", *words, "seed=1")))


@pytest.mark.parametrize(
    "words", [(), ("agent.anneal=false", "agent.gae_lambda=0.5", "agent.ent_coef=0.1")]
)
@pytest.mark.parametrize("agent", ["ppo", "a2c"])
def test_two_iterations_give_the_weights_of_sb3s_own_class(
    tiny: Build, make_agent: Agents, agent: str, words: tuple[str, ...]
) -> None:
    config, trained = tiny(f"agent={agent}", *words), list[PPO | A2C | SB3PPO | SB3A2C]()
    for make in (
        make_agent,
        sb3s_own,
    ):  # one after the other: each seeds torch's generator, which all share
        model = make(config)
        start = {name: value.clone() for name, value in model.policy.state_dict().items()}
        trained.append(model.learn(2 * config.agent.rollout_size))
        assert not equal(start, model.policy.state_dict())
    ours, theirs = trained
    assert ours.num_timesteps == theirs.num_timesteps == 256
    assert ours._n_updates == theirs._n_updates
    assert equal(
        ours.policy.state_dict(), theirs.policy.state_dict(), tolerance=1e-5
    )  # rounding, over eight steps
    theirs.get_env().close()


def test_every_option_of_ppo_reaches_it(tiny: Build, make_agent: Agents) -> None:
    options = {
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "ent_coef": 0.2,
        "vf_coef": 0.3,
        "max_grad_norm": 0.4,
        "n_epochs": 3,
    }
    agent = make_agent(
        tiny(
            *(f"agent.{name}={value}" for name, value in options.items()),
            "agent.clip_range=0.15",
            "agent.learning_rate=0.001",
        )
    )
    assert isinstance(agent, PPO)
    assert {name: getattr(agent, name) for name in options} == options
    assert (agent.n_envs, agent.n_steps, agent.batch_size, agent.clip_range(1.0)) == (
        4,
        32,
        64,
        0.15,
    )
    assert agent.lr_schedule(0.5) == pytest.approx(0.5e-3)


def test_every_option_of_a2c_reaches_it(tiny: Build, make_agent: Agents) -> None:
    agent = make_agent(
        tiny(
            "agent=a2c",
            "agent.rms_prop_eps=0.001",
            "agent.anneal=false",
            "agent.learning_rate=0.002",
        )
    )
    assert isinstance(agent, A2C)
    assert agent.policy.optimizer.defaults["eps"] == 0.001
    assert agent.lr_schedule(0.5) == 0.002


@pytest.mark.parametrize(("algorithm", "kind"), [("ppo", PPO), ("a2c", A2C)])
def test_what_keeps_tasks_apart_reaches_both(
    tiny: Build, make_agent: Agents, algorithm: str, kind: type
) -> None:
    options = {
        "normalize_advantage": True,
        "advantages_per_task": True,
        "pcgrad": True,
        "conflict_every": 7,
    }
    words = (
        "task=doors",
        f"agent={algorithm}",
        "agent.popart=true",
        *(f"agent.{name}={value}" for name, value in options.items()),
    )
    agent = make_agent(tiny(*words))
    assert type(agent) is kind
    assert {name: getattr(agent, name) for name in options} == options
    assert isinstance(agent.policy.value_net, PopArtHead)


def test_what_keeps_tasks_apart_is_off_unless_asked_for() -> None:
    agent = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert (agent.advantages_per_task, agent.pcgrad, agent.conflict_every) == (False, False, 0)


def test_a_rollout_that_is_broken_off_is_not_counted(tiny: Build, make_agent: Agents) -> None:
    class StopsAt(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 40  # in the second rollout of 32 steps

    agent = make_agent(tiny())
    agent.learn(512, callback=StopsAt())
    assert agent.num_timesteps == 128
    assert agent._n_updates == 2


def test_a_callback_is_initialised_once(tiny: Build, make_agent: Agents) -> None:
    class Counting(BaseCallback):
        initialized = 0

        def _init_callback(self) -> None:
            self.initialized += 1

        def _on_step(self) -> bool:
            return True

    alone, listed, seen = Counting(), Counting(), []
    agent = make_agent(tiny())
    agent.learn(128, callback=alone)
    agent.learn(128, callback=[listed])
    agent.learn(128, callback=lambda _locals, _globals: seen.append(1) or True)
    assert (alone.initialized, listed.initialized) == (1, 1)
    assert seen


def test_the_algorithms_are_chosen_by_their_config(tiny: Build) -> None:
    config = tiny()
    env = SuiteVecEnv(config.task, 4)
    for part, kind in ((PPOConfig(n_envs=4, batch_size=64), PPO), (A2CConfig(n_envs=4), A2C)):
        options: dict[str, Any] = {"seed": 0, "device": "cpu", "precision": "fp32"}
        assert (
            type(build_on_policy(part, FusionPolicy, policy_kwargs(config), env, **options)) is kind
        )
    env.close()


def test_cuda_without_a_device_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="device=cuda: torch finds no CUDA device"):
        resolve_device("cuda")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cpu") == "cpu"
