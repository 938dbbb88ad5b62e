"""Tests of the refusal of VecNormalize around codes and token ids."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from mirl.agents.vec_normalize import check_not_normalized
from mirl.configs.errors import ConfigError


class SampledEnv(gym.Env[Any, Any]):
    """Environment of random observations: codes, token ids, pixels and numbers."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 10, (3, 3, 2), np.uint8),
            mission=spaces.Box(0, 90, (8,), np.int16),
            pixels=spaces.Box(0, 255, (8, 8, 3), np.uint8),
            position=spaces.Box(-1, 1, (2,), np.float32),
            counts=spaces.Box(0, 9, (3,), np.int64),
        )
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def environments() -> VecEnv:
    return DummyVecEnv([SampledEnv])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["image", "position"], r"'image': .*use norm_obs_keys=\['position'\]"),
        (["mission", "counts"], r"'mission': .*use norm_obs_keys=\['counts'\]"),
        (["image", "mission"], "'image': .*use norm_obs=False"),
        (None, r"use norm_obs_keys=\['pixels', 'position', 'counts'\]"),
    ],
)
def test_normalized_names_are_refused(keys: list[str] | None, message: str) -> None:
    """Codes and token ids are refused, also under other wrappers."""
    env = VecNormalize(environments(), norm_obs_keys=keys)
    for wrapped in (env, VecFrameStack(env, 1)):
        with pytest.raises(ConfigError, match=message):
            check_not_normalized(wrapped)


@pytest.mark.parametrize(
    "options", [{"norm_obs": False}, {"norm_obs_keys": ["position", "counts"]}]
)
def test_advice_is_accepted(options: dict[str, Any]) -> None:
    check_not_normalized(VecNormalize(environments(), **options))


def test_plain_environments_pass() -> None:
    check_not_normalized(environments())
    check_not_normalized(None)
