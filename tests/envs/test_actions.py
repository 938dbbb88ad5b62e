"""Tests of the validation of actions."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from gymnasium.spaces import Box
from stable_baselines3 import PPO
from suites import BACKENDS, FORWARD, GRIDS

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.envs.actions import check_action_space, validate_actions

IDS = ["MiniGrid-Empty-5x5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(5, int), r"shape \(6,\).*got \(5,\)"),
        (np.zeros((6, 1), int), r"shape \(6,\).*got \(6, 1\)"),
        (np.zeros(12, int), r"shape \(6,\).*got \(12,\)"),
        (np.zeros(6), "integers, got float64"),
        (np.array([0, 0, 7, 0, 0, 0]), r"Discrete\(7\), got 7 for environment 2"),
        (np.array([0, 0, 0, 0, 0, -1]), r"Discrete\(7\), got -1 for environment 5"),
        (np.full(6, 2**32), "got 4294967296 for environment 0"),
    ],
)
def test_invalid_discrete_actions_are_errors(
    backend: BackendName, actions: np.ndarray, message: str
) -> None:
    """Invalid discrete actions are errors, after which the environment can be stepped on."""
    env = SuiteVecEnv(GRIDS, 6, backend=backend, workers=0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.step(np.full(6, FORWARD))[1].shape == (6,)
    env.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(2, np.float32), r"shape \(2, 2\)"),
        (np.array([[0, 0], [0, np.nan]]), "nan"),
        (np.array([[0, 0], [0, 1.5]]), "1.5"),
    ],
)
def test_invalid_continuous_actions_are_errors(actions: np.ndarray, message: str) -> None:
    env = make_vec_env("ToyRandomGoal-v0", 2)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    env.step(np.full((2, 2), 0.5, np.float32))
    env.close()


def test_rounding_overshoot_is_clipped() -> None:
    """An action that exceeds its bound by rounding is clipped to the bound."""
    space = Box(np.float32(-0.2607247), np.float32(0.5759154), (2,), np.float32)
    overshot = np.nextafter(space.high, np.float32(1))[None]
    assert not space.contains(overshot[0])
    assert space.contains(validate_actions(overshot, space, 1)[0])


def test_ppo_acts_in_multi_binary_space() -> None:
    """SB3's PPO passes actions of a MultiBinary space as floats, which are accepted."""
    env = make_vec_env("ToySwitches-v0", 2)
    PPO("MultiInputPolicy", env, n_steps=8, batch_size=16, device="cpu").learn(16)
    env.close()


def test_actions_must_start_at_zero() -> None:
    """An action space that does not start at 0 is an error."""
    task = TaskConfig(name="switches", env_id="ToySwitches-v0", kwargs={"start": 2})
    with pytest.raises(ConfigError, match="SB3 counts actions from 0"):
        make_vec_env(SuiteConfig(name="switches", tasks=(task,)), 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unavailable_action_is_an_error(backend: BackendName) -> None:
    """An action that the task lacks is an error, after which the environment can be stepped on."""
    with closing(make_vec_env(IDS, 4, backend=backend)) as env:
        env.reset()
        message = rf"of task '{IDS[1]}' must be from 0 to 2, got 3 for environment 3"
        with pytest.raises(ValueError, match=message):
            env.step(np.array([6, 6, 2, 3]))
        with pytest.raises(ValueError, match=r"Discrete\(7\), got 7 for environment 0"):
            env.step(np.array([7, 6, 2, 2]))
        assert env.step(np.array([6, 6, 2, 2]))[1].shape == (4,)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Box(-np.inf, np.inf, (2,)),
            r"finite bounds.*in \[-inf, inf\].*Box\(-1, 1, ",
        ),
        (spaces.Box(np.float32([-1, 0]), np.float32([1, np.inf])), "finite bounds"),
        (
            spaces.Box(0, 9, (2,), np.int64),
            "floating-point numbers.*got Box of shape.*MultiDiscrete",
        ),
        (spaces.Box(0, 1, (0,)), r"at least one number, got a Box of shape \(0,\)"),
        (spaces.Discrete(3, start=1), "must start at 0.*leave 'start' out"),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), "must start at 0"),
        (spaces.MultiDiscrete([[2, 3]]), r"one dimension, got shape \(1, 2\)"),
        (spaces.MultiDiscrete([]), "at least one component"),
        (spaces.MultiBinary((2, 2)), r"one dimension, got shape \(2, 2\)"),
        (spaces.Tuple([spaces.Discrete(2)]), "got Tuple; join its parts"),
        (spaces.Dict(a=spaces.Discrete(2)), "got Dict; join its parts"),
        (None, r"got None; set self\.action_space"),
    ],
)
def test_action_spaces_are_those_of_sb3(space: Any, message: str) -> None:
    """A space that SB3 refuses is one line that names the owner and a remedy."""
    with pytest.raises(ConfigError, match=f"task 'a': .*{message}") as caught:
        check_action_space(space, "task 'a'")
    assert len(str(caught.value).splitlines()) == 1
