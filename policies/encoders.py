"""Observation encoders.

Those of images have two stages, first cells and then a vector, so that a fusion fits in between.

Shapes in this file: B rows, H height, W width, C channels, P = H * W cells.
"""

from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    BaseEncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.routing import Routing
from mirl.policies.running_norm import RunningNorm


class GridCells(nn.Module):
    """Cells of MiniGrid's symbolic view: relu of the sum of one embedding per channel.

    There are few cell types, 264 in MiniGrid. Everything that depends on a cell alone is computed
    once per type, and the cells gather it.

    Args:
        space: a Box (H, W, codes) of small integers.
        channels: C, the features of each cell.

    Raises:
        ConfigError: if the codes have too many combinations, or if the space is not one of codes.
    """

    MAX_CELL_TYPES = 4096

    def __init__(self, space: spaces.Box, channels: int) -> None:
        super().__init__()
        # number of values of each code
        n_values = space.high.reshape(-1, space.shape[-1]).max(0).astype(np.int64) + 1
        has_codes = space.dtype.kind in "iu" and space.low.min() >= 0
        # the product is in float64, because that of many codes could overflow int64
        if not has_codes or n_values.prod(dtype=np.float64) > self.MAX_CELL_TYPES:
            raise ConfigError(
                "encoder=grid needs small integer codes such as MiniGrid's symbolic view, at most "
                f"{self.MAX_CELL_TYPES} combinations of them, got {space}; "
                "use encoder=image for pixels"
            )
        self.height, self.width = space.shape[:2]
        self.channels = channels
        self.cell_types_one_hot: Tensor
        self.strides: Tensor
        one_hot = torch.from_numpy(_one_hot_cell_types(n_values)).float()
        # the buffers follow from the space, so checkpoints need not hold them
        self.register_buffer("cell_types_one_hot", one_hot, persistent=False)
        # the last code varies fastest: stride of a code = number of types of the codes after it
        strides = np.append(np.cumprod(n_values[:0:-1])[::-1], 1)
        # floats, because CUDA has no matrix products of integers
        float_strides = torch.from_numpy(strides).float()
        self.register_buffer("strides", float_strides, persistent=False)
        self.embedding = nn.Linear(int(n_values.sum()), channels)

    def cell_types(self) -> Float[Tensor, "kinds channels"]:
        """Return the embedding of every cell type, (types, C)."""
        return F.relu(self.embedding(self.cell_types_one_hot))

    def cell_type_ids(
        self, image: Float[Tensor, "batch height width codes"]
    ) -> Int[Tensor, "batch cells"]:
        """Return the type of each cell.

        Args:
            image: codes, (B, H, W, codes).

        Returns:
            Indices into ``cell_types``, (B, P).
        """
        # bfloat16 cannot represent all integers above 256; float32 is exact up to 2²⁴
        with torch.autocast(image.device.type, enabled=False):
            # (B, H, W, codes) -> (B, P, codes) -> (B, P)
            return (image.flatten(1, 2).float() @ self.strides).long()

    def forward(
        self, image: Float[Tensor, "batch height width codes"]
    ) -> Float[Tensor, "batch cells channels"]:
        """Return the embedding of each cell, (B, P, C)."""
        return gather_rows(self.cell_types(), self.cell_type_ids(image))


