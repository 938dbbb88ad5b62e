"""Tests of the start of episodes."""

from contextlib import closing

import numpy as np
import pytest
from suites import fragile

from mirl.envs import EnvironmentFailedError, SuiteVecEnv


def test_non_finite_start_is_drawn_again() -> None:
    """An episode with a non-finite first observation is replaced by the next one."""
    suite = fragile(resets="non_finite_once")
    env = SuiteVecEnv(suite, 2, workers=0, max_restarts=2, restart_non_finite=True)
    with closing(env):
        with pytest.warns(RuntimeWarning, match="non-finite observation.*timestep 0") as warned:
            obs = env.reset()
        assert len(warned) == 2
        assert np.isfinite(obs["observation"]).all()


def test_non_finite_start_is_raised() -> None:
    """An episode with a non-finite first observation is an error if it is not restarted."""
    with closing(SuiteVecEnv(fragile(resets="non_finite_once"), 2, workers=0)) as env:
        message = r"environment 0\) gave a non-finite observation 'observation' in timestep 0"
        with pytest.raises(EnvironmentFailedError, match=message):
            env.reset()
