"""Tests of the backends of a suite as one."""

from contextlib import closing

import numpy as np
from suites import DOORS

from mirl.envs import SuiteVecEnv
from mirl.envs.pools.suite import _TaskGroups


def test_many_environments_change_their_task() -> None:
    """More than 256 environments move between EnvPool's backends."""
    with closing(SuiteVecEnv(DOORS, 600, backend="envpool", sampling="uniform")) as env:
        obs = env.reset()
        for _ in range(5):
            actions = np.random.default_rng(0).integers(7, size=600)
            obs, _, dones, _ = env.step(actions)
            np.testing.assert_array_equal(obs["task"], env.task_index)
        assert dones.any()
        assert set(env.task_index.tolist()) == {0, 1, 2}


def test_groups_restore_the_order() -> None:
    """Rows grouped by task return to their order; excluded rows are zeros."""
    task_ids = np.array([2, 0, 2, 1])
    groups = _TaskGroups(task_ids, np.array([False, False, False, True]))
    rows = {task_index: rows.tolist() for task_index, rows in groups.rows_by_task}
    assert rows == {0: [1], 2: [0, 2]}
    joined = {"value": np.array([10, 20, 30])}  # of rows 1, 0 and 2
    assert groups.restore_order(joined)["value"].tolist() == [20, 10, 30, 0]


def test_ordered_groups_are_not_copied() -> None:
    """Observations that are already in order are returned as they are."""
    joined = {"value": np.array([1, 2, 3])}
    assert _TaskGroups(np.array([0, 0, 1])).restore_order(joined) is joined
