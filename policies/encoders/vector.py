"""Encoder of numbers."""

from collections.abc import Mapping
from itertools import pairwise

from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from mirl.configs.networks import (
    VectorEncoderConfig,
)
from mirl.policies.encoders.encoder import Encoder, FuseMap, flatten_keys, flattened_dim, in_float32
from mirl.policies.running_norm import RunningNorm


class VectorEncoder(Encoder):
    """MLP over the flattened observation, which is normalized first if ``normalize`` is set.

    Args:
        space: the space of the inputs.
        config: options of the encoder.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import VectorEncoderConfig
        >>> from mirl.policies.encoders import VectorEncoder
        >>> space = Dict(joints=Box(-1, 1, (6,)), speed=Box(-9, 9, (2,)))
        >>> encoder = VectorEncoder(space, VectorEncoderConfig(hidden=(64,), features_dim=32))
        >>> encoder.in_dim, encoder({"joints": torch.zeros(5, 6), "speed": torch.zeros(5, 2)}).shape
        (8, torch.Size([5, 32]))
    """

    Config = VectorEncoderConfig

    def __init__(self, space: spaces.Dict, config: VectorEncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        self.in_dim = flattened_dim(space, self.keys)
        self.out_dim = config.features_dim
        self.normalize: RunningNorm | None = None
        if config.normalize:
            self.normalize = RunningNorm(self.in_dim)
        self.mlp = nn.Sequential()
        sizes = (self.in_dim, *config.hidden, config.features_dim)
        for in_size, out_size in pairwise(sizes):
            self.mlp.append(nn.Linear(in_size, out_size))
            self.mlp.append(nn.ReLU())

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode the flattened observation.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: ignored, because the encoder has no map.

        Returns:
            The feature vectors, (B, out_dim).
        """
        numbers = flatten_keys(observations, self.keys)
        if self.normalize is not None:
            numbers = self.normalize(numbers)
        first, *later = self.mlp
        # numbers in physical units would lose their last digits in bfloat16
        hidden = in_float32(first, numbers)
        for layer in later:
            hidden = layer(hidden)
        return hidden

    def update_statistics(self, observations: Mapping[str, Tensor]) -> None:
        """Update the running statistics of the inputs, if they are normalized.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        if self.normalize is not None:
            self.normalize.update(flatten_keys(observations, self.keys))
