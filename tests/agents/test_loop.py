"""To callbacks, schedules, saved models and users, the loop is Stable-Baselines3's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env as sb3_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toy_goal_envs import FlipTaskEnv

from mirl.agents import A2C, PPO

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu"}
STEP = {
    *(
        "env",
        "callback",
        "rollout_buffer",
        "n_rollout_steps",
        "n_steps",
        "obs_tensor",
        "actions",
        "clipped_actions",
    ),
    *("values", "log_probs", "new_obs", "rewards", "dones", "infos"),
}
START = {"total_timesteps", "log_interval", "tb_log_name", "reset_num_timesteps", "progress_bar"}


def poles() -> VecEnv:
    return sb3_vec_env("CartPole-v1", 4, env_kwargs={"max_episode_steps": 20})


class Witness(BaseCallback):
    """Notes what it can see, and the shapes of arrays."""

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
def test_callbacks_see_what_they_see_in_sb3s_loop(env_id: str) -> None:
    ours, theirs = Witness(), Witness()
    for algorithm, witness in ((PPO, ours), (SB3PPO, theirs)):
        algorithm("MlpPolicy", sb3_vec_env(env_id, 4), **SMALL).learn(128, callback=witness)
    for moment, expected in (("start", START), ("step", STEP), ("end", STEP)):
        assert expected <= ours.seen[moment].keys()
        assert expected <= theirs.seen[moment].keys()
    assert {name: ours.seen["step"][name] for name in STEP} == {
        name: theirs.seen["step"][name] for name in STEP
    }


def test_sb3s_own_callbacks_work(tmp_path: Path) -> None:
    callbacks = [
        CheckpointCallback(save_freq=32, save_path=str(tmp_path)),
        EvalCallback(
            poles(), best_model_save_path=str(tmp_path), eval_freq=32, n_eval_episodes=2, verbose=0
        ),
    ]
    PPO("MlpPolicy", poles(), **SMALL).learn(256, callback=callbacks)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"rl_model_128_steps.zip", "rl_model_256_steps.zip", "best_model.zip"}


def test_training_stops_after_so_many_episodes() -> None:
    model, stop = PPO("MlpPolicy", poles(), **SMALL), StopTrainingOnMaxEpisodes(max_episodes=2)
    model.learn(10_000, callback=stop)
    assert model.num_timesteps <= 10 * 128
    assert stop.n_episodes >= 8  # SB3 counts as many for each environment


def test_a_prediction_is_that_of_sb3() -> None:
    ours, theirs = (algorithm("MlpPolicy", poles(), **SMALL) for algorithm in (PPO, SB3PPO))
    theirs.policy.load_state_dict(ours.learn(128).policy.state_dict())
    observation = ours.env.reset()
    for deterministic in (True, False):
        actions = []
        for model in (ours, theirs):
            torch.manual_seed(0)
            actions.append(model.predict(observation, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)


def logged_updates(model: OnPolicyAlgorithm, timesteps: int) -> list[dict[str, Any]]:
    """What each update recorded."""
    update, updates = model.train, list[dict[str, Any]]()

    def noted() -> None:
        update()
        updates.append(dict(model.logger.name_to_value))

    model.train = noted  # type: ignore[method-assign]
    model.learn(timesteps)
    return updates


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


def unpaid() -> gym.Env[Any, Any]:
    """Episodes of one timestep without a reward: each return is zero."""
    return gym.wrappers.TransformReward(FlipTaskEnv(), lambda _: 0.0)


@pytest.mark.parametrize(
    ("env", "n_steps"), [(unpaid, 8), (FlipTaskEnv, 1)], ids=["equal returns", "one return"]
)
def test_of_returns_that_do_not_vary_nothing_is_explained(
    env: Callable[[], Any], n_steps: int
) -> None:
    for algorithm in (A2C, SB3A2C):
        model = algorithm(
            "MultiInputPolicy", DummyVecEnv([env]), n_steps=n_steps, device="cpu", seed=0
        )
        (update,) = logged_updates(model, n_steps)
        assert np.isnan(update["train/explained_variance"])


@pytest.mark.parametrize(("ours", "theirs"), [(PPO, SB3PPO), (A2C, SB3A2C)])
def test_a_model_that_sb3_saved_trains_on(ours: Any, theirs: Any, tmp_path: Path) -> None:
    saved = theirs("MlpPolicy", poles(), n_steps=32, device="cpu").learn(128)
    saved.save(tmp_path / "model")
    loaded = ours.load(tmp_path / "model", env=poles(), device="cpu")
    torch.testing.assert_close(
        loaded.policy.state_dict(), saved.policy.state_dict(), rtol=0, atol=0
    )
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 256
    assert loaded._n_updates == 2 * saved._n_updates
