"""Tests of the ``envpool`` backend: it steps like MiniGrid from the same states."""

import types
from typing import Any

import numpy as np
import pytest
from envpool_states import inject
from minigrid.core.grid import Grid

from mirl.configs.tasks import TaskConfig
from mirl.envs.make import make_env
from mirl.envs.pools.envpool import EnvPoolBackend, envpool_ids

NOT_COMPARABLE = {
    f"MiniGrid-Dynamic-Obstacles-{size}-v0": "each backend draws its own moves of the obstacles"
    for size in ("5x5", "6x6", "8x8", "16x16", "Random-5x5", "Random-6x6")
}
COMPARABLE = sorted(envpool_ids() - set(NOT_COMPARABLE))
QUICK = (*COMPARABLE[::5], *(name for name in COMPARABLE if "Carrying" in name or "Debug" in name))


def assert_parity(env_id: str, n_steps: int, n_envs: int = 3) -> int:
    """Replay random actions in both; return the number of episodes that ended."""
    task = TaskConfig(name="task", env_id=env_id)
    backend = EnvPoolBackend(task, n_envs)
    singles = [make_env(task) for _ in range(n_envs)]
    rng = np.random.default_rng(0)
    env_indices = np.arange(n_envs)
    backend.seed(range(n_envs))
    backend.send_reset(env_indices)
    obs = backend.recv_reset()
    for single in singles:
        # The layouts of WFC need an extra, and are replaced anyway.
        if "-WFC-" in env_id:
            single.unwrapped._gen_grid = types.MethodType(empty_grid, single.unwrapped)
        single.reset(seed=0)
    starts = np.ones(n_envs, bool)
    n_episodes = 0
    for _ in range(n_steps):
        for i in np.flatnonzero(starts):
            single = singles[i]
            single.reset()
            inject(single.unwrapped, backend._envs.debug_states()[i])
            assert_same(obs, i, single.observation(single.unwrapped.gen_obs()))
        actions = rng.integers(singles[0].action_space.n, size=n_envs)
        backend.send(env_indices, actions)
        step = backend.recv()
        starts = step.done
        for i, single in enumerate(singles):
            expected, reward, terminated, truncated, _ = single.step(actions[i])
            assert step.rewards[i] == pytest.approx(reward, abs=1e-6)
            assert step.truncated[i] == truncated
            # An end without reward at the time limit reads as truncated, see _correct_terminated.
            if not truncated or reward:
                assert step.terminated[i] == terminated
            assert_same(step.obs, i, expected)
        obs = step.obs
        if starts.any():
            backend.send_reset(np.flatnonzero(starts))
            for key, values in backend.recv_reset().items():
                obs[key][starts] = values
        n_episodes += int(step.done.sum())
    backend.close()
    return n_episodes


def assert_same(batch: dict[str, np.ndarray], row: int, expected: dict[str, np.ndarray]) -> None:
    for key, value in expected.items():
        np.testing.assert_array_equal(batch[key][row], value, err_msg=key)


def empty_grid(env: Any, width: int, height: int) -> None:
    env.grid = Grid(width, height)
    env.agent_pos = (1, 1)
    env.agent_dir = 0


@pytest.mark.parametrize("env_id", sorted(set(QUICK)))
def test_envpool_steps_like_minigrid(env_id: str) -> None:
    assert_parity(env_id, n_steps=120)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", COMPARABLE)
def test_every_comparable_id_has_parity(env_id: str) -> None:
    """EnvPool steps like MiniGrid for every comparable id."""
    assert_parity(env_id, n_steps=500)


def test_comparison_covers_ended_episodes() -> None:
    """The comparison covers truncated and successful episodes."""
    assert assert_parity("MiniGrid-GoToObject-6x6-N2-v0", n_steps=400) > 3
    assert assert_parity("MiniGrid-Empty-5x5-v0", n_steps=400) > 3


def test_few_ids_are_not_comparable() -> None:
    """Only ids whose backends draw random numbers at every step are not compared."""
    assert set(NOT_COMPARABLE) <= envpool_ids()
    assert len(COMPARABLE) == 171
