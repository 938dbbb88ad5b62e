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
            f"'{ACTION_MASK_KEY}' masks Discrete actions, got {action_space}; leave the key out"
        )
    if not isinstance(mask, spaces.MultiBinary) or mask.shape != (action_space.n,):
        raise ConfigError(
            f"expected MultiBinary({action_space.n}) under '{ACTION_MASK_KEY}', got {mask}"
        )
    return True


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
