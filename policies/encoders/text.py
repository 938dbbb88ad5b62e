"""Encoder of texts that are not the context."""

from collections.abc import Mapping

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    TextEncoderConfig,
)
from mirl.policies.encoders.encoder import Encoder, FuseMap
from mirl.policies.features import unique_rows
from mirl.policies.text.words import build_mission_encoder


class TextEncoder(Encoder):
    """Encoder of texts that are not the context; each distinct text is encoded once.

    Args:
        space: the space of the inputs, one Box of token ids (length,).
        config: options of the encoder.

    Raises:
        ConfigError: if the space is not one of token ids.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import TextEncoderConfig
        >>> from mirl.policies.encoders import TextEncoder
        >>> space = Dict(hint=Box(0, 99, (6,), np.int16))  # 6 token ids
        >>> encoder = TextEncoder(space, TextEncoderConfig(words="bag", features_dim=16))
        >>> encoder({"hint": torch.tensor([[7, 4, 0, 0, 0, 0]])}).shape
        torch.Size([1, 16])
    """

    Config = TextEncoderConfig

    def __init__(self, space: spaces.Dict, config: TextEncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        subspace = space[self.keys[0]]
        has_tokens = isinstance(subspace, spaces.Box) and subspace.dtype.kind in "iu"
        if len(self.keys) > 1 or len(subspace.shape or ()) != 1 or not has_tokens:
            raise ConfigError(
                "encoder=text reads one key of token ids, a Box of integers (length,), got "
                f"{', '.join(self.keys)}; use encoder=auto"
            )
        assert isinstance(subspace, spaces.Box)
        self.out_dim = config.features_dim
        self.words = build_mission_encoder(int(subspace.high.max()) + 1, config.mission)
        self.norm = nn.LayerNorm(config.features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode the texts.

        Args:
            observations: token ids (B, length), padded with 0.
            fuse: ignored, because the encoder has no map.

        Returns:
            The feature vectors, (B, out_dim).
        """
        tokens = observations[self.keys[0]].long()
        if torch.compiler.is_exporting():
            # the number of distinct texts depends on data; shapes of exported programs cannot
            each: Tensor = self.norm(self.words(tokens).texts)
            return each
        distinct = unique_rows(tokens)
        encoded: Tensor = self.norm(self.words(distinct.rows).texts)
        return encoded.index_select(0, distinct.groups.index)
