"""Recurrent cores that compute a chunk of timesteps at once.

Shapes: T timesteps of a chunk, N sequences, X features, S hidden state.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes


class ChunkedCore(Core):
    """A core whose cost grows with the square of the number of timesteps computed at once.

    Longer sequences are split into chunks, which are computed one after the other.
    """

    CHUNK = 64
    """Timesteps of a chunk."""

    def run(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
        z: Tensor | None,
        groups: ContextGroups | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the chunks one after the other; see ``Core.run``."""
        if x.shape[0] <= self.CHUNK:
            return self.forward_chunk(x, state, episodes)
        outputs: list[Tensor] = []
        for start in range(0, len(x), self.CHUNK):
            chunk = slice(start, start + self.CHUNK)
            # Episodes are numbered anew in each chunk; the state carries over earlier timesteps.
            own_episodes = Episodes(episodes.starts[chunk], episodes.device)
            y, state = self.forward_chunk(x[chunk], state, own_episodes)
            outputs.append(y)
        return torch.cat(outputs), state

    @abstractmethod
    def forward_chunk(
        self,
        x: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episodes: Episodes,
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """Compute a chunk.

        Args:
            x: (T, N, X), the features.
            state: (N, S), the hidden state before the chunk.
            episodes: the episode starts in the chunk.

        Returns:
            (T, N, size), the output; (N, S), the hidden state after the chunk.
        """
