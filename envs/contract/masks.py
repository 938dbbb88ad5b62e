"""Action masks of environments: which spaces are accepted as masks, and their valid values."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ContractError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.envs.contract.descriptions import describe_space, describe_value


def mask_space(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.MultiBinary:
    """Return the space of an action mask, a ``MultiBinary`` with one bit per action.

    Args:
        space: the space under ``action_mask``: a MultiBinary, or a Box or MultiDiscrete of zeros
            and ones, (n_actions,).
        action_space: the space of the actions.

    Raises:
        ContractError: if the actions are not Discrete, or the mask does not fit them.
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ContractError(
            f"observation '{ACTION_MASK_KEY}': masks are for Discrete actions, and these are "
            f"{describe_space(action_space)}; give the key another name, and it is an input"
        )
    n_actions = int(action_space.n)
    expected = f"expected MultiBinary({n_actions}) or Box(0, 1, ({n_actions},))"
    if space.shape != (n_actions,):
        raise ContractError(
            f"observation '{ACTION_MASK_KEY}': {expected}, one entry for each of the {n_actions} "
            f"actions, got {describe_space(space)}; change its shape to ({n_actions},)"
        )
    if not _holds_bits(space):
        raise ContractError(
            f"observation '{ACTION_MASK_KEY}': {expected}, got {describe_space(space)}; a mask has "
            "1 for each available action and 0 for the others, so change its bounds to 0 and 1, or "
            "give the key another name, and it is an input"
        )
    return spaces.MultiBinary(n_actions)


def _holds_bits(space: spaces.Space[Any]) -> bool:
    match space:
        case spaces.MultiBinary():
            return True
        case spaces.Box():
            return bool((space.low == 0).all() and (space.high == 1).all())
        case spaces.MultiDiscrete():
            return bool((space.nvec == 2).all() and not np.any(space.start))
        case _:
            return False


def convert_mask(value: Any, n_actions: int, is_last: bool = False) -> NDArray[np.int8]:
    """Return an action mask as zeros and ones, (n_actions,).

    Args:
        value: the mask of the environment: booleans, or numbers that are 0 or 1.
        n_actions: number of actions.
        is_last: whether the episode has ended; then no action has to be available.

    Raises:
        ContractError: if the value is not a mask, or masks every action.
    """
    mask = np.asarray(value)
    if mask.shape != (n_actions,) or mask.dtype.kind not in "biuf":
        raise ContractError(
            f"observation '{ACTION_MASK_KEY}': expected an array of shape ({n_actions},), got "
            f"{describe_value(value)}; return one entry for each of the {n_actions} actions"
        )
    if mask.dtype.kind != "b" and not ((mask == 0) | (mask == 1)).all():
        raise ContractError(
            f"observation '{ACTION_MASK_KEY}': expected only zeros and ones, got "
            f"{describe_value(value)}; return 1 for each available action and 0 for the others"
        )
    bits = mask.astype(np.int8)
    if not is_last and not bits.any():
        raise ContractError(
            f"observation '{ACTION_MASK_KEY}': expected an available action, got only zeros; "
            "leave at least one action available until the episode ends, or end it"
        )
    return bits
