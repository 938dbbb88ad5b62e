"""Kinds of subspaces: texts, pixels, cells and numbers, by shape, dtype and bounds."""

from typing import Literal

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from mirl.policies.encoders.cell_layouts import code_sizes, image_layout

Kind = Literal["text", "image", "grid", "vector"]
"""Kind of a subspace: token ids, pixels, cells of codes or planes, or numbers."""

MIN_IMAGE_SIZE = 32
"""Smallest height and width at which real numbers of rank 3 count as pixels."""

MAX_IMAGE_CHANNELS = 4
"""Largest number of channels at which real numbers of rank 3 count as pixels."""

MIN_GRAY_SIZE = 16
"""Smallest height and width at which bytes of rank 2 count as a grayscale image."""

MAX_BYTE = 255
"""Largest value of a byte."""

MIN_GRID_SIZE = 3
"""Smallest height and width at which small integers of rank 2 count as cells."""


def kind_of(space: spaces.Space[object]) -> Kind:
    """Return the kind of a subspace by its shape, dtype and bounds.

    Args:
        space: the space of one key.

    Returns:
        "text" for token ids, which are int16; "image" for pixels; "grid" for cells of codes or
        planes; "vector" for everything else.
    """
    shape = space.shape or ()
    if is_text(space):
        return "text"
    if len(shape) not in (2, 3) or 0 in shape:
        return "vector"
    if is_image_space(space):
        return "image"
    height, width, depth, _ = image_layout(space)
    size = min(height, width)
    if len(shape) == 3:
        is_real = code_sizes(space) is None
        if is_real and size >= MIN_IMAGE_SIZE and depth <= MAX_IMAGE_CHANNELS:
            return "image"
        return "grid"
    if not isinstance(space, spaces.Box):
        return "vector"
    # a matrix is an image or a grid only if its values are bytes or small codes
    is_bytes = space.dtype == np.uint8 and bool((space.high == MAX_BYTE).all())
    if is_bytes and size >= MIN_GRAY_SIZE:
        return "image"
    if not is_bytes and size >= MIN_GRID_SIZE and code_sizes(space) is not None:
        return "grid"
    return "vector"


def is_text(space: spaces.Space[object]) -> bool:
    """Return True if a space holds the token ids of a text: int16, of rank 1, from 0.

    Args:
        space: the space of one key.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.int16:
        return False
    return len(space.shape) == 1 and bool((space.low == 0).all())


def reads_pixels(space: spaces.Space[object]) -> bool:
    """Return True if the values of a space of cells can be read as pixels, and not only as codes.

    Args:
        space: a space of shape (H, W), (H, W, C) or (C, H, W).
    """
    # bytes of rank 2 can be both
    return code_sizes(space) is None or kind_of(space) == "image"


def space_text(space: spaces.Space[object]) -> str:
    """Return a short description of a space for an error message, in one line.

    The ``repr`` of a Box whose bounds differ prints whole arrays.

    Args:
        space: any space.
    """
    if not isinstance(space, spaces.Box) or not space.low.size:
        return " ".join(str(space).split())
    low = float(space.low.min())
    high = float(space.high.max())
    return f"Box({low:g}, {high:g}, {space.shape}, {space.dtype})"
