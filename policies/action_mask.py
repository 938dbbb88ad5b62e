"""Action masks: an observation may say which of the discrete actions exist in it, and the policy takes no other."""

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY


def has_action_mask(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> bool:
    """Whether the observations hold an action mask.

    :raises ConfigError: when they hold one that does not fit the actions.
    """
    if (
        not isinstance(observation_space, spaces.Dict)
        or ACTION_MASK_KEY not in observation_space.spaces
    ):
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
    """The logits with the lowest finite number for each action that the mask leaves out; its probability is exactly 0.

    It is finite so that neither the entropy nor a gradient meets ∞ · 0. Where a mask leaves out every action, all are
    equally probable and nothing is learned: sampling needs some distribution, and the environment may object.
    """
    masked = torch.where(mask, logits, torch.finfo(logits.dtype).min)
    return torch.where(mask.any(-1, keepdim=True), masked, 0.0)
