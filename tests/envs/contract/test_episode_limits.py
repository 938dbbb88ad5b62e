"""Tests of the limits of the length of episodes."""

import warnings
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from suites import single_task

from mirl.envs import SuiteVecEnv
from mirl.envs.contract import episode_limits
from mirl.envs.contract.episode_limits import MaxSteps, episode_limit

ENDLESS = "ToyRandomGoal-v0"


@pytest.mark.parametrize(
    ("env_id", "kwargs", "limit"),
    [
        (ENDLESS, {}, None),
        (ENDLESS, {"max_episode_steps": 7}, 7),
        ("ToyShortGoal-v0", {}, 3),
        ("MiniGrid-Empty-5x5-v0", {}, 100),
        ("MiniGrid-Empty-5x5-v0", {"max_steps": 12}, 12),
        ("CartPole-v1", {}, 500),
    ],
)
def test_limits_are_found(env_id: str, kwargs: dict[str, Any], limit: int | None) -> None:
    with closing(gym.make(env_id, **kwargs)) as env:
        assert episode_limit(env) == limit


def lengths_of(env: SuiteVecEnv, n_steps: int) -> list[tuple[int, bool]]:
    """Return length and truncation of the episodes that end within some timesteps."""
    env.reset()
    ended = []
    for _ in range(n_steps):
        _, _, dones, infos = env.step(np.zeros((env.num_envs, *env.action_space.shape)))
        for i in np.flatnonzero(dones):
            ended.append((infos[i]["episode"]["l"], infos[i]["TimeLimit.truncated"]))
    return ended


@pytest.mark.parametrize("max_steps", [1, 4])
def test_episodes_are_truncated_at_limit(max_steps: int) -> None:
    """An episode is truncated at its limit, and the next one starts."""
    with closing(SuiteVecEnv(single_task(ENDLESS), 2, workers=0, max_steps=max_steps)) as env:
        assert lengths_of(env, 9) == [(max_steps, True)] * (2 * (9 // max_steps))


def test_default_limit_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless episodes get the default limit, and one warning that names the option."""
    monkeypatch.setattr(episode_limits, "DEFAULT_LIMIT", 3)
    with closing(SuiteVecEnv(single_task(ENDLESS), 2, workers=0, max_steps="auto")) as env:
        with pytest.warns(RuntimeWarning, match=r"set evaluation\.max_steps=") as caught:
            assert len(lengths_of(env, 7)) == 4
        assert len(caught) == 1


@pytest.mark.parametrize(
    ("env_id", "max_steps", "n_ended"),
    [
        (ENDLESS, None, 0),  # training goes on
        ("ToyShortGoal-v0", "auto", 4),  # its own limit of 3 holds
        ("ToyShortGoal-v0", 5, 4),  # a larger limit changes nothing
    ],
)
def test_no_limit_is_added(
    monkeypatch: pytest.MonkeyPatch, env_id: str, max_steps: MaxSteps, n_ended: int
) -> None:
    monkeypatch.setattr(episode_limits, "DEFAULT_LIMIT", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with closing(SuiteVecEnv(single_task(env_id), 2, workers=0, max_steps=max_steps)) as env:
            assert len(lengths_of(env, 7)) == n_ended


def test_inactive_environments_are_not_truncated() -> None:
    """An environment that plays no further episode has none to truncate."""
    with closing(SuiteVecEnv(single_task(ENDLESS), 2, workers=0, max_steps=3)) as env:
        env.reset()
        env.deactivate(np.array([0]))
        dones = [env.step(np.zeros((2, 2)))[2].tolist() for _ in range(7)]
        assert [row[0] for row in dones] == [False, False, True, False, False, False, False]
        assert [row[1] for row in dones] == [False, False, True, False, False, True, False]
