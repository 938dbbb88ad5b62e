"""Tests of the check of ``compute_reward``."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from suites import single_task

from mirl.configs.errors import ConfigError, ContractError
from mirl.envs import ContractObservation, SuiteVecEnv
from mirl.envs.contract.goals import batch_of_rewards, check_compute_reward, ends_within


class GoalEnv(gym.Env[Any, Any]):
    """A point that is moved to a goal; the reward is computed in a given way."""

    def __init__(self, form: str = "batch", length: int = 4) -> None:
        box = spaces.Box(-5, 5, (2,), np.float32)
        goal = spaces.Box(-5, 5, (3,), np.float32) if form == "other_goal" else box
        self.observation_space = spaces.Dict(observation=box, achieved_goal=box, desired_goal=goal)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.form = form
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        self.point = np.zeros(2, np.float32)
        self.goal = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.observe(), {}

    def observe(self) -> Any:
        goal = np.append(self.goal, self.goal[:1]) if self.form == "other_goal" else self.goal
        return {"observation": self.point, "achieved_goal": self.point, "desired_goal": goal}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        distance = np.linalg.norm(np.asarray(achieved) - desired, axis=-1)
        match self.form:
            case "one_pair":
                return float(np.linalg.norm(np.asarray(achieved) - desired))
            case "columns":
                return -distance[..., None]
            case "list" if np.ndim(distance):
                return [-d for d in distance]
            case "infos" if np.ndim(distance):
                return np.array([one["weight"] for one in info]) * distance
            case "text":
                return np.full(np.shape(distance), "far")
            case _:
                return -distance

    def step(self, action: Any) -> Any:
        self.count += 1
        self.point = self.point + action
        if self.form == "moving_goal":
            self.goal = self.goal + np.float32(0.5)
        reward = -float(np.linalg.norm(self.point - self.goal))
        if self.form == "penalty":
            reward -= 0.1
        if self.form == "moving_goal":
            reward = 3.0
        return self.observe(), reward, self.count == self.length, False, {}


class TwoArgumentsEnv(GoalEnv):
    """Its ``compute_reward`` takes no info."""

    def compute_reward(self, achieved: Any, desired: Any) -> Any:  # type: ignore[override]
        return super().compute_reward(achieved, desired, {})


gym.register("ToyGoalForms-v0", entry_point=GoalEnv, max_episode_steps=5)


@pytest.mark.parametrize("form", ["batch", "columns", "list", "moving_goal"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_batches_of_rewards_pass(form: str, length: int) -> None:
    """Rewards of a batch pass in every form that holds one number per pair."""
    check_compute_reward(ContractObservation(GoalEnv(form, length)))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("one_pair", r"shape \(n,\), one reward for each of n=3 pairs of goals, got float"),
        ("infos", r"3 pairs of goals of shape \(3, 2\) with empty infos: KeyError: 'weight'"),
        ("text", "got an array of shape"),
        ("penalty", r"expected the reward of step\(\), .*for the same achieved and desired goal"),
        ("other_goal", "'achieved_goal': expected the shape and dtype of 'desired_goal'"),
    ],
)
def test_other_rewards_are_one_line(form: str, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        check_compute_reward(ContractObservation(GoalEnv(form)))
    assert len(str(caught.value).splitlines()) == 1


def test_signature_has_three_arguments() -> None:
    message = r"expected the arguments \(achieved_goal, desired_goal, info\)"
    with pytest.raises(ContractError, match=message):
        check_compute_reward(ContractObservation(TwoArgumentsEnv()))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_rewards_keep_their_numbers(rewards: list[float]) -> None:
    """Lists, arrays and columns of n numbers give the same n rewards."""
    expected = np.array(rewards, np.float32)
    n = len(rewards)
    for form in (rewards, np.array(rewards), np.array(rewards)[:, None]):
        np.testing.assert_array_equal(batch_of_rewards(form, n), expected)
    for form in (rewards[0], np.float64(rewards[0]), np.array(rewards[0]), np.array(rewards[1:])):
        with pytest.raises(ContractError, match=f"each of n={n}"):
            batch_of_rewards(form, n)


def test_environment_names_its_task() -> None:
    """``env_method`` gives SB3 arrays, whatever form the environment gives."""
    env = SuiteVecEnv(single_task("ToyGoalForms-v0", kwargs={"form": "list"}), 1)
    goals = np.zeros((4, 2), np.float32)
    [rewards] = env.env_method("compute_reward", goals, goals, [{}] * 4, indices=[0])
    assert rewards.shape == (4,)
    env.check_compute_reward(100)
    env.close()


def test_endless_episodes_are_found() -> None:
    assert ends_within(GoalEnv(length=7), 8)
    assert not ends_within(GoalEnv(length=-1), 50)


def test_relabeling_needs_ended_episodes() -> None:
    """Goals are taken from episodes that have ended, so endless ones are refused at once."""
    gym.register("ToyEndlessGoals-v0", entry_point=GoalEnv, kwargs={"length": -1})
    endless = SuiteVecEnv(single_task("ToyEndlessGoals-v0"), 1)
    with pytest.raises(ConfigError, match=r"set task\.kwargs\.max_episode_steps="):
        endless.check_compute_reward(30)
    endless.close()
    limited = single_task("ToyEndlessGoals-v0", kwargs={"max_episode_steps": 5})
    env = SuiteVecEnv(limited, 1)
    env.check_compute_reward(30)
    env.close()
