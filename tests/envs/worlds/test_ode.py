"""Tests of the ODE environment: motion, rewards and contexts are as published."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.envs import make_env
from mirl.envs.worlds.ode import DT, N_STEPS, X_LIMIT, ODEEnv

units = st.floats(-1, 1, width=32)


def started(x: float, context: tuple[float, ...], **kwargs: Any) -> ODEEnv:
    env = ODEEnv(contexts=[context], starts=[x], **kwargs)
    env.reset(seed=0)
    return env


def contexts_of(env: ODEEnv, seeds: Iterable[int]) -> list[np.ndarray]:
    """Return the context of the episode that starts with each seed."""
    contexts = []
    for seed in seeds:
        env.reset(seed=seed)
        contexts.append(env.context)
    return contexts


def test_first_power_uses_the_real_part() -> None:
    """The first coefficient multiplies the real part of the action."""
    env = started(1.1, (5.0,), force=100.0)
    obs, reward, terminated, truncated, info = env.step(np.array([-0.1, 0.7], np.float32))
    assert env.x == pytest.approx(1.1 - 5 * 100 * 0.1 * DT)  # 1.1 - 0.5
    assert obs["observation"] == pytest.approx([0.6])
    assert (reward, terminated, truncated, info["is_success"]) == (0.05, False, False, False)


def test_second_power_uses_the_imaginary_part() -> None:
    """In the second power, the imaginary part of the action counts negatively."""
    env = started(1.0, (0.0, 2.0))
    env.step(np.array([0.0, 0.5], np.float32))
    assert env.x == pytest.approx(1 + 2 * (10 * 0.5j) ** 2 * DT)  # 1 - 0.5


@given(units, units, st.floats(-10, 10), st.floats(-10, 10), st.floats(-1, 1))
def test_step_equals_the_real_polynomial(
    a: float, b: float, c0: float, c1: float, x: float
) -> None:
    """A timestep equals the polynomial written with real numbers."""
    env = started(x, (c0, c1))
    env.step(np.array([a, b], np.float32))
    velocity = c0 * 10 * a + c1 * 100 * (a * a - b * b)
    assert env.x == pytest.approx(np.clip(x + DT * velocity, -X_LIMIT, X_LIMIT), abs=1e-9)


def test_third_power_is_complex() -> None:
    """The third power mixes real and imaginary part."""
    env = started(0.0, (0.0, 0.0, 1.0), force=1.0)
    env.step(np.array([0.5, 0.5], np.float32))
    assert env.x == pytest.approx(DT * (0.5**3 - 3 * 0.5 * 0.5**2))


def test_context_can_be_hidden() -> None:
    env = started(1.0, (5.0,), shows_context=False)
    obs, *_ = env.step(np.zeros(2, np.float32))
    assert list(obs) == list(env.observation_space.spaces) == ["observation"]


def test_x_stays_within_limits() -> None:
    env = started(X_LIMIT, (5.0,), force=100.0)
    obs, *_ = env.step(np.ones(2, np.float32))
    assert env.x == X_LIMIT
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize(
    ("x", "reward"),
    [
        (0.049, 1),
        (-0.049, 1),
        (0.051, 1 / 2),
        (0.11, 1 / 3),
        (-0.21, 1 / 4),
        (0.51, 0.05),
        (-1.9, 0.05),
        (2.1, 0),
    ],
)
def test_reward_decreases_in_steps(x: float, reward: float) -> None:
    """The reward decreases in steps with the distance to the origin."""
    _, actual, _, _, info = started(x, (1.0,)).step(np.zeros(2, np.float32))
    assert actual == pytest.approx(reward)
    assert info["is_success"] == (reward == 1)


@pytest.mark.parametrize("env_id", ["MIRL/ODE-v0", "MIRL/SignFlipODE-v0"])
def test_episodes_are_truncated(env_id: str) -> None:
    env = gym.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(N_STEPS)]
    assert ends == [(False, False)] * (N_STEPS - 1) + [(False, True)]


def test_listed_contexts_are_equally_frequent() -> None:
    """All pairs of a listed context and a start are equally frequent."""
    listed = [(1.0,), (-1.0,), (5.0,), (-5.0,)]
    env = ODEEnv(contexts=listed, starts=[-1, 1])
    env.reset(seed=0)
    counts = Counter()  # type: ignore[var-annotated]
    for _ in range(8_000):
        env.reset()
        counts[tuple(env.context), env.x] += 1
    assert len(counts) == 8
    assert min(counts.values()) > 900  # of 1000 expected, with a standard deviation of 30


def test_box_of_contexts_is_covered() -> None:
    """Contexts drawn from a box are uniform up to its corners."""
    env = ODEEnv(low=[-1, 2], high=[1, 6])
    drawn = np.array(contexts_of(env, range(2_000)))
    np.testing.assert_allclose(drawn.min(0), [-1, 2], atol=0.02)
    np.testing.assert_allclose(drawn.max(0), [1, 6], atol=0.02)
    np.testing.assert_allclose(drawn.mean(0), [0, 4], atol=0.1)


def test_spacing_draws_a_grid() -> None:
    """With a spacing, every point of the grid is drawn and no other."""
    env = ODEEnv(low=[-1, 0], high=[1, 0.3], spacing=0.1)
    drawn = {tuple(np.round(context, 9)) for context in contexts_of(env, range(2_000))}
    expected = {(round(x / 10, 9), round(y / 10, 9)) for x in range(-10, 11) for y in range(4)}
    assert drawn == expected


def test_observed_context_is_scaled() -> None:
    env = ODEEnv(contexts=[(5.0, -10.0)])
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs["context"], np.array([1, -2], np.float32))


def test_seed_decides_the_episode() -> None:
    def episode(seed: int) -> list[Any]:
        env = gym.make("MIRL/ODE-v0", disable_env_checker=True)
        obs, _ = env.reset(seed=seed)
        actions = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
        return [
            obs["context"].tolist(),
            *(env.step(action)[0]["observation"].tolist() for action in actions),
        ]

    assert episode(1) == episode(1) != episode(2)


def test_sign_reverses_every_motion() -> None:
    """With the sign of the context, every motion is reversed."""
    positive, negative = (started(0.0, (sign,)) for sign in (1.0, -1.0))
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32):
        positive.step(action)
        negative.step(action)
        assert positive.x == -negative.x != 0
    flip = gym.make("MIRL/SignFlipODE-v0", disable_env_checker=True)
    assert {float(flip.reset(seed=seed)[0]["context"][0]) for seed in range(20)} == {-1.0, 1.0}


@pytest.mark.parametrize("env_id", ["MIRL/ODE-v0", "MIRL/SignFlipODE-v0"])
@pytest.mark.filterwarnings("ignore:.*Box observation space m.* value is")  # infinite bounds
def test_gymnasium_check_passes(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"contexts": [[1], [1, 2]]},
        {"contexts": [[]]},
        {"low": [0]},
        {"low": [1, 1], "high": [0, 2]},
        {"spacing": -1},
    ],
)
def test_invalid_contexts_are_an_error(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"contexts must be vectors|low must not exceed high"):
        ODEEnv(**kwargs)


def test_preset_holds_out_the_plane() -> None:
    """The preset trains in sixteen contexts and holds out the plane of all contexts."""
    config = compose_train(["task=ode"])
    assert config.trained_tasks == ("sixteen",)
    trained, plane = (make_env(task).unwrapped for task in config.task.tasks)
    assert isinstance(trained, ODEEnv)
    assert isinstance(plane, ODEEnv)
    drawn = {tuple(context) for context in contexts_of(trained, range(500))}
    around = {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)} - {(0, 0)}
    assert drawn == around | {(5 * x, 5 * y) for x, y in around}
    held_out = {tuple(context) for context in contexts_of(plane, range(5_000))}
    assert held_out == {(x, y) for x in range(-10, 11) for y in range(-10, 11)}
    assert plane.x == 1


@pytest.mark.parametrize("task", ["ode", "ode_sign_flip"])
def test_presets_accept_on_policy_agents(task: str) -> None:
    """The presets can be trained with PPO, with the context as context."""
    config = compose_train([f"task={task}", "agent=ppo"])
    assert config.agent.kind == "ppo"
    assert config.context.key == "context"
