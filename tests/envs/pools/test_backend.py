"""Tests of restarts, and of joining and scattering timesteps."""

import numpy as np
import pytest

from mirl.envs.pools.backend import (
    NOT_REPORTED,
    EnvironmentFailedError,
    Restarts,
    RestartWarning,
    Step,
    join_observations,
    join_steps,
    scatter_rows,
)


def make_step(values: list[float]) -> Step:
    k = len(values)
    return Step(
        obs={"observation": np.array(values, np.float32)},
        rewards=np.array(values, np.float32),
        terminated=np.zeros(k, np.bool_),
        truncated=np.array([value > 2 for value in values]),
        success=np.full(k, NOT_REPORTED, np.int8),
        failed=np.zeros(k, np.bool_),
        infos={row: {"value": value} for row, value in enumerate(values) if value != 1.0},
    )


def test_restarts_warn_until_used_up() -> None:
    """Each failure is a warning until all restarts are used up; the next one is raised."""
    restarts = Restarts(2)
    failure = EnvironmentFailedError("task 'toy' failed", env_index=3)
    for n_used in (1, 2):
        with pytest.warns(RestartWarning, match=f"task 'toy' failed.*restart {n_used} of 2"):
            restarts.count(failure)
    with pytest.raises(EnvironmentFailedError, match="all 2 restarts are used up") as raised:
        restarts.count(failure)
    assert raised.value.env_index == 3


def test_no_restarts_raise_the_failure() -> None:
    """Without restarts the failure itself is raised."""
    failure = EnvironmentFailedError("task 'toy' failed")
    with pytest.raises(EnvironmentFailedError) as raised:
        Restarts().count(failure)
    assert raised.value is failure


def test_steps_are_joined_in_order() -> None:
    joined = join_steps([make_step([1.0, 3.0]), make_step([2.0])])
    assert joined.rewards.tolist() == [1.0, 3.0, 2.0]
    assert joined.obs["observation"].tolist() == [1.0, 3.0, 2.0]
    assert joined.done.tolist() == [False, True, False]
    assert joined.infos == {1: {"value": 3.0}, 2: {"value": 2.0}}


def test_single_batch_is_not_copied() -> None:
    """A single batch is returned as it is."""
    step = make_step([1.0])
    assert join_steps([step]) is step
    assert join_observations([step.obs]) is step.obs


@pytest.mark.parametrize("rows", [np.array([0, 2]), np.array([True, False, True])])
def test_scatter_fills_zeros(rows: np.ndarray) -> None:
    """The given rows go to their places, the others are zeros."""
    values = np.array([[1, 2], [3, 4]], np.int16)
    scattered = scatter_rows(values, rows, 3)
    assert scattered.tolist() == [[1, 2], [0, 0], [3, 4]]
    assert scattered.dtype == np.int16
    step = make_step([5.0, 6.0]).scatter(rows, 3)
    assert step.rewards.tolist() == [5.0, 0.0, 6.0]
    assert step.success.tolist() == [NOT_REPORTED, 0, NOT_REPORTED]
    assert step.infos == {0: {"value": 5.0}, 2: {"value": 6.0}}
