"""TODO docstring."""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import RecurrentCoreConfig
from mirl.policies.fusions import Affine
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.episodes import Episodes


class Core(nn.Module, ABC):
    """The one interface of memories: (features, state, episode_start, context) → (features, state).

    The state of a sequence is one row of numbers, and zeros are the memory of nothing: where an episode starts, all
    that was before is as if it had not been. What a core gives for T timesteps at once is what it gives for one after
    the other, as long as all numbers are finite. Under autocast it computes in float32: rounding would add up.

    With a skip connection it gives x + P y, the features and what is remembered of them, where P starts at zero: the
    agent first learns to react, as one without a memory (the identity map of Parisotto et al., 2020). No gradient
    flows through what the memory reads: what is not yet worth remembering would drown what the features learn from.
    """

    def __init__(self, features_dim: int, state_dim: int, config: RecurrentCoreConfig) -> None:
        super().__init__()
        if config.normalize and features_dim < 2:
            raise ConfigError(
                "a memory with normalize needs two features or more, got 1; normalize=false takes it"
            )
        self.features_dim, self.size, self.state_dim = features_dim, config.size, state_dim
        self.normalize = config.normalize
        self.add = (
            Affine(config.size, features_dim, gain=0, bias=False)
            if config.skip_connection
            else None
        )

    @property
    def out_dim(self) -> int:
        """Size of what it gives: of what it remembers or, with a skip connection, of the features."""
        return self.size if self.add is None else self.features_dim

    def forward(
        self,
        features: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episode_start: Episodes | Shaped[Tensor, "time batch"] | Shaped[np.ndarray, "time batch"],
        context: Float[Tensor, "rows context"] | None = None,
        groups: ContextGroups | None = None,
    ) -> tuple[Float[Tensor, "time batch out"], Float[Tensor, "batch state"]]:
        """Read T timesteps of N sequences.

        :param state: what is remembered from before.
        :param episode_start: whether a timestep is the first of an episode.
        :param context: (T · N, Z), of each timestep, time first; or (G, Z), with ``groups`` to say which is whose.
        :raises ValueError: when the sizes do not fit.
        """
        if not isinstance(episode_start, Episodes):
            starts = episode_start.cpu() if isinstance(episode_start, Tensor) else episode_start
            episode_start = Episodes(np.asarray(starts, np.bool_), features.device)
        expected = (
            (*episode_start.shape, self.features_dim),
            (episode_start.shape[1], self.state_dim),
        )
        if (tuple(features.shape), tuple(state.shape)) != expected:
            raise ValueError(
                f"{type(self).__name__} expects features {expected[0]} and state {expected[1]}, "
                f"got {tuple(features.shape)} and {tuple(state.shape)}"
            )
        if (
            context is not None
            and groups is None
            and len(context) != math.prod(episode_start.shape)
        ):
            raise ValueError(
                f"expected a context for each of {episode_start.shape} timesteps, got {len(context)}"
            )
        state = episode_start.kept(state)
        x, z = to_float32(features), None if context is None else to_float32(context)
        with torch.autocast(features.device.type, enabled=False):
            read = x if self.add is None else x.detach()
            normalized = F.layer_norm(read, (self.features_dim,)) if self.normalize else read
            remembered, state = self.run(normalized, state, episode_start, z, groups)
            return remembered if self.add is None else x + self.add(remembered), state

    @abstractmethod
    def run(
        self,
        x: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episodes: Episodes,
        z: Float[Tensor, "rows context"] | None,
        groups: ContextGroups | None,
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """The memory itself, given what ``normalize`` made of the features."""


def to_float32(given: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What autocast may have made bfloat16, in float32."""
    return given if given.dtype == torch.float64 else given.float()
