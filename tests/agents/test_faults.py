"""A non-finite update is rolled back and reported; the run stops or continues."""

import json
import pickle
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from run_setup import checkpoint_of
from safetensors.torch import load_file

from mirl.agents import A2C, PPO, train
from mirl.agents.faults import NonFiniteError
from mirl.agents.on_policy import a2c, ppo
from mirl.configs.compose import compose_train
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.envs.pools.backend import EnvironmentFailedError

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


def test_error_survives_pickling() -> None:
    error = NonFiniteError("the update was undone", {"loss": torch.tensor(float("nan"))})
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.evidence["loss"].isnan()


def break_losses(patch: pytest.MonkeyPatch, name: str, at: int, value: float) -> None:
    """Multiply the losses of gradient step number ``at`` by ``value``."""
    module = {"ppo_losses": ppo, "a2c_losses": a2c}[name]
    losses_of, calls = getattr(module, name), []

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        losses, metrics = losses_of(*arguments)
        if len(calls) == at:
            losses = losses * value
            metrics = {**metrics, "train/value_loss": metrics["train/value_loss"] * value}
        return losses, metrics

    patch.setattr(module, name, broken)


def state_of(agent: PPO | A2C) -> list[torch.Tensor]:
    moments = [tensor for each in agent.policy.optimizer.state.values() for tensor in each.values()]
    return [tensor.detach().clone() for tensor in (*agent.policy.state_dict().values(), *moments)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "losses"), [("ppo", "ppo_losses"), ("a2c", "a2c_losses")])
def test_non_finite_update_is_rolled_back(
    tiny: Build,
    make_agent: Agents,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    losses: str,
    value: float,
) -> None:
    """A non-finite update is rolled back and reported."""
    agent = make_agent(tiny(f"agent={kind}"))
    agent.learn(128)
    before = state_of(agent)
    break_losses(monkeypatch, losses, 1, value)
    with pytest.raises(
        NonFiniteError,
        match=r"after 256 timesteps .* was undone: train/value_loss in gradient step 0",
    ):
        agent.learn(128, reset_num_timesteps=False)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(agent), strict=True))
    assert agent.learn(128, reset_num_timesteps=False).num_timesteps == 384


