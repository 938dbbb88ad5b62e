"""For callbacks, schedules, saved models and users, the training loop is SB3's."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from on_policy_checks import logged_updates
from run_setup import resolve
from safetensors.torch import load_file
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env as sb3_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from mirl.agents import A2C, PPO, train
from mirl.agents.builder import annealed_rate, build_on_policy, policy_kwargs, resolve_device
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.configs.agents import A2CConfig, PPOConfig
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy
from mirl.policies.popart import PopArtHead

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]

Weights = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu"}
STEP_LOCALS = {
    "env",
    "callback",
    "rollout_buffer",
    "n_rollout_steps",
    "n_steps",
    "obs_tensor",
    "actions",
    "clipped_actions",
    "values",
    "log_probs",
    "new_obs",
    "rewards",
    "dones",
    "infos",
}
"""Local variables of SB3's ``collect_rollouts`` that callbacks may read."""
START_LOCALS = {
    "total_timesteps",
    "log_interval",
    "tb_log_name",
    "reset_num_timesteps",
    "progress_bar",
}
"""Local variables of SB3's ``learn`` that callbacks may read."""


def poles() -> VecEnv:
    """Return four CartPole environments with short episodes."""
    return sb3_vec_env("CartPole-v1", 4, env_kwargs={"max_episode_steps": 20})


class Witness(BaseCallback):
    """A callback that records the local variables it sees, and the shapes of arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, Any]] = {}

    def _note(self, moment: str) -> None:
        arrays = (np.ndarray, torch.Tensor)
        self.seen[moment] = {
            name: value.shape if isinstance(value, arrays) else None
            for name, value in self.locals.items()
        }

    def _on_training_start(self) -> None:
        self._note("start")

    def _on_step(self) -> bool:
        self._note("step")
        return True

    def _on_rollout_end(self) -> None:
        self._note("end")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_callbacks_see_sb3s_locals(env_id: str) -> None:
    """Callbacks see the local variables of SB3's loop, with the same shapes."""
    ours, theirs = Witness(), Witness()
    for algorithm, witness in ((PPO, ours), (SB3PPO, theirs)):
        algorithm("MlpPolicy", sb3_vec_env(env_id, 4), **SMALL).learn(128, callback=witness)
    for moment, expected in (("start", START_LOCALS), ("step", STEP_LOCALS), ("end", STEP_LOCALS)):
        assert expected <= ours.seen[moment].keys()
        assert expected <= theirs.seen[moment].keys()
    assert {name: ours.seen["step"][name] for name in STEP_LOCALS} == {
        name: theirs.seen["step"][name] for name in STEP_LOCALS
    }


def test_sb3_callbacks_work(tmp_path: Path) -> None:
    callbacks = [
        CheckpointCallback(save_freq=32, save_path=str(tmp_path)),
        EvalCallback(
            poles(), best_model_save_path=str(tmp_path), eval_freq=32, n_eval_episodes=2, verbose=0
        ),
    ]
    PPO("MlpPolicy", poles(), **SMALL).learn(256, callback=callbacks)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"rl_model_128_steps.zip", "rl_model_256_steps.zip", "best_model.zip"}


def test_callback_limits_episodes() -> None:
    model, stop = PPO("MlpPolicy", poles(), **SMALL), StopTrainingOnMaxEpisodes(max_episodes=2)
    model.learn(10_000, callback=stop)
    assert model.num_timesteps <= 10 * 128
    assert stop.n_episodes >= 8  # SB3 counts the limit once per environment


