"""Cells of codes or planes."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from grid_cases import CODES, codes, grid_space
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from mirl.configs.errors import ConfigError
from mirl.policies.encoders import GridCells

close = torch.testing.assert_close


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


def test_real_planes_are_read_linearly() -> None:
    """Planes of real numbers, which the grid encoder once rejected, go through a linear layer."""
    cells = GridCells(spaces.Box(0, 1, (7, 5, 3), np.float32), channels=8)
    planes = torch.rand(2, 7, 5, 3)
    close(cells(planes), torch.relu(cells.embedding(planes)).flatten(1, 2))


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


@pytest.mark.parametrize("has_table", [True, False])
def test_additive_cell_is_sum_of_embeddings(has_table: bool) -> None:
    """Without the ReLU a cell is the sum of one embedding per code, negative where it is."""
    with patch.object(GridCells, "MAX_CELL_TYPES", 4096 if has_table else 1):
        cells = GridCells(grid_space(3, 5), channels=8, additive=True)
    assert cells.has_types == has_table
    tables = cells.embedding.weight.T.split([high + 1 for high in CODES])
    image = codes(4, 3, 5)
    total = cells.embedding.bias.expand(4, 3, 5, 8)
    for channel, table in enumerate(tables):
        total = total + table[image[..., channel].long()]
    assert total.min() < 0
    close(cells(image), total.reshape(4, 15, 8))


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("has_table", [True, False])
def test_attributes_are_embeddings_of_one_code(has_table: bool, additive: bool) -> None:
    """The first channels hold the embedding of each code, the others the sum over the codes."""
    with patch.object(GridCells, "MAX_CELL_TYPES", 4096 if has_table else 1):
        cells = GridCells(grid_space(3, 5), channels=14, additive=additive, attributes=4)
    assert cells.attribute_dims == (4, 4, 4)
    shared = GridCells(grid_space(3, 5), channels=2, additive=additive)
    shared.embedding.load_state_dict(cells.embedding.state_dict())
    image = codes(4, 3, 5)
    expected = []
    for channel, table in enumerate(cells.attribute_embeddings):
        expected.append(table[image[..., channel].long()].reshape(4, 15, 4))
    close(cells(image), torch.cat([*expected, shared(image)], dim=-1))


def test_attribute_embeddings_have_one_length() -> None:
    """Embeddings of a code start with equal lengths, and orthogonal where there is room."""
    cells = GridCells(grid_space(3, 3), channels=20, attributes=6)
    objects, colors, states = cells.attribute_embeddings
    for table in (colors, states):
        close(table @ table.T, 2 * torch.eye(len(table)), rtol=1e-5, atol=1e-5)
    # eleven objects in six channels
    close(objects.square().sum(1).mean(), torch.tensor(2.0))
    before = objects.detach().clone()
    cells.apply(ActorCriticPolicy.init_weights)
    close(objects, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("space", "attributes", "message"),
    [
        (grid_space(3, 3), 8, r"takes 24 channels.*at least encoder\.channels=25"),
        (spaces.MultiBinary([3, 3, 4]), 2, r"got planes.*remove encoder\.attributes"),
        (spaces.Box(0, 1, (7, 5, 3), np.float32), 2, r"got planes.*remove encoder\.attributes"),
    ],
    ids=["channels", "planes", "numbers"],
)
def test_attributes_need_codes_and_room(
    space: spaces.Space[Any], attributes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        GridCells(space, channels=24, attributes=attributes)


@given(cell_spaces())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_direct_path_equals_table_of_attributes(space: spaces.Space[Any]) -> None:
    torch.manual_seed(0)
    try:
        table = GridCells(space, channels=14, attributes=3)
    except ConfigError:
        assert not GridCells(space, channels=14).has_codes
        return
    with patch.object(GridCells, "MAX_CELL_TYPES", 1):
        direct = GridCells(space, channels=14, attributes=3)
    direct.load_state_dict(table.state_dict())
    space.seed(0)
    image = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    close(direct(image.float()), table(image.float()), rtol=1e-5, atol=1e-6)
