"""Layout of a space with cells: its axes, and the codes of a cell."""

from typing import cast

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor


def image_layout(space: spaces.Space[object]) -> tuple[int, int, int, bool]:
    """Return height, width and depth of a space with cells, and True if channels come first.

    Args:
        space: a space of shape (H, W), (H, W, C) or (C, H, W). The channel axis is the one that
            differs from two equal ones, otherwise the smallest; the last one if in doubt.
    """
    shape = space.shape or ()
    if len(shape) == 2:
        return shape[0], shape[1], 1, False
    first, middle, last = shape
    channels_first = first < min(middle, last)
    if middle == last and first != middle:
        channels_first = True
    if first == middle and first != last:
        channels_first = False
    if channels_first:
        return middle, last, first, True
    return first, middle, last, False


def to_channels_last(
    image: Float[Tensor, "batch ..."], channels_first: bool
) -> Float[Tensor, "batch height width channels"]:
    """Return a batch of images with the channels as the last axis.

    Args:
        image: (B, H, W), (B, H, W, C) or (B, C, H, W).
        channels_first: whether the channels are the first axis after the batch.
    """
    if image.ndim == 3:
        return image.unsqueeze(-1)  # (B, H, W) -> (B, H, W, 1)
    if channels_first:
        return image.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
    return image


def code_sizes(space: spaces.Space[object]) -> NDArray[np.int64] | None:
    """Return the number of values of each code of a cell, or None if the cells hold no codes.

    Args:
        space: a space of shape (H, W), (H, W, C) or (C, H, W).

    Returns:
        The sizes, (C,); 2 for the planes of a MultiBinary or of a Box of booleans.
    """
    _, _, depth, channels_first = image_layout(space)
    if isinstance(space, spaces.MultiBinary):
        return np.full(depth, 2)
    if not isinstance(space, spaces.Box) or is_image_space(space):
        return None
    if space.dtype == np.bool_:
        return np.full(depth, 2)
    if space.dtype.kind not in "iu" or space.low.min() < 0:
        return None
    high = space.high.astype(np.float64)  # the largest int64 plus one would overflow
    if len(space.shape) == 2:
        high = high[..., np.newaxis]
    axes = (1, 2) if channels_first else (0, 1)
    sizes = high.max(axes) + 1
    if sizes.sum() > MAX_CODES:
        return None
    return cast(NDArray[np.int64], sizes.astype(np.int64))


PLANE_VALUES = 2
"""Number of values of a plane."""

MAX_CODES = 2**16
"""Largest total number of values of a cell's codes; above it they are treated as numbers."""
