"""TODO docstring."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes


class ChunkedCore(Core):
    """A memory that computes some timesteps at once: what it costs grows with their square."""

    CHUNK = 64

    def run(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
        z: Tensor | None,
        groups: ContextGroups | None,
    ) -> tuple[Tensor, Tensor]:
        outputs = []
        for begin in range(0, len(x), self.CHUNK):
            chunk = slice(begin, begin + self.CHUNK)
            y, state = self.forward_chunk(
                x[chunk], state, Episodes(episodes.starts[chunk], episodes.device)
            )
            outputs.append(y)
        return torch.cat(outputs), state

    @abstractmethod
    def forward_chunk(
        self,
        x: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episodes: Episodes,
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """What is read, and the state afterwards."""
