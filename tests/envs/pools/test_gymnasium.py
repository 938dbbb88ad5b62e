"""Tests of the ``gymnasium`` backend without worker processes."""

import warnings
from contextlib import closing

import numpy as np
import pytest
import toy_envs
from suites import COUNTER, FRAGILE, fragile, single_task

from mirl.envs import EnvironmentFailedError, SuiteVecEnv
from mirl.envs.seeds import env_seeds

GO_ON = 0
RAISE = 3
GROW = 7


@pytest.mark.parametrize("workers", [0, 2])
def test_failing_environment_is_named(workers: int) -> None:
    """The error of an environment that raises names its task, id and seed."""
    env = SuiteVecEnv(single_task(COUNTER), 4, workers=workers, seed=1)
    seeds = env.seed(1)
    env.reset()
    message = (
        rf"task 'toy' \({COUNTER}, seed {seeds[3]}\) failed in step\(\): "
        "ZeroDivisionError: a mistake of the toy"
    )
    with pytest.raises(EnvironmentFailedError, match=message):
        env.step(np.array([0, 0, 0, 3]))
    with pytest.raises(RuntimeError, match="a new SuiteVecEnv"):
        env.step(np.zeros(4, int))
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_failing_reset_tries_other_seeds(workers: int) -> None:
    """A reset that raises is repeated with other seeds until it works."""
    seeds = env_seeds(0, "train", 0, 6)
    n_odd = sum(seed % 2 for seed in seeds)
    assert n_odd
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        suite = fragile(resets="raise")
        with closing(SuiteVecEnv(suite, 6, workers=workers, max_restarts=100)) as env:
            env.reset()
            obs = env.step(np.full(6, GO_ON))[0]
            assert obs["observation"][:, 0].tolist() == [1] * 6
    assert len(warned) >= n_odd
    assert "ValueError: an odd seed" in str(warned[0].message)


def test_close_does_not_hide_the_failure() -> None:
    """An error in close() does not hide the failure before it."""
    with closing(SuiteVecEnv(fragile(close="raise"), 2, workers=0)) as env:
        env.reset()
        with pytest.raises(EnvironmentFailedError, match="a mistake of the toy"):
            env.step(np.array([GO_ON, RAISE]))


def test_failing_construction_is_repeated() -> None:
    """An environment that cannot be made again at once is tried again."""
    toy_envs.FragileEnv.failures_to_make = 0
    with closing(SuiteVecEnv(fragile(), 1, workers=0, max_restarts=5)) as env:
        env.reset()
        toy_envs.FragileEnv.failures_to_make = 2
        with pytest.warns(RuntimeWarning, match="restart") as warned:
            env.step(np.array([RAISE]))
        in_make = ["failed in make()" in str(warning.message) for warning in warned]
        assert in_make == [False, True, True]
        assert env.step(np.array([GO_ON]))[0]["observation"][0, 0] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_wrong_shape_names_task_and_seed(workers: int) -> None:
    """An observation of another shape is an error with its task and seed."""
    message = (
        rf"task 'task0' \({FRAGILE}, seed \d+\) in step\(\): observation 'observation': "
        r"expected an array of shape \(2,\), float32, .* got an array of shape \(3,\), float32"
    )
    with closing(SuiteVecEnv(fragile(), 4, workers=workers)) as env:
        env.reset()
        with pytest.raises(EnvironmentFailedError, match=message):
            env.step(np.array([GO_ON, GO_ON, GO_ON, GROW]))
