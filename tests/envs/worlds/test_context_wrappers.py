"""Tests of the wrappers that add a context: useless numbers, and actuators that change."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RescaleAction
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.envs import make_env
from mirl.envs.suite_spaces import joined_spaces
from mirl.envs.worlds.cart_pole import PoleLengthEnv
from mirl.envs.worlds.context_wrappers import CONTEXT_KEY, ActuatorContext, DistractorContext
from mirl.envs.worlds.point_goal import PointGoalEnv

PRESETS = [
    "pole_distractors0",
    "pole_distractors20",
    "pole_distractors100",
    "point_actuators",
    "reacher_actuators",
]


class ActionEcho(gym.Env[np.ndarray, np.ndarray]):
    """Environment that observes the last action, whose two components have different bounds."""

    def __init__(self) -> None:
        low = np.array([-1, 10], np.float32)
        high = np.array([3, 20], np.float32)
        self.action_space = spaces.Box(low, high)
        self.observation_space = spaces.Box(low, high)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.array([1, 15], np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        return action, 0.0, False, False, {}


def check_both(env: Any) -> None:
    """Check an environment by Gymnasium and by SB3, whose advice on infinite bounds is ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
        sb3_check_env(env)


@pytest.mark.parametrize(
    "env",
    [
        DistractorContext(PoleLengthEnv(), 20),
        DistractorContext(PoleLengthEnv(), 0),
        DistractorContext(gym.make("CartPole-v1"), 3, value=0),
        ActuatorContext(PointGoalEnv(), 0.5, swaps=True),
        ActuatorContext(ActionEcho()),
    ],
    ids=["beside a context", "none beside a context", "alone", "swaps", "flips"],
)
def test_checkers_accept_the_wrapper(env: gym.Env[Any, Any]) -> None:
    check_both(env)


# -------------------------------------------------------------------------------- useless numbers


def test_distractors_change_nothing_else() -> None:
    """Episodes equal those of the plain environment, with constants behind the own context."""
    plain = PoleLengthEnv()
    env = DistractorContext(PoleLengthEnv(), 4, value=0.5)
    expected, _ = plain.reset(seed=3)
    observation, _ = env.reset(seed=3)
    for action in (0, 1, 1, 0, 1):
        assert np.array_equal(observation["observation"], expected["observation"])
        assert observation["context"].tolist() == [expected["context"][0], 0.5, 0.5, 0.5, 0.5]
        expected, *rest = plain.step(action)
        observation, *own_rest = env.step(action)
        assert own_rest == rest


def test_values_share_one_space() -> None:
    """Training with one value and evaluation with another is one suite."""
    trained, evaluated = (DistractorContext(PoleLengthEnv(), 3, value) for value in (1, 0))
    assert trained.observation_space == evaluated.observation_space


@pytest.mark.parametrize("n", [0, -1])
def test_empty_context_is_an_error(n: int) -> None:
    with pytest.raises(ConfigError, match="at least one number of context"):
        DistractorContext(PointGoalEnv(), n)


# --------------------------------------------------------------------------------------- actuators


@given(
    st.integers(0, 1000),
    st.booleans(),
    st.booleans(),
    st.lists(st.floats(-1, 1), min_size=2, max_size=2),
)
def test_actions_equal_a_plain_loop(
    seed: int, flips: bool, swaps: bool, units: list[float]
) -> None:
    """The environment gets what a loop over actuators computes from the observed context."""
    env = ActuatorContext(ActionEcho(), 0.25, 0.75, flips=flips, swaps=swaps)
    observation, _ = env.reset(seed=seed)
    context = observation[CONTEXT_KEY].tolist()
    # centers 1 and 15, half ranges 2 and 5
    action = np.array([1 + 2 * units[0], 15 + 5 * units[1]])
    observation, *_ = env.step(action)
    assert observation[CONTEXT_KEY].tolist() == context
    expected = []
    for actuator in range(2):
        if swaps:
            row = context[2 * actuator : 2 * actuator + 2]
            expected.append(row[0] * units[0] + row[1] * units[1])
            assert sorted(map(bool, row)) == [False, True]
        else:
            expected.append(context[actuator] * units[actuator])
    assert observation["observation"] == pytest.approx(
        [1 + 2 * expected[0], 15 + 5 * expected[1]], abs=1e-4
    )
    sizes = np.abs([entry for entry in context if entry])
    assert len(sizes) == 2
    assert ((sizes >= 0.25) & (sizes <= 0.75)).all()
    assert flips or min(context) >= 0


def test_flips_and_swaps_are_equally_frequent() -> None:
    env = ActuatorContext(ActionEcho(), swaps=True)
    env.reset(seed=0)
    contexts = [tuple(env.reset()[0][CONTEXT_KEY].tolist()) for _ in range(4_000)]
    counts = {context: contexts.count(context) for context in set(contexts)}
    assert len(counts) == 8  # two orders, two signs each
    assert all(400 < count < 600 for count in counts.values())


def test_seed_decides_the_actuators() -> None:
    """A seed repeats the actuators, and the environment's own draws stay what they are."""
    env = ActuatorContext(PointGoalEnv(), 0.2, swaps=True)
    first, _ = env.reset(seed=5)
    other, _ = env.reset()
    again, _ = env.reset(seed=5)
    assert np.array_equal(first[CONTEXT_KEY], again[CONTEXT_KEY])
    assert not np.array_equal(first[CONTEXT_KEY], other[CONTEXT_KEY])
    assert np.array_equal(first["observation"], PointGoalEnv().reset(seed=5)[0])


def test_actuators_do_not_follow_the_start() -> None:
    """The wrapper and the environment draw different numbers from the same seed."""
    env = ActuatorContext(PointGoalEnv(), 0.0, 1.0, flips=False)
    starts = []
    for seed in range(300):
        observation, _ = env.reset(seed=seed)
        starts.append([*observation["observation"], *observation[CONTEXT_KEY]])
    correlations = np.corrcoef(np.transpose(starts))[:4, 4:]
    assert np.abs(correlations).max() < 0.2


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        (gym.make("CartPole-v1"), {}, "Box of one dimension"),
        (RescaleAction(gym.make("Pendulum-v1"), -1, 1), {"swaps": True}, "at least two actions"),
        (ActionEcho(), {"low": 0.5, "high": 0.2}, "0 <= low <= high <= 1"),
        (ActionEcho(), {"high": 2.0}, "0 <= low <= high <= 1"),
        (ActuatorContext(ActionEcho()), {}, "observations without 'context'"),
    ],
)
def test_bad_environment_is_an_error(
    env: gym.Env[Any, Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ActuatorContext(env, **kwargs)


# ----------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_evaluates_another_range(preset: str) -> None:
    """Trained and held-out task of a preset share their spaces, and have no context in common."""
    suite = compose_train([f"task={preset}"]).task
    space = joined_spaces(suite, "gymnasium").observation
    contexts = []
    for task in suite.tasks:
        env = make_env(task)
        drawn = [env.reset(seed=seed)[0][CONTEXT_KEY] for seed in range(50)]
        env.close()
        contexts.append(np.array(drawn))
        assert drawn[0].shape == space[CONTEXT_KEY].shape
    if preset.startswith("pole"):
        trained, held_out = (drawn[:, 1:] for drawn in contexts)
        assert trained.shape[1] == int(preset.removeprefix("pole_distractors"))
        assert (trained == 1).all()
        assert (held_out == 0).all()
    else:
        trained, held_out = (np.abs(drawn[drawn != 0]) for drawn in contexts)
        assert held_out.max() < trained.min()
