"""Tests of non-finite values and of the episodes of failed environments."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from suites import fragile

from mirl.configs.errors import ConfigError
from mirl.envs import EnvironmentFailedError, SuiteVecEnv
from mirl.envs.faults import FaultPolicy, close_on_error

GO_ON = 0
NON_FINITE = 6


@pytest.mark.parametrize("workers", [0, 2])
def test_non_finite_raises_or_restarts(workers: int) -> None:
    """Non-finite observations are raised, or end the episode if they are restarted."""
    actions = np.array([GO_ON, NON_FINITE])
    message = r"environment 1\) gave a non-finite observation 'observation' in timestep 1"
    with closing(SuiteVecEnv(fragile(), 2, workers=workers, max_restarts=1)) as env:
        env.reset()
        with pytest.raises(EnvironmentFailedError, match=message):
            env.step(actions)
    env = SuiteVecEnv(fragile(), 2, workers=workers, max_restarts=1, restart_non_finite=True)
    with closing(env):
        env.reset()
        with pytest.warns(RuntimeWarning, match="non-finite observation.*restart 1 of 1"):
            obs, _, dones, infos = env.step(actions)
        assert dones.tolist() == [False, True]
        assert infos[1]["terminal_observation"]["observation"].tolist() == [0.0, 0.0]
        assert np.isfinite(obs["observation"]).all()
        later = env.step(np.array([GO_ON, GO_ON]))[0]
        assert later["observation"][:, 0].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_restarts": -1}, "max_restarts must be at least 0, got -1"),
        ({"timeout": 0.0}, "timeout must be more than 0 seconds, got 0.0"),
    ],
)
def test_policy_checks_its_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FaultPolicy(**arguments)


def test_error_closes_the_environments() -> None:
    """The environments are closed if the block raises, and only then."""
    closed = []
    with close_on_error(lambda: closed.append(True)):
        pass
    assert not closed
    with pytest.raises(KeyboardInterrupt), close_on_error(lambda: closed.append(True)):
        raise KeyboardInterrupt
    assert closed == [True]
