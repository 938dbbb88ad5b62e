"""Actions are checked before they reach an environment: EnvPool ends the whole process on an invalid one."""

from typing import Any, assert_never

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY

ActionSpace = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box

ROUNDING = 1e-6
"""Part of a bound by which a continuous action may pass it."""


def supported_action_space(space: spaces.Space[Any], owner: str) -> ActionSpace:
    """The space itself, or a ConfigError if SB3's policies cannot act in it."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
        raise ConfigError(
            f"{owner}: SB3 counts actions from 0, and the action space is {space}; shift it with a wrapper"
        )
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
        raise ValueError(
            f"actions must have shape {shape}, one row per environment, got {array.shape}"
        )
    low, high = _bounds(space)
    if isinstance(space, spaces.Box):
        # SB3's rescaling may overshoot a bound by rounding; what it overshot is cut
        valid = (array >= low - ROUNDING * np.abs(low)) & (array <= high + ROUNDING * np.abs(high))
        rounded = np.clip(array, low, high)
    else:
        if isinstance(space, spaces.MultiBinary) and np.isin(array, (0, 1)).all():
            array = array.astype(space.dtype)  # SB3 gives these as floats
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"actions must be integers, got {array.dtype}")
        rounded = array
        valid = (array >= low) & (array <= high)
    if not valid.all():  # NaN is not valid either
        row = int(np.argwhere(~valid)[0][0])
        raise ValueError(f"actions must be in {space}, got {array[row]} for environment {row}")
    return rounded


def check_tasks_have(
    actions: NDArray[Any], tasks: NDArray[np.int64], n_actions: NDArray[np.int64], names: list[str]
) -> None:
    """Raise a ValueError if one of the actions (n,) is beyond those of the task (n,) that its slot plays.

    Args:
        n_actions: of each task.
        names: of each task.
    """
    beyond = np.flatnonzero(actions >= n_actions[tasks])
    if beyond.size:
        slot = int(beyond[0])
        task = int(tasks[slot])
        raise ValueError(
            f"actions must be ones that the task has, see the observation '{ACTION_MASK_KEY}': task '{names[task]}' of "
            f"environment {slot} has {n_actions[task]}, counted from 0, got {actions[slot]}"
        )


def with_action_mask(
    obs: dict[str, NDArray[Any]], n_actions: int, width: int
) -> dict[str, NDArray[Any]]:
    """Observations (k, …) of a task with ``n_actions`` actions in a suite with ``width``, and their mask (k, width).

    A mask (k, n_actions) of the environment's own is widened.
    """
    k = len(next(iter(obs.values())))
    mask = np.zeros((k, width), dtype=np.int8)
    mask[:, :n_actions] = obs.get(ACTION_MASK_KEY, 1)
    return {**obs, ACTION_MASK_KEY: mask}


def _bounds(space: ActionSpace) -> tuple[Any, Any]:
    match space:
        case spaces.Discrete():
            return 0, space.n - 1
        case spaces.MultiDiscrete():
            return 0, space.nvec - 1
        case spaces.MultiBinary():
            return 0, 1
        case spaces.Box():
            return space.low, space.high
        case _:
            assert_never(space)