def test_run_stops_and_saves_evidence(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stops with the evidence saved, and resumes from its last checkpoint."""
    config = tiny("checkpoint_every=128", "evaluation.every=10000")
    with monkeypatch.context() as patch:
        break_losses(patch, "ppo_losses", 10, float("nan"))
        with pytest.raises(RunError, match=r"The tensors that caused it: .*faults/step_000000384"):
            train(config)
    folder = config.run_dir / "faults" / "step_000000384"
    assert "train/value_loss" in json.loads((folder / "fault.json").read_text())["message"]
    evidence = load_file(folder / "evidence.safetensors")
    assert evidence["reward"].shape == (32, 4)
    assert {"observation 'image'", "action", "value", "log_prob", "advantage"} <= evidence.keys()
    assert train(config).finished


def test_run_may_skip_the_update(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("on_fault=skip")
    break_losses(monkeypatch, "ppo_losses", 10, float("nan"))
    with pytest.warns(UserWarning, match=r"was undone.*training goes on with the next rollout"):
        assert train(config).finished


def test_first_fault_is_named_with_task(tiny: Build, make_agent: Agents) -> None:
    """The first non-finite value is named with its task."""
    agent = make_agent(tiny())
    agent.learn(128)
    collect = agent.collect_rollouts

    def poisoned(*arguments: Any, **more: Any) -> bool:
        done = collect(*arguments, **more)
        agent.rollout_buffer.values[3, 1] = torch.inf
        agent.rollout_buffer.advantages[3, 1] = torch.nan
        return done

    agent.collect_rollouts = poisoned  # type: ignore[method-assign]
    with pytest.raises(
        NonFiniteError,
        match="value is inf of task 'goto_door', timestep 3 of the rollout, environment 1",
    ):
        agent.learn(128, reset_num_timesteps=False)


@pytest.mark.parametrize("agent", ["ppo", "a2c"])
def test_huge_weights_are_reported(agent: str, tiny: Callable[..., TrainConfig]) -> None:
    """Weights that are finite and far too large are reported."""
    huge = (f"agent={agent}", "agent.learning_rate=1e30")
    with pytest.raises(RunError, match=r"a smaller agent\.learning_rate may help"):
        train(tiny(*huge, "name=stops"))
    with (
        warnings.catch_warnings(),
        suppress(RunError),
    ):  # it continues while the policy can act
        warnings.simplefilter("ignore")
        assert train(tiny(*huge, "name=skips", "on_fault=skip")).finished


class PoisonEnv(gym.Env[dict[str, Any], int]):
    """An environment whose third observation or reward is non-finite."""

    def __init__(self, poison: str) -> None:
        goal = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict({"observation": goal, "desired_goal": goal})  # type: ignore[assignment]
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]
        self.poison, self.steps, self.resets = poison, 0, 0

    def seen(self) -> dict[str, Any]:
        bad = self.poison == "observation" and self.steps == 3
        return {
            "observation": np.full(2, np.nan if bad else 0, np.float32),
            "desired_goal": np.zeros(2, np.float32),
        }

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.steps, self.resets = 0, self.resets + 1
        bad = self.poison == "reset" and self.resets % 2 == 0
        return {
            **self.seen(),
            **({"observation": np.full(2, np.nan, np.float32)} if bad else {}),
        }, {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = np.inf if self.poison == "reward" and self.steps == 3 else 0.0
        return self.seen(), reward, self.poison == "reset", False, {}


@pytest.mark.parametrize(
    ("poison", "subject"), [("reward", "reward"), ("observation", "observation 'observation'")]
)
def test_non_finite_environment_is_named(poison: str, subject: str) -> None:
    """An environment with a non-finite reward or observation is named."""
    gym.register(f"ToyPoison-{poison}-v0", PoisonEnv, kwargs={"poison": poison})
    env = make_vec_env(f"ToyPoison-{poison}-v0", 2)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(EnvironmentFailedError, match=rf"gave a non-finite {subject} in timestep 3"):
        env.step(np.zeros(2, np.int64))


def test_non_finite_first_observation() -> None:
    """A non-finite first observation is reported, or the environment is reset again."""
    gym.register("ToyPoison-reset-v0", PoisonEnv, kwargs={"poison": "reset"})
    suite = SuiteConfig(name="toy", tasks=(TaskConfig(name="toy", env_id="ToyPoison-reset-v0"),))
    with closing(SuiteVecEnv(suite, 2)) as env:
        env.reset()
        with pytest.raises(
            EnvironmentFailedError, match=r"non-finite observation 'observation' in timestep 0"
        ):
            env.step(np.zeros(2, np.int64))
    with closing(SuiteVecEnv(suite, 2, max_restarts=2, restart_non_finite=True)) as env:
        env.reset()
        with pytest.warns(RuntimeWarning, match="restart [12] of 2") as warned:
            obs, _, dones, infos = env.step(np.zeros(2, np.int64))
        assert len(warned) == 2
        assert dones.all()
        assert not any("failed" in info for info in infos)
        assert np.isfinite(obs["observation"]).all()


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("ppo", ["agent.n_steps=32", "agent.batch_size=32"]),
        ("dqn", ["agent.learning_starts=32", "agent.batch_size=32"]),
    ],
)
def test_training_survives_failing_environments(
    agent: str, words: list[str], tmp_path: Path
) -> None:
    gym.register(f"ToyPoison-{agent}-v0", PoisonEnv, kwargs={"poison": "reward"})
    fixed = [
        "sites=vector",
        "encoder.features_dim=16",
        "agent.net_arch=[8]",
        "videos=false",
        "agent.n_envs=2",
        "total_timesteps=128",
        "evaluation.episodes=4",
        "evaluation.max_steps=20",
        "progress=false",
    ]
    words = [
        f"task=ToyPoison-{agent}-v0",
        f"agent={agent}",
        f"runs_dir={tmp_path}",
        "on_fault=skip",
        *fixed,
        *words,
    ]
    with pytest.warns(RuntimeWarning, match=r"restart \d+ of 1000") as warned:
        assert train(compose_train([*words, "max_restarts=1000", "name=goes_on"])).finished
    assert len(warned) > 128 // 3 - 4
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(EnvironmentFailedError, match="non-finite reward"),
    ):
        train(compose_train([*words, "max_restarts=2", "name=stops"]))


def test_out_of_memory_names_options(tiny: Callable[..., TrainConfig]) -> None:
    """An out-of-memory error names the options to reduce."""
    config = tiny("agent.n_steps=1_000_000_000_000", "agent.batch_size=64")
    with pytest.raises(
        RunError,
        match=r"out of memory: .*\nReduce agent.n_envs=4, agent.n_steps=1,000",
    ):
        train(config)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore"), MemoryError()]
)
def test_out_of_memory_keeps_last_checkpoint(
    error: Exception, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of memory while training keeps the last checkpoint."""
    config = tiny("checkpoint_every=128")
    update = PPO.train

    def ends(agent: PPO) -> None:
        if agent.num_timesteps > 256:
            raise error
        update(agent)

    monkeypatch.setattr(PPO, "train", ends)
    with pytest.raises(RunError, match=r"out of memory.*\nReduce agent.n_envs"):
        train(config)
    monkeypatch.undo()
    assert checkpoint_of(config.run_dir, "last").name == "step_000000256"
    assert train(config)[:2] == (512, True)
