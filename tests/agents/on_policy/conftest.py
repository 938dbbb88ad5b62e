"""Fixtures of the tests of PPO, A2C and their buffers."""

import pytest
from gymnasium import spaces


@pytest.fixture(scope="module")
def door() -> spaces.Dict:
    """Return the observation space of GoToDoor: image, direction, mission, task."""
    # At run time the networks must not be imported before pytest is configured.
    from mirl.envs import make_vec_env

    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 1)
    env.close()
    assert isinstance(env.observation_space, spaces.Dict)
    return env.observation_space
