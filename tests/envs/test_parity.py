"""EnvPool's MiniGrid and BabyAI are MiniGrid's own: the same states under the same actions give the same everything."""

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
    f"MiniGrid-Dynamic-Obstacles-{size}-v0": "each backend draws its own moves of the obstacles, at every step"
    for size in ("5x5", "6x6", "8x8", "16x16", "Random-5x5", "Random-6x6")
}
COMPARABLE = sorted(envpool_ids() - set(NOT_COMPARABLE))
QUICK = (*COMPARABLE[::5], *(name for name in COMPARABLE if "Carrying" in name or "Debug" in name))


def assert_parity(env_id: str, n_steps: int, slots: int = 3) -> int:
    """Replay random actions in both; returns the number of episodes that ended."""
    task = TaskConfig(name="task", env_id=env_id)
    pool = EnvPoolBackend(task, slots)
    singles = [make_env(task) for _ in range(slots)]
    rng = np.random.default_rng(0)
    everyone = np.arange(slots)
    pool.seed(range(slots))
    pool.send_reset(everyone)
    obs = pool.recv_reset()
    for single in singles:
        if "-WFC-" in env_id:  # its own layouts need an extra, and are replaced anyway
            single.unwrapped._gen_grid = types.MethodType(empty_grid, single.unwrapped)
        single.reset(seed=0)
    starting, episodes = np.ones(slots, bool), 0
    for _ in range(n_steps):
        for slot in np.flatnonzero(starting):
            single = singles[slot]
            single.reset()
            inject(single.unwrapped, pool._envs.debug_states()[slot])
            assert_same(obs, slot, single.observation(single.unwrapped.gen_obs()))
        actions = rng.integers(singles[0].action_space.n, size=slots)
        pool.send(everyone, actions)
        step = pool.recv()
        starting = step.done
        for slot, single in enumerate(singles):
            expected, reward, terminated, truncated, _ = single.step(actions[slot])
            assert step.rewards[slot] == pytest.approx(reward, abs=1e-6)
            assert step.truncated[slot] == truncated
            if not truncated or reward:  # see _ended_by_itself: there a failure reads as a time-out
                assert step.terminated[slot] == terminated
            assert_same(step.obs, slot, expected)
        obs = step.obs
        if starting.any():
            pool.send_reset(np.flatnonzero(starting))
            for key, values in pool.recv_reset().items():
                obs[key][starting] = values
        episodes += int(step.done.sum())
    pool.close()
    return episodes


def assert_same(batch: dict[str, np.ndarray], row: int, expected: dict[str, np.ndarray]) -> None:
    for key, value in expected.items():
        np.testing.assert_array_equal(batch[key][row], value, err_msg=key)


def empty_grid(env: Any, width: int, height: int) -> None:
    env.grid, env.agent_pos, env.agent_dir = Grid(width, height), (1, 1), 0


@pytest.mark.parametrize("env_id", sorted(set(QUICK)))
def test_envpool_steps_like_minigrid(env_id: str) -> None:
    assert_parity(env_id, n_steps=120)


@pytest.mark.exhaustive
@pytest.mark.parametrize("env_id", COMPARABLE)
def test_envpool_steps_like_minigrid_for_every_comparable_id(env_id: str) -> None:
    assert_parity(env_id, n_steps=500)


def test_the_comparison_sees_time_outs_and_successes() -> None:
    assert assert_parity("MiniGrid-GoToObject-6x6-N2-v0", n_steps=400) > 3
    assert assert_parity("MiniGrid-Empty-5x5-v0", n_steps=400) > 3


def test_only_envpools_own_randomness_is_not_compared() -> None:
    assert set(NOT_COMPARABLE) <= envpool_ids()
    assert len(COMPARABLE) == 171