def test_prediction_matches_sb3() -> None:
    ours, theirs = (algorithm("MlpPolicy", poles(), **SMALL) for algorithm in (PPO, SB3PPO))
    theirs.policy.load_state_dict(ours.learn(128).policy.state_dict())
    observation = ours.env.reset()
    for deterministic in (True, False):
        actions = []
        for model in (ours, theirs):
            torch.manual_seed(0)
            actions.append(model.predict(observation, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)


def test_schedules_are_followed() -> None:
    schedules: dict[str, Callable[[float], float]] = {
        "learning_rate": lambda left: 1e-3 * left,
        "clip_range": lambda left: 0.2 * left,
        "clip_range_vf": lambda left: 0.4 * left,
    }
    ours, theirs = (
        [[update[f"train/{name}"] for name in schedules] for update in logged_updates(model, 512)]
        for model in (
            algorithm("MlpPolicy", poles(), **SMALL, **schedules) for algorithm in (PPO, SB3PPO)
        )
    )
    assert ours == theirs
    assert [clip_range for _, clip_range, _ in ours] == pytest.approx([0.15, 0.1, 0.05, 0])


@pytest.mark.parametrize(
    ("saves", "loads"), [(SB3PPO, PPO), (SB3A2C, A2C), (PPO, SB3PPO), (A2C, SB3A2C)]
)
def test_saved_model_continues(saves: Any, loads: Any, tmp_path: Path) -> None:
    """Training continues from a model that SB3 saved, and in SB3 from one that MIRL saved."""
    saved = saves("MlpPolicy", poles(), n_steps=32, device="cpu").learn(128)
    saved.save(tmp_path / "model")
    loaded = loads.load(tmp_path / "model", env=poles(), device="cpu")
    torch.testing.assert_close(
        loaded.policy.state_dict(), saved.policy.state_dict(), rtol=0, atol=0
    )
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 256
    assert loaded._n_updates == 2 * saved._n_updates


def train_weights(config: TrainConfig) -> Weights:
    """Train a run and return the weights of its last checkpoint."""
    assert train(config).finished
    return load_file(
        config.run_dir / "checkpoints" / f"step_{config.total_timesteps:09d}" / "policy.safetensors"
    )


def are_equal(first: Weights, second: Weights, tolerance: float = 0.0) -> bool:
    assert first.keys() == second.keys()
    return all(
        torch.allclose(first[name], second[name], rtol=0.0, atol=tolerance) for name in first
    )


def build_sb3_agent(config: TrainConfig) -> SB3PPO | SB3A2C:
    """Build SB3's own agent with the options of ``config``."""
    agent = config.agent
    env = SuiteVecEnv(config.task, agent.n_envs, backend=config.backend, seed=config.seed)
    shared: dict[str, Any] = {
        "learning_rate": annealed_rate(agent, config.total_timesteps)
        if agent.anneal
        else agent.learning_rate,
        "n_steps": agent.n_steps,
        "gamma": agent.gamma,
        "gae_lambda": agent.gae_lambda,
        "ent_coef": agent.ent_coef,
        "vf_coef": agent.vf_coef,
        "max_grad_norm": agent.max_grad_norm,
        "normalize_advantage": agent.normalize_advantage,
        "policy_kwargs": policy_kwargs(resolve(config)),
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
def test_seed_determines_weights(tiny_in: Build, tmp_path: Path, agent: str, backend: str) -> None:
    """The same seed trains the same weights, and another seed others."""
    words = (f"agent={agent}", f"backend={backend}", "total_timesteps=256")
    first = train_weights(tiny_in(tmp_path / "first", *words))
    assert are_equal(first, train_weights(tiny_in(tmp_path / "second", *words)))
    assert not are_equal(first, train_weights(tiny_in(tmp_path / "first", *words, "seed=1")))


@pytest.mark.parametrize(
    "words", [(), ("agent.anneal=false", "agent.gae_lambda=0.5", "agent.ent_coef=0.1")]
)
@pytest.mark.parametrize(
    "agent", [("agent=ppo", "agent.kl_coef=0"), ("agent=a2c",)], ids=["ppo", "a2c"]
)
def test_weights_match_sb3(
    tiny: Build, make_agent: Agents, agent: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Two iterations train the weights that SB3's own class trains."""
    config = tiny(*agent, "agent.advantage_floor=0", "agent.scale_values=false", *words)
    trained = list[PPO | A2C | SB3PPO | SB3A2C]()
    for make in (
        make_agent,
        build_sb3_agent,
    ):  # one after the other: each seeds torch's generator, which all share
        model = make(config)
        start = {name: value.clone() for name, value in model.policy.state_dict().items()}
        trained.append(model.learn(2 * config.agent.rollout_size))
        assert not are_equal(start, model.policy.state_dict())
    ours, theirs = trained
    assert ours.num_timesteps == theirs.num_timesteps == 256
    assert ours._n_updates == theirs._n_updates
    assert are_equal(
        ours.policy.state_dict(), theirs.policy.state_dict(), tolerance=1e-5
    )  # rounding, over eight steps
    theirs.get_env().close()


@pytest.mark.parametrize(("algorithm", "kind"), [("ppo", PPO), ("a2c", A2C)])
def test_multitask_options_reach_agent(
    tiny: Build, make_agent: Agents, algorithm: str, kind: type
) -> None:
    """The options for several tasks reach both algorithms."""
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


class ReadsLosses(BaseCallback):
    """A callback that reads the loss of the last update, and stops in the second rollout."""

    loss = 0.0

    def _on_step(self) -> bool:
        self.loss = self.logger.name_to_value.get("train/value_loss", 0.0)
        return self.n_calls < 40


@pytest.mark.parametrize("algorithm", [PPO, SB3PPO])
def test_stopped_rollout_matches_sb3(algorithm: Any) -> None:
    """A stopped rollout counts, and a callback reads the update before it."""
    callback = ReadsLosses()
    agent = algorithm("MlpPolicy", poles(), **SMALL).learn(512, callback=callback)
    assert agent.num_timesteps == 40 * 4
    assert agent._n_updates == 1
    assert callback.loss > 0


def test_metrics_are_written_once(tmp_path: Path) -> None:
    """The metrics that stay readable for callbacks are in no later row of the log."""
    agent = PPO("MlpPolicy", poles(), **SMALL)
    agent.set_logger(configure(str(tmp_path), ["csv", "json"]))
    agent.learn(128)
    agent.logger.dump(1000)
    agent.logger.close()
    with (tmp_path / "progress.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["train/value_loss"]) for row in rows] == [True, False]
    last = (tmp_path / "progress.json").read_text(encoding="utf-8").splitlines()[-1]
    assert "train" not in last


class OwnBuffer(RolloutBuffer):
    """A buffer of a user's own, with an argument of its own."""

    def __init__(self, *args: Any, own: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = own


def test_own_buffer_is_used() -> None:
    options = {"rollout_buffer_class": OwnBuffer, "rollout_buffer_kwargs": {"own": 3}}
    buffer = PPO("MlpPolicy", poles(), **SMALL, **options).rollout_buffer
    assert isinstance(buffer, OwnBuffer)
    assert buffer.own == 3


def test_foreign_buffer_raises() -> None:
    """SB3's own class means the default; a class derived from it is refused in one line."""
    assert PPO("MlpPolicy", poles(), **SMALL, rollout_buffer_class=SB3RolloutBuffer)
    foreign = type("Foreign", (SB3RolloutBuffer,), {})
    with pytest.raises(ConfigError, match=r"^rollout_buffer_class: .*RolloutBuffer, .*got Foreign"):
        PPO("MlpPolicy", poles(), **SMALL, rollout_buffer_class=foreign)
    # SB3's own tests expect its assertion
    with pytest.raises(AssertionError, match="must be used with Dict obs space only"):
        PPO("MlpPolicy", poles(), **SMALL, rollout_buffer_class=DictRolloutBuffer)


def test_callback_is_initialized_once(tiny: Build, make_agent: Agents) -> None:
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


def test_config_chooses_algorithm(tiny: Build) -> None:
    config = tiny()
    env = SuiteVecEnv(config.task, 4)
    for part, kind in ((PPOConfig(n_envs=4, batch_size=64), PPO), (A2CConfig(n_envs=4), A2C)):
        options: dict[str, Any] = {
            "total_timesteps": 1000,
            "seed": 0,
            "device": "cpu",
            "precision": "fp32",
        }
        agent = build_on_policy(part, FusionPolicy, policy_kwargs(resolve(config)), env, **options)
        assert type(agent) is kind
    env.close()


def test_missing_cuda_device_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="device=cuda: torch finds no CUDA device"):
        resolve_device("cuda")


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cpu") == "cpu"
