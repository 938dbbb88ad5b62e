"""Tests of the game of roles: rewards, observations, episodes and random streams."""

from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import score_bounds
from mirl.envs.worlds.roles import N_STEPS, RolesVectorEnv


@st.composite
def joint_actions(draw: Any) -> np.ndarray:
    """Draw the actions of some games, (games, n)."""
    n_games = draw(st.integers(1, 4))
    n_agents = draw(st.integers(2, 6))
    action = st.integers(0, n_agents - 1)
    game = st.lists(action, min_size=n_agents, max_size=n_agents)
    return np.array(draw(st.lists(game, min_size=n_games, max_size=n_games)))


@given(joint_actions())
def test_step_equals_a_plain_loop(actions: np.ndarray) -> None:
    """Rewards and observations of a timestep equal those of a loop over games and agents."""
    n_games, n_agents = actions.shape
    env = RolesVectorEnv(n_games * n_agents, n_agents)
    env.reset(seed=0)
    obs, rewards, terminated, truncated, info = env.step(actions.reshape(-1))
    slot = 0
    for joint in actions.tolist():
        counts = Counter(joint)
        seen = [float(action == other) for action in joint for other in range(n_agents)]
        for action in joint:
            assert rewards[slot] == pytest.approx(1 / counts[action])
            assert obs[slot].tolist() == seen
            slot += 1
    assert not terminated.any()
    assert not truncated.any()
    assert info == {}
    assert env.observation_space.contains(obs)


def test_episodes_are_truncated() -> None:
    env = gym.make_vec("MIRL/Roles-v0", num_envs=6, n_agents=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(6, np.int64))[2:4] for _ in range(N_STEPS)]
    assert [truncated.tolist() for _, truncated in ends] == [[False] * 6] * (N_STEPS - 1) + [
        [True] * 6
    ]
    assert not any(terminated.any() for terminated, _ in ends)


def test_reset_mask_keeps_other_games() -> None:
    """A reset of one game changes neither the state nor the length of another."""
    env = RolesVectorEnv(6, 3, max_episode_steps=2)
    env.reset(seed=1)
    before = env.step(np.array([0, 1, 2, 0, 0, 1]))[0]
    after, _ = env.reset(options={"reset_mask": np.array([True] * 3 + [False] * 3)})
    assert np.array_equal(after[3:], before[3:])
    assert env.step(np.zeros(6, np.int64))[3].tolist() == [False] * 3 + [True] * 3


def test_game_has_its_own_stream() -> None:
    """The starts of a game depend on its seed alone, not on the resets of another game."""
    one = RolesVectorEnv(8, 4)
    other = RolesVectorEnv(8, 4)
    one.reset(seed=list(range(8)))
    other.reset(seed=list(range(8)))
    only_first = np.array([True] * 4 + [False] * 4)
    other.reset(options={"reset_mask": only_first})
    starts = [one.reset()[0][4:] for _ in range(3)]
    others = [other.reset()[0][4:] for _ in range(3)]
    assert np.array_equal(starts, others)
    assert not np.array_equal(one.reset(seed=list(range(8)))[0][4:], one.reset()[0][4:])


def test_start_is_uniform() -> None:
    """The joint action before the first timestep is uniform."""
    env = RolesVectorEnv(4_000, 2)
    obs, _ = env.reset(seed=0)
    counts = Counter(tuple(row) for row in obs[::2].tolist())
    assert len(counts) == 4
    assert all(430 < count < 570 for count in counts.values())


def test_partial_reset_is_an_error() -> None:
    env = RolesVectorEnv(4, 2)
    with pytest.raises(ValueError, match="whole games of 2 slots"):
        env.reset(options={"reset_mask": np.array([True, False, True, True])})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 5, "n_agents": 2}, "multiple of n_agents=2"),
        ({"num_envs": 2, "n_agents": 1}, "n_agents must be at least 2"),
        ({"max_episode_steps": 0}, "max_episode_steps at least 1"),
    ],
)
def test_bad_number_is_an_error(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RolesVectorEnv(**kwargs)


@pytest.mark.parametrize("n_agents", [4, 8, 16])
def test_preset_scores_are_mean_rewards(n_agents: int) -> None:
    """A preset has an agent per task, whole games, and the mean reward as its score."""
    config = compose_train([f"task=roles{n_agents}"])
    assert len(config.task.tasks) == n_agents
    assert config.agent.n_envs % n_agents == 0
    for task in config.task.tasks:
        assert score_bounds(task) == (0, N_STEPS)
