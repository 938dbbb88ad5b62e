"""Encoders with a feature map: from cells to a vector."""

import numpy as np
import pytest
import torch
from grid_cases import codes, encoder_of, grid_space
from gymnasium import spaces
from torch import nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    GridEncoderConfig,
    ImageEncoderConfig,
)
from mirl.policies.encoders import build_encoder

close = torch.testing.assert_close


@pytest.mark.parametrize(
    ("height", "width"), [(3, 3), (3, 5), (4, 9), (5, 5), (7, 7), (7, 5), (25, 25)]
)
def test_vector_equals_convolutions_over_cells(height: int, width: int) -> None:
    """The vector is two convolutions and a linear layer over the image of the cells."""
    encoder = encoder_of(GridEncoderConfig(channels=6, features_dim=10), grid_space(height, width))
    cells = torch.randn(2, height * width, 6)
    image = torch.empty(2, 6, height, width)
    for row in range(height):
        for column in range(width):
            image[:, :, row, column] = cells[:, row * width + column]
    first, second = encoder.convolutions[0], encoder.convolutions[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    padding = 0 if min(height, width) >= 5 else 1
    hidden = torch.relu(nn.functional.conv2d(image, first.weight, first.bias, padding=padding))
    hidden = torch.relu(nn.functional.conv2d(hidden, second.weight, second.bias, padding=padding))
    expected = torch.relu(encoder.linear(hidden.permute(0, 2, 3, 1).flatten(1)))
    close(encoder.to_vector(cells, torch.zeros(2, 0)), expected)
    assert expected.shape == (2, encoder.out_dim)


def test_other_keys_join_last_layer() -> None:
    """The other keys are inputs of the last layer."""
    encoder = encoder_of(
        GridEncoderConfig(channels=6, features_dim=10),
        grid_space(3, 3),
        direction=spaces.Discrete(4),
    )
    cells, directions = encoder.to_cells(codes(1, 3, 3)).expand(4, -1, -1), torch.eye(4)
    seen = encoder.linear.weight[:, -4:]
    without = (
        encoder.convolutions(cells.transpose(1, 2).unflatten(2, (3, 3)))
        .permute(0, 2, 3, 1)
        .flatten(1)
    )
    expected = without @ encoder.linear.weight[:, :-4].T + directions @ seen.T + encoder.linear.bias
    close(encoder.to_vector(cells, directions), torch.relu(expected))


def test_every_cell_reaches_the_vector() -> None:
    """The vector has a gradient with respect to every cell."""
    for size in (3, 7):
        encoder = encoder_of(GridEncoderConfig(channels=6, features_dim=64), grid_space(size, size))
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.abs_()  # so that no ReLU has a zero gradient
        cells = torch.rand(1, size * size, 6, requires_grad=True)
        encoder.to_vector(cells, torch.zeros(1, 0)).sum().backward()
        assert cells.grad is not None
        assert cells.grad.abs().sum(-1).min() > 0


def test_grid_encoder_rejects_pixels() -> None:
    """The grid encoder rejects pixels, and the message says which encoder reads them."""
    with pytest.raises(ConfigError, match=r"codes or planes, got pixels.*use encoder=image"):
        encoder_of(GridEncoderConfig(), spaces.Box(0, 255, (7, 7, 3), np.uint8))


def test_image_encoders_need_an_image() -> None:
    """The encoders of images reject observations without an image."""
    space = spaces.Dict({"observation": spaces.Box(-1, 1, (3,))})
    for config in (GridEncoderConfig(), ImageEncoderConfig()):
        with pytest.raises(
            ConfigError,
            match=f"encoder={config.kind} needs an observation of rank 3.*use encoder=auto",
        ):
            build_encoder(config, space)


@pytest.mark.parametrize(
    ("space", "channels", "expected"),
    [
        (grid_space(5, 5), 32, (8, 8, 8)),
        (grid_space(5, 5), 24, ()),
        (spaces.Box(0, 1, (6, 6, 4), np.bool_), 64, ()),
    ],
    ids=["codes", "few_channels", "planes"],
)
def test_open_attributes_follow_the_space(
    space: spaces.Box, channels: int, expected: tuple[int, ...]
) -> None:
    """An encoder that is built without a resolution makes the same choice."""
    encoder = encoder_of(GridEncoderConfig(channels=channels, features_dim=8), space)
    assert encoder.attribute_dims == expected
