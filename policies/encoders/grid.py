"""Cells of codes or planes."""

import math

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
from mirl.policies.encoders.cell_table import CellTable, gather_rows
from mirl.policies.encoders.encoder import in_float32
from mirl.policies.encoders.space_kinds import space_text

DEFAULT_ATTRIBUTES = 8
"""Default number of channels per code for the embedding of only that code, if they fit."""


def default_attributes(space: spaces.Space[object], channels: int) -> int:
    """Return the default of ``encoder.attributes``, a number of channels per code.

    Args:
        space: the space of the cells.
        channels: C, the features of each cell.

    Returns:
        ``DEFAULT_ATTRIBUTES``; 0 if the cells are not codes, or if no channels would be left.
    """
    n_values = code_sizes(space)
    if n_values is None or _are_planes(n_values):
        return 0
    if DEFAULT_ATTRIBUTES * len(n_values) >= channels:
        return 0
    return DEFAULT_ATTRIBUTES


class GridCells(nn.Module):
    """Cells of codes or planes: relu of the sum of one embedding per channel of the space.

    There are few cell types, 264 in MiniGrid. Everything that depends only on a cell is computed
    once per type and gathered for the cells. If there are too many types for a table, the
    embeddings of each cell are summed up. A plane has one embedding, that of 1, so that empty cells
    are zeros; planes of real numbers are weighted by their values.

    With ``attributes``, the first channels are split among the codes and hold the embedding of one
    code each: [e_1, …, e_F, relu(sum)].

    Args:
        space: codes, planes or real numbers of shape (H, W, C), (C, H, W) or (H, W).
        channels: C, the features of each cell.
        additive: whether to leave out the ReLU.
        attributes: channels per code that hold the embedding of only that code; 0 for none.

    Raises:
        ConfigError: if the space is one of pixels, or if it has no codes for ``attributes`` or too
            many for the channels.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from gymnasium.spaces import Box
        >>> from mirl.policies.encoders import GridCells
        >>> codes = Box(0, np.full((7, 7, 3), [10, 5, 2]), dtype=np.uint8)  # object, color, state
        >>> cells = GridCells(codes, channels=32, attributes=8)
        >>> cells.attribute_dims, cells(torch.zeros(5, 7, 7, 3)).shape
        ((8, 8, 8), torch.Size([5, 49, 32]))
    """

    MAX_CELL_TYPES = 4096

    def __init__(
        self,
        space: spaces.Space[object],
        channels: int,
        *,
        additive: bool = False,
        attributes: int = 0,
    ) -> None:
        super().__init__()
        if is_image_space(space):
            raise ConfigError(
                f"encoder=grid needs codes or planes, got pixels, {space_text(space)}; "
                "use encoder=image"
            )
        self.height, self.width, depth, self.channels_first = image_layout(space)
        self.channels = channels
        self.additive = additive
        self.cell_types_one_hot: Tensor
        self.strides: Tensor
        self.first_rows: Tensor
        n_values = code_sizes(space)
        self.has_codes = n_values is not None and not _are_planes(n_values)
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
        self.attribute_dims: tuple[int, ...] = ()
        """Number of channels of the embedding of each code, which come first; empty for none."""
        if attributes:
            self.attribute_dims = (attributes,) * depth
            self._check_attributes(space)
        # plain parameters, which SB3's initialization leaves unchanged
        self.attribute_embeddings = nn.ParameterList()
        if n_values is not None:
            for size, _ in zip(n_values.tolist(), self.attribute_dims, strict=False):
                self.attribute_embeddings.append(_embeddings(size, attributes))
        self.embedding = nn.Linear(in_dim, channels - sum(self.attribute_dims))

    def _check_attributes(self, space: spaces.Space[object]) -> None:
        """Raise if the channels of the attributes do not fit the space or the other channels."""
        needed = sum(self.attribute_dims)
        if not self.has_codes:
            raise ConfigError(
                f"encoder.attributes needs cells of codes, got planes, {space_text(space)}; "
                "remove encoder.attributes"
            )
        if needed >= self.channels:
            raise ConfigError(
                f"encoder.attributes={self.attribute_dims[0]} for {len(self.attribute_dims)} codes "
                f"takes {needed} channels and leaves none of {self.channels}; use at least "
                f"encoder.channels={needed + 1}"
            )

    def _join(
        self, attributes: list[Tensor], summed: Float[Tensor, "*batch shared"]
    ) -> Float[Tensor, "*batch channels"]:
        """Return the cells, given the embeddings of the attributes and the sum over the codes."""
        shared = summed
        if not self.additive:
            shared = F.relu(summed)
        if not attributes:
            return shared
        # autocast keeps gathered rows in float32 and gives the product of a layer in bfloat16
        return torch.cat([*(each.to(shared.dtype) for each in attributes), shared], dim=-1)

    def cell_types(self) -> Float[Tensor, "kinds channels"]:
        """Return the embedding of every cell type, (types, C); only if ``has_types``."""
        attributes: list[Tensor] = []
        if self.attribute_embeddings:
            sizes = [len(table) for table in self.attribute_embeddings]
            one_hot = self.cell_types_one_hot.split(sizes, dim=1)
            for code, table in zip(one_hot, self.attribute_embeddings, strict=True):
                attributes.append(code @ table)
        return self._join(attributes, self.embedding(self.cell_types_one_hot))

    def to_table(self, image: Float[Tensor, "batch ..."]) -> CellTable:
        """Return the cells as rows of a table of cell types; only if ``has_types``.

        Args:
            image: in the layout of the space.
        """
        return CellTable(self.cell_types(), self.cell_type_ids(image)).without_unused()

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
            return self.to_table(image).gather()
        # (B, H, W, C) -> (B, P, C)
        values = to_channels_last(image, self.channels_first).flatten(1, 2)
        if not self.has_codes:
            return self._join([], in_float32(self.embedding, values.float()))
        codes = values.long()
        attributes: list[Tensor] = []
        for index, table in enumerate(self.attribute_embeddings):
            attributes.append(gather_rows(table, codes[..., index]))
        # (B, P, codes) -> (B, P, codes, C) -> (B, P, C)
        rows = codes + self.first_rows
        embedded = gather_rows(self.embedding.weight.t(), rows.flatten(1))
        summed = embedded.unflatten(1, rows.shape[1:]).sum(2)
        return self._join(attributes, summed + self.embedding.bias)


def _are_planes(n_values: NDArray[np.int64]) -> bool:
    """Return True if every channel is a plane of zeros and ones, given its number of values."""
    return bool((n_values == PLANE_VALUES).all())


def _embeddings(size: int, dim: int) -> nn.Parameter:
    """Return one vector per value of a code, of equal lengths, orthogonal if there is room."""
    table = torch.empty(size, dim)
    # SB3 gives the layers of an encoder the same gain
    nn.init.orthogonal_(table, math.sqrt(2))
    if size > dim:
        # orthogonal columns instead, and rows that are shorter
        table *= math.sqrt(size / dim)
    return nn.Parameter(table)


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
