"""Layout of a space with cells."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.policies.encoders import code_sizes, image_layout, to_channels_last


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((7, 5), (7, 5, 1, False)),
        ((7, 5, 3), (7, 5, 3, False)),
        ((3, 7, 5), (7, 5, 3, True)),
        ((9, 5, 5), (5, 5, 9, True)),
        ((5, 5, 9), (5, 5, 9, False)),
        ((5, 5, 5), (5, 5, 5, False)),
    ],
)
def test_channels_are_the_odd_axis(shape: tuple[int, ...], layout: tuple[object, ...]) -> None:
    """Channels are the axis that differs from two equal ones, otherwise the smallest."""
    assert image_layout(spaces.Box(0, 1, shape, np.float32)) == layout


def test_channels_are_moved_last() -> None:
    """Images in every layout have the channels last afterwards."""
    image = torch.rand(2, 7, 5, 3)
    assert torch.equal(to_channels_last(image, False), image)
    assert torch.equal(to_channels_last(image.permute(0, 3, 1, 2), True), image)
    assert to_channels_last(image[..., 0], False).shape == (2, 7, 5, 1)


@pytest.mark.parametrize(
    ("space", "sizes"),
    [
        (spaces.MultiBinary([4, 4, 2]), np.array([2, 2])),
        (spaces.Box(0, 1, (4, 4, 2), np.bool_), np.array([2, 2])),
        (spaces.Box(0, 6, (4, 4, 2), np.int16), np.array([7, 7])),
        (spaces.Box(0, 6, (2, 4, 4), np.int16), np.array([7, 7])),
        (spaces.Box(0, 6, (4, 4), np.int16), np.array([7])),
        (spaces.Box(0, 1, (4, 4, 2), np.float32), None),
        (spaces.Box(-1, 6, (4, 4, 2), np.int16), None),
        (spaces.Box(0, 255, (40, 40, 3), np.uint8), None),
        (spaces.Box(0, 2**40, (4, 4, 2), np.int64), None),
    ],
    ids=str,
)
def test_sizes_of_codes(space: spaces.Space[object], sizes: NDArray[np.int64] | None) -> None:
    found = code_sizes(space)
    assert (found is None) == (sizes is None)
    if sizes is not None:
        assert found is not None
        assert found.tolist() == sizes.tolist()
