"""Cells of codes or planes."""

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.policies.encoders.cell_layouts import (
    PLANE_VALUES,
    code_sizes,
    image_layout,
    to_channels_last,
)
from mirl.policies.encoders.encoder import in_float32
from mirl.policies.encoders.space_kinds import space_text


class GridCells(nn.Module):
    """Cells of codes or planes: relu of the sum of one embedding per channel.

    There are few cell types, 264 in MiniGrid. Everything that depends on a cell alone is computed
    once per type, and the cells gather it. Where there are too many types for a table, the
    embeddings of each cell are summed up. A plane has one embedding, that of 1, so that empty cells
    are zeros; planes of real numbers are weighted by their values.

    Args:
        space: codes, planes or real numbers of shape (H, W, C), (C, H, W) or (H, W).
        channels: C, the features of each cell.

    Raises:
        ConfigError: if the space is one of pixels.
    """

    MAX_CELL_TYPES = 4096

    def __init__(self, space: spaces.Space[object], channels: int) -> None:
        super().__init__()
        if is_image_space(space):
            raise ConfigError(
                f"encoder=grid needs codes or planes, got pixels, {space_text(space)}; "
                "use encoder=image"
            )
        self.height, self.width, depth, self.channels_first = image_layout(space)
        self.channels = channels
        self.cell_types_one_hot: Tensor
        self.strides: Tensor
        self.first_rows: Tensor
        n_values = code_sizes(space)
        are_planes = n_values is None or bool((n_values == PLANE_VALUES).all())
        self.has_codes = not are_planes
        self.has_types = False
        if n_values is not None:
            # the product is in float64, because that of many codes could overflow int64
            self.has_types = bool(n_values.prod(dtype=np.float64) <= self.MAX_CELL_TYPES)
        in_dim = depth
        if n_values is not None and self.has_codes:
            in_dim = int(n_values.sum())
        # the buffers follow from the space, so checkpoints need not hold them
        if n_values is not None and self.has_types:
            cell_types = _cell_types(n_values)
            if self.has_codes:
                cell_types = _one_hot(cell_types, n_values)
            one_hot = torch.from_numpy(cell_types).float()
            self.register_buffer("cell_types_one_hot", one_hot, persistent=False)
            # the last code varies fastest: stride of a code = number of types of the codes after it
            strides = np.append(np.cumprod(n_values[:0:-1])[::-1], 1)
            # floats, because CUDA has no matrix products of integers
            float_strides = torch.from_numpy(strides).float()
            self.register_buffer("strides", float_strides, persistent=False)
        elif n_values is not None:
            # row of the first value of each code in the embedding
            first_rows = torch.from_numpy(np.cumsum(n_values) - n_values)
            self.register_buffer("first_rows", first_rows, persistent=False)
        self.embedding = nn.Linear(in_dim, channels)

    def cell_types(self) -> Float[Tensor, "kinds channels"]:
        """Return the embedding of every cell type, (types, C); only if ``has_types``."""
        return F.relu(self.embedding(self.cell_types_one_hot))

    def cell_type_ids(self, image: Float[Tensor, "batch ..."]) -> Int[Tensor, "batch cells"]:
        """Return the type of each cell; only if ``has_types``.

        Args:
            image: codes, (B, H, W, codes) or in the layout of the space.

        Returns:
            Indices into ``cell_types``, (B, P).
        """
        codes = to_channels_last(image, self.channels_first)
        # bfloat16 cannot represent all integers above 256; float32 is exact up to 2²⁴
        with torch.autocast(image.device.type, enabled=False):
            # (B, H, W, codes) -> (B, P, codes) -> (B, P)
            return (codes.flatten(1, 2).float() @ self.strides).long()

    def forward(self, image: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch cells channels"]:
        """Return the embedding of each cell, (B, P, C).

        Args:
            image: in the layout of the space.
        """
        if self.has_types:
            return gather_rows(self.cell_types(), self.cell_type_ids(image))
        # (B, H, W, C) -> (B, P, C)
        values = to_channels_last(image, self.channels_first).flatten(1, 2)
        if not self.has_codes:
            return F.relu(in_float32(self.embedding, values.float()))
        # (B, P, codes) -> (B, P, codes, C) -> (B, P, C)
        rows = values.long() + self.first_rows
        embedded = gather_rows(self.embedding.weight.t(), rows.flatten(1))
        summed = embedded.unflatten(1, rows.shape[1:]).sum(2)
        return F.relu(summed + self.embedding.bias)


def _cell_types(n_values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the codes of every cell type, (types, codes), the last code varying fastest."""
    # (codes, types) -> (types, codes)
    return np.indices(n_values.tolist()).reshape(len(n_values), -1).T


def _one_hot(cell_types: NDArray[np.int64], n_values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one-hot codes of every cell type, (types, sum of ``n_values``)."""
    one_hot = []
    for size, code in zip(n_values, cell_types.T, strict=True):
        one_hot.append(np.eye(size, dtype=np.int64)[code])
    return np.concatenate(one_hot, axis=1)


def gather_rows(
    table: Float[Tensor, "kinds channels"], index: Int[Tensor, "batch cells"]
) -> Float[Tensor, "batch cells channels"]:
    """Gather rows of a table, in float32 at least.

    Args:
        table: (types, C).
        index: (B, P), indices of rows.

    Returns:
        The rows, (B, P, C).
    """
    if table.dtype == torch.bfloat16:
        table = table.float()  # the gradient of index_select is a long sum
    # (types, C) -> (B * P, C) -> (B, P, C)
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)
