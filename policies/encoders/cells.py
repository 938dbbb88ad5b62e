"""Encoders with a feature map: cells, then a vector, so that a fusion can act in between."""

from collections.abc import Mapping

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import GridEncoderConfig, ImageEncoderConfig
from mirl.policies.encoders.cell_table import CellTable
from mirl.policies.encoders.encoder import Encoder, FuseMap, flatten_keys, flattened_dim
from mirl.policies.encoders.grid import GridCells, default_attributes
from mirl.policies.encoders.image import ImageCells
from mirl.policies.encoders.space_kinds import kind_of


class CellsEncoder(Encoder):
    """Encoder of an image in two stages: ``to_cells``, then ``to_vector`` by two convolutions.

    The other keys of the observation, such as the direction, are joined before the last layer.

    Args:
        space: the space of the inputs, one of them with cells.
        cells: the first stage.
        image_key: key of the input with cells.
        features_dim: size of the feature vector.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies.encoders import CellsEncoder, ImageCells
        >>> space = Dict(camera=Box(0, 1, (64, 64, 3)), speed=Box(-1, 1, (2,)))
        >>> encoder = CellsEncoder(space, ImageCells(space["camera"], 16), "camera", 32)
        >>> encoder.n_cells, encoder.other_keys
        (64, ('speed',))
        >>> encoder({"camera": torch.zeros(5, 64, 64, 3), "speed": torch.zeros(5, 2)}).shape
        torch.Size([5, 32])
    """

    has_map = True
    channels: int

    def __init__(
        self, space: spaces.Dict, cells: GridCells | ImageCells, image_key: str, features_dim: int
    ) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        self.image_key = image_key
        self.other_keys = tuple(key for key in self.keys if key != image_key)
        others_dim = flattened_dim(space, self.other_keys)
        self.to_cells = cells
        self.channels = cells.channels
        self.n_cells = cells.height * cells.width
        if isinstance(cells, GridCells):
            self.attribute_dims = cells.attribute_dims
        self.out_dim = features_dim
        # without padding the two convolutions remove 4 rows and 4 columns
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
        self.linear = nn.Linear(flat_dim + others_dim, features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode the image and the other inputs.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: fusion of the cells with the context; None for no fusion.

        Returns:
            The feature vectors, (B, out_dim).
        """
        image = observations[self.image_key]
        to_cells = self.to_cells
        cells: CellTable | Tensor
        if isinstance(to_cells, GridCells) and to_cells.has_types:
            table = to_cells.to_table(image)
            cells = table if fuse is None else fuse.by_type(table)
        else:
            unfused = to_cells(image)
            cells = unfused if fuse is None else fuse(unfused)
        if self.other_keys:
            others = flatten_keys(observations, self.other_keys)
        else:
            # the image is the only input; zero columns avoid a special case
            others = image.new_zeros(image.shape[0], 0, dtype=torch.float32)
        return self.to_vector(cells, others)

    def to_vector(
        self,
        cells: CellTable | Float[Tensor, "batch cells channels"],
        others: Float[Tensor, "batch others"],
    ) -> Float[Tensor, "batch features"]:
        """Encode the cells and the other keys.

        Args:
            cells: (B, P, C), or a table of them, fused with the context or not.
            others: (B, others), the other keys, flattened.

        Returns:
            The feature vectors, (B, features).
        """
        # (B, C, H, W) -> (B, H, W, C), the layout in memory, so that flattening copies nothing
        feature_map = self._convolve(cells).permute(0, 2, 3, 1).flatten(1)
        if others.shape[1] and torch.is_autocast_enabled(others.device.type):
            # two products, the second in float32, so numbers in physical units keep their digits
            map_weight, others_weight = self.linear.weight.split(
                [feature_map.shape[1], others.shape[1]], dim=1
            )
            of_map = F.linear(feature_map, map_weight, self.linear.bias)
            with torch.autocast(others.device.type, enabled=False):
                of_others = F.linear(others, others_weight)
            return F.relu(of_map + of_others)
        # (B, H * W * C) and (B, others) -> (B, H * W * C + others)
        joined = torch.cat([feature_map, others], dim=1)
        return F.relu(self.linear(joined))

    def _convolve(
        self, cells: CellTable | Float[Tensor, "batch cells channels"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the cells after both convolutions, (B, C, H, W)."""
        size = (self.to_cells.height, self.to_cells.width)
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        if isinstance(cells, CellTable):
            # padding would need a row of zeros in the table; such small grids are cheap
            if first.padding == (0, 0) and cells.is_worth_convolving():
                # (B, H, W, C) -> (B, C, H, W)
                convolved = cells.convolve(first, size).permute(0, 3, 1, 2)
                return self.convolutions[1:](convolved)
            cells = cells.gather()
        # (B, P, C) -> (B, C, H, W)
        return self.convolutions(cells.transpose(1, 2).unflatten(2, size))


class GridEncoder(CellsEncoder):
    """Encoder of cells of codes or planes; see ``CellsEncoder``.

    Args:
        space: the space of the inputs, one of them with cells.
        config: options of the encoder.

    Raises:
        ConfigError: if no input has cells, several have, or they are pixels.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Dict, MultiBinary
        >>> from mirl.configs.networks import GridEncoderConfig
        >>> from mirl.policies.encoders import build_encoder
        >>> space = Dict(planes=MultiBinary((8, 8, 4)))  # walls, goals, agents, ...
        >>> encoder = build_encoder(GridEncoderConfig(channels=16, features_dim=32), space)
        >>> encoder({"planes": torch.zeros(5, 8, 8, 4)}).shape
        torch.Size([5, 32])
    """

    Config = GridEncoderConfig

    def __init__(self, space: spaces.Dict, config: GridEncoderConfig) -> None:
        key = cells_key(space, "grid")
        attributes = config.attributes
        if attributes is None:
            attributes = default_attributes(space[key], config.channels)
        cells = GridCells(
            space[key],
            config.channels,
            additive=config.additive,
            attributes=attributes,
        )
        super().__init__(space, cells, key, config.features_dim)


class ImageEncoder(CellsEncoder):
    """Encoder of pixels; see ``CellsEncoder``.

    Args:
        space: the space of the inputs, one of them an image.
        config: options of the encoder.

    Raises:
        ConfigError: if no input is an image, several are, or it holds codes.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import ImageEncoderConfig
        >>> from mirl.policies.encoders import ImageEncoder
        >>> space = Dict(screen=Box(0, 255, (3, 84, 84), np.uint8))
        >>> encoder = ImageEncoder(space, ImageEncoderConfig(features_dim=64))
        >>> encoder({"screen": torch.zeros(5, 3, 84, 84)}).shape
        torch.Size([5, 64])
    """

    Config = ImageEncoderConfig

    def __init__(self, space: spaces.Dict, config: ImageEncoderConfig) -> None:
        key = cells_key(space, "image")
        cells = ImageCells(space[key], config.channels)
        super().__init__(space, cells, key, config.features_dim)


def cells_key(space: spaces.Dict, kind: str) -> str:
    """Return the key of the only input with cells.

    Args:
        space: the space of the inputs.
        kind: kind of the encoder, for the message.

    Raises:
        ConfigError: if there is no such input, or several.
    """
    by_rank: dict[int, list[str]] = {2: [], 3: []}
    by_kind: list[str] = []
    for key, subspace in space.items():
        rank = len(subspace.shape or ())
        if rank in by_rank:
            by_rank[rank].append(key)
        if kind_of(subspace) in ("image", "grid"):
            by_kind.append(key)
    # a matrix of numbers has cells only if nothing else does
    for keys in (by_kind, by_rank[3], by_rank[2]):
        if len(keys) > 1:
            raise ConfigError(
                f"encoder={kind} reads one image, got several: {', '.join(keys)}; "
                "use encoder=combined"
            )
        if keys:
            return keys[0]
    raise ConfigError(
        f"encoder={kind} needs an observation of rank 3, and {', '.join(space.spaces)} have other "
        "ranks; use encoder=auto"
    )
