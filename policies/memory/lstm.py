"""TODO docstring."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mirl.configs.networks import GruConfig, LstmConfig
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes


class Recurrent(Core):
    """``torch.nn.LSTM`` (Hochreiter and Schmidhuber, 1997) or ``torch.nn.GRU`` (Cho et al., 2014), with its kernels.

    Episodes are read side by side, as a packed sequence.
    """

    def __init__(self, network: nn.LSTM | nn.GRU, config: LstmConfig | GruConfig) -> None:
        parts = 2 if isinstance(network, nn.LSTM) else 1
        super().__init__(network.input_size, parts * network.hidden_size, config)
        self.network = network
        for name, weight in network.named_parameters():
            init_gates(weight, self.size) if "weight" in name else nn.init.zeros_(weight)
        if isinstance(network, nn.LSTM):
            init_forget_gate(network.get_parameter("bias_ih_l0"))

    def run(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
        z: Tensor | None,
        groups: ContextGroups | None,
    ) -> tuple[Tensor, Tensor]:
        first = self._parts(episodes.first_states(state))
        if episodes.are_whole:
            y, last = self.network(x, first)
            return y, self._joined(last)
        packed, last = self.network(
            PackedSequence(episodes.pack(x), torch.tensor(episodes.sizes)), first
        )
        return episodes.unpack(packed.data), episodes.last_states(self._joined(last))

    def _parts(self, state: Float[Tensor, "pieces state"]) -> Any:
        """As the kernels take a state: h, or (h, c), each (1, pieces, size)."""
        parts = tuple(part.unsqueeze(0).contiguous() for part in state.split(self.size, dim=1))
        return parts if isinstance(self.network, nn.LSTM) else parts[0]

    def _joined(self, parts: Any) -> Float[Tensor, "pieces state"]:
        return torch.cat(parts if isinstance(self.network, nn.LSTM) else (parts,), dim=2).squeeze(0)


def init_gates(weight: Float[Tensor, "gates in"], size: int) -> None:
    """The weights of each gate, (size, in), orthogonal by themselves."""
    for gate in weight.detach().split(size):
        nn.init.orthogonal_(gate)


def init_forget_gate(bias: Float[Tensor, " gates"]) -> None:
    """A bias of 1 for an LSTM's forget gate, the second of four: at 0 half of what it remembers would be lost with each
    timestep (Gers et al., 2000; Jozefowicz et al., 2015).
    """
    nn.init.ones_(bias.detach().chunk(4)[1])
