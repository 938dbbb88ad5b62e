"""Encoders of the observation. Those of images work in two stages, cells and then a vector: a fusion fits between."""

from itertools import pairwise
from typing import assert_never

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    EncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.routing import Routing
from mirl.policies.running_norm import RunningNorm


class GridCells(nn.Module):
    """MiniGrid's symbolic view (H, W, 3) → cells (H, W, C): relu of the sum of an embedding per channel.

    There are few kinds of cells (264 in MiniGrid): what is computed from a cell alone is computed once per kind, and
    looked up by every cell.
    """

    MAX_KINDS = 4096

    def __init__(self, space: spaces.Box, channels: int) -> None:
        super().__init__()
        sizes = space.high.reshape(-1, space.shape[-1]).max(0).astype(np.int64) + 1
        if (
            space.dtype.kind not in "iu"
            or space.low.min() < 0
            or sizes.prod(dtype=np.float64) > self.MAX_KINDS
        ):
            raise ConfigError(
                f"encoder=grid reads small integer codes such as MiniGrid's symbolic view, at most {self.MAX_KINDS} "
                f"combinations of them, got {space}; use encoder=image for pixels"
            )
        self.height, self.width, self.channels = *space.shape[:2], channels
        codes = (
            np.indices(sizes).reshape(len(sizes), -1).T
        )  # (K, codes), every kind, in the order of ``cell_type_ids``
        one_hot = np.concatenate(
            [np.eye(size)[code] for size, code in zip(sizes, codes.T, strict=True)], axis=1
        )
        self.cell_types_one_hot: Tensor
        self.strides: Tensor
        self.register_buffer(
            "cell_types_one_hot", torch.from_numpy(one_hot).float(), persistent=False
        )
        strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
        self.register_buffer("strides", torch.from_numpy(strides).float(), persistent=False)
        self.embedding = nn.Linear(int(sizes.sum()), channels)

    def cell_types(self) -> Float[Tensor, "kinds channels"]:
        """Every kind of cell."""
        return F.relu(self.embedding(self.cell_types_one_hot))

    def cell_type_ids(
        self, image: Float[Tensor, "batch height width codes"]
    ) -> Int[Tensor, "batch cells"]:
        """The kind of each cell."""
        with torch.autocast(image.device.type, enabled=False):
            return (image.flatten(1, 2).float() @ self.strides).long()

    def forward(
        self, image: Float[Tensor, "batch height width codes"]
    ) -> Float[Tensor, "batch cells channels"]:
        return gather_rows(self.cell_types(), self.cell_type_ids(image))


def gather_rows(
    table: Float[Tensor, "kinds channels"], index: Int[Tensor, "batch cells"]
) -> Float[Tensor, "batch cells channels"]:
    """The rows of a table; in float32 at least, since their gradient is a long sum."""
    exact = table.float() if table.dtype == torch.bfloat16 else table
    return exact.index_select(0, index.flatten()).unflatten(0, index.shape)


class ImageCells(nn.Module):
    """RGB pixels in [0, 1], as SB3 gives them, → cells, an eighth of the size each way by strided convolutions."""

    def __init__(self, space: spaces.Box, channels: int) -> None:
        super().__init__()
        self.channels_first = is_image_space_channels_first(space)
        depth, height, width = (
            space.shape if self.channels_first else (space.shape[2], *space.shape[:2])
        )
        self.channels = channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(depth, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.height, self.width = -(-height // 8), -(-width // 8)

    def forward(self, image: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch cells channels"]:
        pixels = (
            image if self.channels_first else image.permute(0, 3, 1, 2)
        )  # (B, H, W, C) -> (B, C, H, W)
        return self.convolutions(pixels).flatten(2).transpose(1, 2)


class CellsEncoder(nn.Module):
    """Cells of an image, then a vector: ``to_cells`` (B, P, C), and ``to_vector`` (B, D) by two 3×3 convolutions.

    The other keys of the observation (direction, …) join before the last layer.
    """

    def __init__(
        self,
        cells: GridCells | ImageCells,
        routing: Routing,
        config: GridEncoderConfig | ImageEncoderConfig,
    ) -> None:
        super().__init__()
        self.to_cells, self.channels, self.out_dim = cells, cells.channels, config.features_dim
        padding = 0 if min(cells.height, cells.width) >= 5 else 1
        shrink = 4 - 4 * padding
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.channels, self.channels, 3, padding=padding),
            nn.ReLU(),
            nn.Conv2d(self.channels, self.channels, 3, padding=padding),
            nn.ReLU(),
        )
        flat = self.channels * (cells.height - shrink) * (cells.width - shrink)
        self.linear = nn.Linear(flat + routing.others_dim, config.features_dim)

    def to_vector(
        self, cells: Float[Tensor, "batch cells channels"], others: Float[Tensor, "batch others"]
    ) -> Float[Tensor, "batch features"]:
        image = cells.transpose(1, 2).unflatten(
            2, (self.to_cells.height, self.to_cells.width)
        )  # (B, P, C) -> (B, C, H, W)
        mapped = self.convolutions(image).permute(
            0, 2, 3, 1
        )  # (B, C, H, W) -> (B, H, W, C), as it lies in memory
        return F.relu(self.linear(torch.cat([mapped.flatten(1), others], dim=1)))


class VectorEncoder(nn.Module):
    """An MLP over the flattened observation, which is normalized first if the configuration says so."""

    def __init__(self, in_dim: int, config: VectorEncoderConfig) -> None:
        super().__init__()
        self.out_dim = config.features_dim
        self.normalize = RunningNorm(in_dim) if config.normalize else None
        dims = (in_dim, *config.hidden, config.features_dim)
        layers: list[nn.Module] = [
            layer for i, o in pairwise(dims) for layer in (nn.Linear(i, o), nn.ReLU())
        ]
        self.mlp = nn.Sequential(*layers)

    def forward(self, others: Float[Tensor, "batch others"]) -> Float[Tensor, "batch features"]:
        return self.mlp(others if self.normalize is None else self.normalize(others))


def build_encoder(
    config: EncoderConfig, space: spaces.Dict, routing: Routing
) -> CellsEncoder | VectorEncoder:
    """The encoder that ``config`` names, sized by the spaces of the keys it reads."""
    match config:
        case GridEncoderConfig():
            return CellsEncoder(
                GridCells(_image_space(config, space, routing), config.channels), routing, config
            )
        case ImageEncoderConfig():
            return CellsEncoder(
                ImageCells(_image_space(config, space, routing), config.channels), routing, config
            )
        case VectorEncoderConfig():
            return VectorEncoder(routing.others_dim, config)
        case _:
            assert_never(config)


def _image_space(config: EncoderConfig, space: spaces.Dict, routing: Routing) -> spaces.Box:
    image = None if routing.image is None else space[routing.image]
    if not isinstance(image, spaces.Box):
        raise ConfigError(
            f"encoder={config.kind} needs an observation of rank 3, found none; use encoder=vector"
        )
    return image
