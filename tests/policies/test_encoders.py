"""Observation encoders: cells and vectors."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from batches import batch_of
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedEncoderConfig,
    EncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.encoders import CellsEncoder, GridCells, ImageCells, build_encoder

close = torch.testing.assert_close
CODES = (10, 5, 3)
"""Largest codes of MiniGrid's objects, colors and states."""


def grid_space(height: int, width: int) -> spaces.Box:
    high = np.broadcast_to(np.array(CODES, np.uint8), (height, width, 3))
    return spaces.Box(np.zeros_like(high), high.copy(), (height, width, 3), np.uint8)


def codes(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    channels = [
        torch.randint(0, high + 1, (batch, height, width), generator=generator) for high in CODES
    ]
    return torch.stack(channels, dim=-1).float()


def encoder_of(
    config: EncoderConfig, image: spaces.Box, **others: spaces.Space[object]
) -> CellsEncoder:
    encoder = build_encoder(config, spaces.Dict({"image": image, **others}))
    assert isinstance(encoder, CellsEncoder)
    return encoder


# --------------------------------------------------------------------------------------------- grid


def test_cell_is_relu_of_summed_embeddings() -> None:
    """A cell is the ReLU of the sum of one embedding per channel."""
    cells = GridCells(grid_space(3, 5), channels=8)
    weights = cells.embedding.weight.T.split([high + 1 for high in CODES])
    tables = [nn.Embedding.from_pretrained(weight) for weight in weights]
    image = codes(4, 3, 5)
    total = (
        sum(table(image[..., channel].long()) for channel, table in enumerate(tables))
        + cells.embedding.bias
    )
    close(cells(image), torch.relu(total).reshape(4, 15, 8))


def test_largest_codes_have_an_embedding() -> None:
    """The largest code of every channel has an embedding."""
    cells = GridCells(grid_space(3, 3), channels=8)
    highest = torch.tensor(CODES, dtype=torch.float32).expand(1, 3, 3, 3)
    offsets = np.cumsum([high + 1 for high in CODES]) - 1
    expected = torch.relu(cells.embedding.weight[:, offsets].sum(1) + cells.embedding.bias)
    close(cells(highest), expected.expand(1, 9, 8))


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


def test_image_encoder_rejects_codes() -> None:
    """The image encoder rejects codes, and the message says which encoder reads them."""
    with pytest.raises(ConfigError, match=r"pixels, got codes or planes.*use encoder=grid"):
        encoder_of(ImageEncoderConfig(), grid_space(7, 7))


def test_real_planes_are_read_linearly() -> None:
    """Planes of real numbers, which the grid encoder once rejected, go through a linear layer."""
    cells = GridCells(spaces.Box(0, 1, (7, 5, 3), np.float32), channels=8)
    planes = torch.rand(2, 7, 5, 3)
    close(cells(planes), torch.relu(cells.embedding(planes)).flatten(1, 2))


# -------------------------------------------------------------------------------------------- image


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


# ------------------------------------------------------------------------------------------- vector


@pytest.mark.parametrize("hidden", [(), (7,), (7, 9)])
def test_vector_encoder_is_an_mlp(hidden: tuple[int, ...]) -> None:
    """The vector encoder is an MLP with a ReLU after every layer."""
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2, 3)), "b": spaces.Discrete(4)})
    encoder = build_encoder(VectorEncoderConfig(hidden=hidden, features_dim=5), space)
    seen = torch.randn(3, 10)
    expected = seen
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            expected = torch.relu(layer(expected))
    close(encoder({"a": seen[:, :6].reshape(3, 2, 3), "b": seen[:, 6:]}), expected)
    assert sum(isinstance(layer, nn.Linear) for layer in encoder.modules()) == len(hidden) + 1
    assert expected.shape == (3, encoder.out_dim)


def test_image_encoders_need_an_image() -> None:
    """The encoders of images reject observations without an image."""
    space = spaces.Dict({"observation": spaces.Box(-1, 1, (3,))})
    for config in (GridEncoderConfig(), ImageEncoderConfig()):
        with pytest.raises(
            ConfigError,
            match=f"encoder={config.kind} needs an observation of rank 3.*use encoder=auto",
        ):
            build_encoder(config, space)


