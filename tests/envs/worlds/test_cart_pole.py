"""Tests of CartPole with poles of different lengths."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from mirl.configs.errors import ConfigError
from mirl.envs.worlds.cart_pole import N_STEPS, PoleLengthEnv


def test_checkers_accept_the_environment() -> None:
    env = gym.make("MIRL/PoleLength-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
        sb3_check_env(env)


def test_own_length_is_cart_pole() -> None:
    """With a relative length of 1, episodes are those of CartPole-v1."""
    env = gym.make("MIRL/PoleLength-v0", lengths=(1, 1))
    plain = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=2)
    expected, _ = plain.reset(seed=2)
    assert plain.spec.max_episode_steps == N_STEPS  # type: ignore[union-attr]
    terminated = False
    while not terminated:
        assert np.array_equal(observation["observation"], expected)
        assert observation["context"].tolist() == [1]
        observation, reward, terminated, _, _ = env.step(1)
        expected, own_reward, own_terminated, _, _ = plain.step(1)
        assert (reward, terminated) == (own_reward, own_terminated)


@pytest.mark.parametrize("relative", [0.5, 2.0])
def test_length_changes_the_motion(relative: float) -> None:
    """The angular acceleration is that of Barto et al. (1983) for the observed length."""
    env = PoleLengthEnv(lengths=(relative, relative))
    observation, _ = env.reset(seed=0)
    _, _, angle, angular_velocity = np.float64(env.state)
    observation, *_ = env.step(1)
    length = 0.5 * observation["context"][0]
    mass, total = 0.1, 1.1
    push = (10 + mass * length * angular_velocity**2 * np.sin(angle)) / total
    turn = 9.8 * np.sin(angle) - np.cos(angle) * push
    acceleration = turn / (length * (4 / 3 - mass * np.cos(angle) ** 2 / total))
    assert observation["observation"][3] == pytest.approx(
        angular_velocity + 0.02 * acceleration, rel=1e-5
    )


def test_lengths_are_drawn_uniformly() -> None:
    env = PoleLengthEnv(lengths=(0.5, 2.0))
    env.reset(seed=0)
    lengths = [env.reset()[0]["context"][0] for _ in range(2_000)]
    counts, _ = np.histogram(lengths, bins=4, range=(0.5, 2.0))
    assert counts.sum() == 2_000
    assert counts.min() > 430


@pytest.mark.parametrize("lengths", [(2, 1), (0, 1), (1,)])
def test_bad_lengths_are_an_error(lengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="0 < low <= high"):
        PoleLengthEnv(lengths=lengths)