def _one_hot_cell_types(n_values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one-hot codes of every cell type, (types, sum of ``n_values``)."""
    # (codes, types) -> (types, codes), the last code varying fastest
    cell_types = np.indices(n_values.tolist()).reshape(len(n_values), -1).T
    one_hot = []
    for size, code in zip(n_values, cell_types.T, strict=True):
        one_hot.append(np.eye(size)[code])
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


class ImageCells(nn.Module):
    """Cells of an RGB image: three convolutions of stride 2, which divide its size by 8.

    Args:
        space: the space of the image, channels first or last.
        channels: C, the features of each cell.
    """

    def __init__(self, space: spaces.Box, channels: int) -> None:
        super().__init__()
        self.channels_first = is_image_space_channels_first(space)
        if self.channels_first:
            depth, height, width = space.shape
        else:
            height, width, depth = space.shape
        self.channels = channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(depth, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        # rounded up
        self.height = -(-height // 8)
        self.width = -(-width // 8)

    def forward(
        self,
        image: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, "batch cells channels"]:
        """Encode the pixels.

        Args:
            image: pixels in [0, 1], as SB3's preprocessing gives them, in the layout of the space.

        Returns:
            The cells, (B, P, C).
        """
        if not self.channels_first:
            image = image.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        # (B, C, H, W) -> (B, P, C)
        return self.convolutions(image).flatten(2).transpose(1, 2)


class CellsEncoder(nn.Module):
    """Encoder of an image in two stages: ``to_cells``, then ``to_vector`` by two convolutions.

    The other keys of the observation, such as the direction, join before the last layer.

    Args:
        cells: the first stage.
        routing: the keys of the observation.
        config: options of the encoder.
    """

    def __init__(
        self,
        cells: GridCells | ImageCells,
        routing: Routing,
        config: GridEncoderConfig | ImageEncoderConfig,
    ) -> None:
        super().__init__()
        self.to_cells = cells
        self.channels = cells.channels
        self.out_dim = config.features_dim
        # without padding the two convolutions take off 4 rows and 4 columns
        padding = 0
        shrink = 4
        if min(cells.height, cells.width) < 5:
            # too few cells for that: padding keeps the size
            padding = 1
            shrink = 0
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.channels, self.channels, 3, padding=padding),
            nn.ReLU(),
            nn.Conv2d(self.channels, self.channels, 3, padding=padding),
            nn.ReLU(),
        )
        flat_dim = self.channels * (cells.height - shrink) * (cells.width - shrink)
        self.linear = nn.Linear(flat_dim + routing.others_dim, config.features_dim)

    def to_vector(
        self,
        cells: Float[Tensor, "batch cells channels"],
        others: Float[Tensor, "batch others"],
    ) -> Float[Tensor, "batch features"]:
        """Encode the cells and the other keys.

        Args:
            cells: (B, P, C), fused with the context or not.
            others: (B, others), the other keys, flattened.

        Returns:
            The feature vectors, (B, features).
        """
        # (B, P, C) -> (B, C, H, W)
        size = (self.to_cells.height, self.to_cells.width)
        image = cells.transpose(1, 2).unflatten(2, size)
        # (B, C, H, W) -> (B, H, W, C), the layout in memory, so that flattening copies nothing
        feature_map = self.convolutions(image).permute(0, 2, 3, 1)
        # (B, H * W * C) and (B, others) -> (B, H * W * C + others)
        joined = torch.cat([feature_map.flatten(1), others], dim=1)
        return F.relu(self.linear(joined))


class VectorEncoder(nn.Module):
    """MLP over the flattened observation, which is normalized first if ``normalize`` is set.

    Args:
        in_dim: size of the flattened observation.
        config: options of the encoder.
    """

    def __init__(self, in_dim: int, config: VectorEncoderConfig) -> None:
        super().__init__()
        self.out_dim = config.features_dim
        self.normalize: RunningNorm | None = None
        if config.normalize:
            self.normalize = RunningNorm(in_dim)
        self.mlp = nn.Sequential()
        sizes = (in_dim, *config.hidden, config.features_dim)
        for in_size, out_size in pairwise(sizes):
            self.mlp.append(nn.Linear(in_size, out_size))
            self.mlp.append(nn.ReLU())

    def forward(self, others: Float[Tensor, "batch others"]) -> Float[Tensor, "batch features"]:
        """Encode the flattened observation, (B, others), to (B, features)."""
        if self.normalize is not None:
            others = self.normalize(others)
        return self.mlp(others)


def build_encoder(
    config: BaseEncoderConfig, space: spaces.Dict, routing: Routing
) -> CellsEncoder | VectorEncoder:
    """Build the observation encoder that ``config`` names.

    Args:
        config: kind and options of the encoder.
        space: the space of the observations, from which all sizes are read.
        routing: the keys of the observation.

    Returns:
        The encoder, newly initialized.

    Raises:
        ConfigError: if the encoder needs an image and there is none.
    """
    match config:
        case GridEncoderConfig():
            image_space = _image_space(config, space, routing)
            grid_cells = GridCells(image_space, config.channels)
            return CellsEncoder(grid_cells, routing, config)
        case ImageEncoderConfig():
            image_space = _image_space(config, space, routing)
            image_cells = ImageCells(image_space, config.channels)
            return CellsEncoder(image_cells, routing, config)
        case VectorEncoderConfig():
            return VectorEncoder(routing.others_dim, config)
        case _:
            raise ConfigError(f"encoder={config.kind} cannot be built")


def _image_space(config: BaseEncoderConfig, space: spaces.Dict, routing: Routing) -> spaces.Box:
    image = None
    if routing.image is not None:
        image = space[routing.image]
    if not isinstance(image, spaces.Box):
        raise ConfigError(
            f"encoder={config.kind} needs an observation of rank 3, found none; use encoder=vector"
        )
    return image
