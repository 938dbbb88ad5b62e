"""Deterministic actions from the parameters of action distributions, as modules to export.

Shapes: B rows of a batch, A parameters of the action distribution.
"""

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn


class ToActions(nn.Module):
    """Deterministic actions from the parameters of the action distribution.

    Args:
        space: the action space.
        squash: whether the mean of a Box is squashed by tanh and scaled to the bounds, instead of
            clipped to them.
    """

    low: Tensor
    """Lower bounds of a Box."""
    high: Tensor
    """Upper bounds of a Box."""

    def __init__(self, space: spaces.Space[Any], *, squash: bool = False) -> None:
        super().__init__()
        self.space = space
        self.squash = squash
        if isinstance(space, spaces.Box):
            dtype = space.dtype if space.dtype.kind == "f" else np.dtype(np.float32)
            for name, bound in (("low", space.low), ("high", space.high)):
                self.register_buffer(name, torch.from_numpy(bound.astype(dtype)))

    def forward(self, parameters: Float[Tensor, "batch parameters"]) -> Tensor:
        """Return the most probable actions, (B, *action).

        Args:
            parameters: logits, or the mean of a Box, (B, A).
        """
        match self.space:
            case spaces.Discrete():
                return parameters.argmax(-1)
            case spaces.MultiDiscrete():
                parts = parameters.split(self.space.nvec.tolist(), dim=1)
                return torch.stack([part.argmax(-1) for part in parts], dim=1)
            case spaces.MultiBinary():
                return (parameters > 0).long()
            case _:
                # (B, A) -> (B, *action)
                mean = parameters.unflatten(1, cast(tuple[int, ...], self.space.shape))
                return self._bounded(mean.to(self.low.dtype))

    def _bounded(self, mean: Tensor) -> Tensor:
        if self.squash:
            return self.unscale(mean.tanh())
        return mean.clamp(self.low, self.high)

    def unscale(self, actions: Tensor) -> Tensor:
        """Scale actions in [-1, 1] to the bounds of the space.

        Args:
            actions: (B, *action).
        """
        return self.low + 0.5 * (actions + 1) * (self.high - self.low)


def parameters_name(action_space: spaces.Space[Any]) -> str:
    """Return the name of the parameters of an action space's distribution.

    Args:
        action_space: the action space.

    Returns:
        "action_mean" for continuous actions, else "action_logits".
    """
    return "action_mean" if isinstance(action_space, spaces.Box) else "action_logits"
