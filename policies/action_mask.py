"""Action masks: an observation can say which discrete actions are available."""

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY


def has_action_mask(
    observation_space: spaces.Space[object], action_space: spaces.Space[object]
) -> bool:
    """Return True if the observations contain an action mask.

    Args:
        observation_space: any space; only a Dict can contain a mask.
        action_space: the space of the actions that the mask is for.

    Raises:
        ConfigError: if there is a mask that does not fit the actions.
    """
    if not isinstance(observation_space, spaces.Dict):
        return False
    if ACTION_MASK_KEY not in observation_space.spaces:
        return False
    mask = observation_space[ACTION_MASK_KEY]
    if not isinstance(action_space, spaces.Discrete):
        raise ConfigError(
            f"'{ACTION_MASK_KEY}' masks Discrete actions, and these are {action_space}; give the "
            "key another name, and it is an input"
        )
    n_actions = int(action_space.n)
    if not is_mask_space(mask) or mask.shape != (n_actions,):
        raise ConfigError(
            f"expected MultiBinary({n_actions}) or Box(0, 1, ({n_actions},)) under "
            f"'{ACTION_MASK_KEY}', got {mask}; give it 1 for each available action and 0 for the "
            "others, or another name"
        )
    return True


def is_mask_space(space: spaces.Space[object] | None) -> bool:
    """Return True for a space of zeros and ones: a MultiBinary, or a Box from 0 to 1.

    Args:
        space: the space under ``action_mask``; None if there is none.
    """
    if isinstance(space, spaces.Box):
        return bool((space.low == 0).all() and (space.high == 1).all())
    return isinstance(space, spaces.MultiBinary)


def mask_logits(
    logits: Float[Tensor, "batch actions"], mask: Bool[Tensor, "batch actions"]
) -> Float[Tensor, "batch actions"]:
    """Replace the logits of unavailable actions by the lowest finite number.

    The probability of such an action is exactly 0. The number is finite so that neither the entropy
    nor a gradient computes ∞ · 0. If a mask excludes every action, all actions are equally probable
    and no gradient flows, because sampling needs some distribution; the environment may then reject
    the action.

    Args:
        logits: (B, actions).
        mask: (B, actions), True for each available action.

    Returns:
        The masked logits, (B, actions).
    """
    masked = torch.where(mask, logits, torch.finfo(logits.dtype).min)
    return torch.where(mask.any(-1, keepdim=True), masked, 0.0)