# ---------------------------------------------------------------------------------- kinds of inputs


@st.composite
def cell_spaces(draw: st.DrawFn) -> spaces.Space[Any]:
    """Draw a space of codes or planes, with channels first or last or without channels."""
    depth = draw(st.integers(1, 4))
    height, width = draw(st.integers(5, 8)), draw(st.integers(5, 8))
    shapes = [(height, width, depth), (depth, height, width), (height, width)]
    shape = draw(st.sampled_from(shapes))
    match draw(st.sampled_from(["codes", "bool", "multi_binary"])):
        case "codes":
            dtype = draw(st.sampled_from([np.uint8, np.int16, np.int64]))
            return spaces.Box(0, draw(st.integers(1, 6)), shape, dtype)
        case "bool":
            return spaces.Box(0, 1, shape, np.bool_)
        case _:
            return spaces.MultiBinary(list(shape))


@given(cell_spaces())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_direct_path_equals_the_table(space: spaces.Space[Any]) -> None:
    """Without a table of cell types, the embeddings of each cell are summed up to the same."""
    torch.manual_seed(0)
    table = GridCells(space, channels=4)
    with patch.object(GridCells, "MAX_CELL_TYPES", 1):
        direct = GridCells(space, channels=4)
    direct.load_state_dict(table.state_dict())
    assert table.has_types
    assert not direct.has_types
    space.seed(0)
    image = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    close(direct(image.float()), table(image.float()), rtol=1e-5, atol=1e-6)


def test_combined_encoder_equals_its_parts() -> None:
    """The vector is relu(V [v₁, v₂, …] + b) over the vectors of each key's encoder."""
    space = spaces.Dict(
        {
            "left.camera": spaces.Box(0, 255, (24, 24, 3), np.uint8),
            "grid": grid_space(5, 5),
            "note": spaces.Box(0, 9, (4,), np.int16),
            "speed": spaces.Box(-1, 1, (2,), np.float32),
        }
    )
    config = CombinedEncoderConfig(
        parts={
            "left.camera": ImageEncoderConfig(channels=6, features_dim=5),
            "grid": GridEncoderConfig(channels=6, features_dim=7),
            "note": TextEncoderConfig(words="bag", features_dim=8),
            "speed": VectorEncoderConfig(hidden=(), features_dim=3),
        },
        features_dim=9,
    )
    encoder = build_encoder(config, space)
    assert encoder.channels == 6
    batch = batch_of(space, 3)
    vectors = []
    for key, part in zip(encoder.keys, encoder.get_submodule("parts"), strict=True):  # type: ignore[arg-type]
        vectors.append(part({key: batch[key]}))
    expected = torch.relu(encoder.get_submodule("join")(torch.cat(vectors, dim=1)))
    close(encoder(batch), expected)
    assert expected.shape == (3, encoder.out_dim)


@pytest.mark.parametrize("kind", ["vector", "grid"])
def test_numbers_keep_digits_under_autocast(kind: str) -> None:
    """Numbers in real units are told apart in bfloat16 as in float32: 512 and 513."""
    torch.manual_seed(0)
    parts: dict[str, spaces.Space[Any]] = {"speed": spaces.Box(0, 1000, (2,), np.float32)}
    config: EncoderConfig = VectorEncoderConfig(hidden=(), features_dim=16)
    if kind == "grid":
        parts["image"] = grid_space(5, 5)
        config = GridEncoderConfig(channels=4, features_dim=16)
    space = spaces.Dict(parts)
    encoder = build_encoder(config, space)
    batch = {
        key: value[:1].expand(2, *value.shape[1:]) for key, value in batch_of(space, 1).items()
    }
    batch["speed"] = torch.tensor([[512.0, 513.0], [513.0, 512.0]])
    plain = encoder(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(batch)
    # of a product in bfloat16, 512 and 513 would be the same number
    close((half[0] - half[1]).float(), plain[0] - plain[1], rtol=1e-2, atol=1e-2)
    assert (plain[0] - plain[1]).abs().max() > 0.1
