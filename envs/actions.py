"""Actions are checked before they reach an environment: EnvPool ends the whole process on an invalid one."""

from typing import Any, assert_never

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError

ActionSpace = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box


def supported_action_space(space: spaces.Space[Any], owner: str) -> ActionSpace:
    """The space itself, or a ConfigError if SB3's policies cannot act in it."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)):
        return space
    raise ConfigError(
        f"{owner}: the action space must be Discrete, MultiDiscrete, MultiBinary or Box, got {type(space).__name__}"
    )


def checked_actions(actions: Any, space: ActionSpace, n: int) -> NDArray[Any]:
    """Actions of n slots as an array (n, …).

    Raises:
        ValueError: their shape, type or range is not the space's.
    """
    array = np.asarray(actions)
    shape = (n, *(space.shape or ()))
    if array.shape != shape:
        raise ValueError(f"actions must have shape {shape}, one row per environment, got {array.shape}")
    if not isinstance(space, spaces.Box) and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"actions must be integers, got {array.dtype}")
    low, high = _bounds(space)
    valid = (array >= low) & (array <= high)  # false for NaN as well
    if not valid.all():
        row = int(np.argwhere(~valid)[0][0])
        raise ValueError(f"actions must be in {space}, got {array[row]} for environment {row}")
    return array


def _bounds(space: ActionSpace) -> tuple[Any, Any]:
    match space:
        case spaces.Discrete():
            return space.start, space.start + space.n - 1
        case spaces.MultiDiscrete():
            return space.start, space.start + space.nvec - 1
        case spaces.MultiBinary():
            return 0, 1
        case spaces.Box():
            return space.low, space.high
        case _:
            assert_never(space)
