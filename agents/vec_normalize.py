"""Check that SB3's ``VecNormalize`` does not normalize categorical observations, such as codes."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from mirl.configs.errors import ConfigError
from mirl.envs.contract.codes import is_code_space


def check_not_normalized(env: VecEnv | None) -> None:
    """Raise an error if a ``VecNormalize`` normalizes codes of a grid or token ids of a text.

    Args:
        env: the environments of an algorithm, with all of their wrappers.

    Raises:
        ConfigError: a key with categorical values is normalized.
    """
    layer = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecNormalize) and layer.norm_obs:
            _check_keys(layer)
        layer = layer.venv


def _check_keys(layer: VecNormalize) -> None:
    space = layer.venv.observation_space
    if not isinstance(space, spaces.Dict):
        return
    normalized = list(layer.norm_obs_keys or space.spaces)
    names = [key for key in normalized if _names_things(space[key])]
    if not names:
        return
    others = [key for key in normalized if key not in names]
    remedy = f"norm_obs_keys={others}" if others else "norm_obs=False"
    raise ConfigError(
        f"observation '{names[0]}': expected integers that name objects or words, got their "
        f"normalization by VecNormalize, which makes other things of them; use {remedy}"
    )


def _names_things(space: spaces.Space[Any]) -> bool:
    """Return True for codes of a grid, and for the token ids of a text."""
    if is_code_space(space):
        return True
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return False
    return space.dtype == np.int16 and bool((space.low == 0).all())
