"""Cells of pixels."""

import numpy as np
import pytest
import torch
from grid_cases import encoder_of, grid_space
from gymnasium import spaces

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    ImageEncoderConfig,
)
from mirl.policies.encoders import ImageCells

close = torch.testing.assert_close


def test_image_encoder_rejects_codes() -> None:
    """The image encoder rejects codes, and the message says which encoder reads them."""
    with pytest.raises(ConfigError, match=r"pixels, got codes or planes.*use encoder=grid"):
        encoder_of(ImageEncoderConfig(), grid_space(7, 7))


def test_channels_first_or_last() -> None:
    """Images with channels first and with channels last give the same cells."""
    first = ImageCells(spaces.Box(0, 255, (3, 24, 40), np.uint8), channels=6)
    last = ImageCells(spaces.Box(0, 255, (24, 40, 3), np.uint8), channels=6)
    last.load_state_dict(first.state_dict())
    pixels = torch.rand(2, 3, 24, 40)
    close(last(pixels.permute(0, 2, 3, 1)), first(pixels))
    assert (first.height, first.width) == (last.height, last.width) == (3, 5)


@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (9, 17), (40, 33), (56, 56), (84, 84), (96, 160)]
)
def test_image_cells_follow_the_layout(height: int, width: int) -> None:
    """The cells of an image are the positions of the convolved image, row by row."""
    cells = ImageCells(spaces.Box(0, 255, (3, height, width), np.uint8), channels=4)
    pixels = torch.rand(2, 3, height, width)
    image = cells.convolutions(pixels)
    assert image.shape == (2, 4, cells.height, cells.width)
    result = cells(pixels)
    for row in range(cells.height):
        for column in range(cells.width):
            close(result[:, row * cells.width + column], image[:, :, row, column])


@pytest.mark.parametrize("size", [8, 24, 40, 84])
def test_images_of_any_size(size: int) -> None:
    """Images of different sizes are encoded to a vector."""
    encoder = encoder_of(
        ImageEncoderConfig(channels=4, features_dim=10),
        spaces.Box(0, 255, (size, size, 3), np.uint8),
    )
    vector = encoder.to_vector(encoder.to_cells(torch.rand(2, size, size, 3)), torch.zeros(2, 0))
    assert vector.shape == (2, 10)
