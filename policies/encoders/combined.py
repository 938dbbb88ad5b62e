"""Encoder of several inputs, each by an encoder of its own."""

from collections.abc import Mapping
from typing import cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedEncoderConfig,
)
from mirl.policies.encoders.build import build_encoder
from mirl.policies.encoders.encoder import Encoder, FuseMap
from mirl.policies.encoders.space_kinds import kind_of


class CombinedEncoder(Encoder):
    """An encoder per key, then relu(V [v₁, v₂, …] + b) over their feature vectors.

    All parts with a feature map have the same number of channels and share the fusion.

    Args:
        space: the space of the inputs.
        config: the config of each key's encoder.

    Raises:
        ConfigError: if an encoder does not fit the space of its key.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import CombinedEncoderConfig
        >>> from mirl.policies.encoders import CombinedEncoder
        >>> space = Dict(camera=Box(0, 1, (32, 32, 3)), speed=Box(-1, 1, (2,)))
        >>> config = CombinedEncoderConfig(parts={"camera": "image", "speed": "vector"})
        >>> encoder = CombinedEncoder(space, config)
        >>> encoder({"camera": torch.zeros(5, 32, 32, 3), "speed": torch.zeros(5, 2)}).shape
        torch.Size([5, 128])
    """

    Config = CombinedEncoderConfig

    def __init__(self, space: spaces.Dict, config: CombinedEncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        # a list, because names of modules cannot contain dots, and keys can
        self.parts = nn.ModuleList()
        joined_dim = 0
        layouts: list[tuple[int, ...]] = []
        n_cells: list[int | None] = []
        for key in self.keys:
            try:
                part = build_encoder(config.parts[key], spaces.Dict({key: space[key]}))
            except ConfigError as error:
                # the advice of the part's own message names options that are not given here
                problem, *_ = str(error).partition(";")
                raise ConfigError(
                    f"encoder.parts.{key}: {problem}; use encoder.parts.{key}={kind_of(space[key])}"
                ) from None
            self.parts.append(part)
            joined_dim += part.out_dim
            if part.channels is not None:
                self.channels = part.channels
                n_cells.append(part.n_cells)
                layouts.append(part.attribute_dims)
        if len(set(layouts)) == 1:
            # the shared fusion can tell attributes apart only if every map has the same ones
            self.attribute_dims = layouts[0]
        if n_cells and None not in n_cells:
            self.n_cells = sum(cast(list[int], n_cells))
        self.out_dim = config.features_dim
        self.join = nn.Linear(joined_dim, config.features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode each key and join the vectors.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: fusion of each feature map with the context; None for no fusion.

        Returns:
            The feature vectors, (B, out_dim).
        """
        vectors = [part(observations, fuse) for part in self.parts]
        return F.relu(self.join(torch.cat(vectors, dim=1)))

    def update_statistics(self, observations: Mapping[str, Tensor]) -> None:
        """Update the running statistics of every part.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        for part in self.parts:
            cast(Encoder, part).update_statistics(observations)
