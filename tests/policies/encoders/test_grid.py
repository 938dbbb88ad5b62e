"""Cells of codes or planes."""

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from grid_cases import CODES, codes, grid_space
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

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
