"""LSTM and GRU, with torch's kernels.

Shapes: T timesteps, N sequences, P segments, S hidden state, H size of h.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mirl.configs.networks import GruConfig, LstmConfig
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes

KernelState = Tensor | tuple[Tensor, ...]
"""The state as torch's kernels take it: h, or (h, c), each (1, P, H)."""
CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""Weights of a layer, in the order in which torch's cells take them."""


class Recurrent(Core):
    """``torch.nn.LSTM`` or ``torch.nn.GRU``, over all segments at once as a packed sequence.

    The hidden state is h, or h and c concatenated.

    Args:
        network: the layer; its weights are initialized here.
        config: the options of the core.
    """

    def __init__(self, network: nn.LSTM | nn.GRU, config: LstmConfig | GruConfig) -> None:
        # An LSTM has (h, c), a GRU has only h.
        n_parts = 2 if isinstance(network, nn.LSTM) else 1
        super().__init__(network.input_size, n_parts * network.hidden_size, config)
        self.network = network
        for name, weight in network.named_parameters():
            if "weight" in name:
                init_gates(weight, self.size)
            else:
                nn.init.zeros_(weight)
        if isinstance(network, nn.LSTM):
            # torch adds two biases, bias_ih and bias_hh, so only one of them is set to 1.
            init_forget_gate(network.get_parameter("bias_ih_l0"))

    def run(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
        z: Tensor | None,
        groups: ContextGroups | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer over all segments; see ``Core.run``. The context is ignored."""
        if torch.compiler.is_exporting():
            y, last_state = self._run_cell(x.squeeze(0), state)
            return y.unsqueeze(0), last_state
        first = self._split_state(episodes.first_states(state))
        if episodes.are_unbroken:
            # No segment ends early, so torch can run a dense batch instead of a packed one.
            y, last = self.network(x, first)
            return y, self._join_state(last)
        packed = PackedSequence(episodes.pack(x), torch.tensor(episodes.batch_sizes))
        y, last = self.network(packed, first)
        return episodes.unpack(y.data), episodes.last_states(self._join_state(last))

    def _run_cell(
        self, x: Float[Tensor, "batch features"], state: Float[Tensor, "batch state"]
    ) -> tuple[Float[Tensor, "batch size"], Float[Tensor, "batch state"]]:
        """Run the layer for one timestep, with operations that can be exported."""
        network = self.network
        weights = [network.get_parameter(f"{name}_l0") for name in CELL_WEIGHTS]
        if isinstance(network, nn.LSTM):
            h, c = torch.lstm_cell(x, state.chunk(2, dim=1), *weights)
            return h, torch.cat([h, c], dim=1)
        h = torch.gru_cell(x, state, *weights)
        return h, h

    def _split_state(self, state: Float[Tensor, "pieces state"]) -> KernelState:
        # (P, S) -> (1, P, H) each
        parts = tuple(part.unsqueeze(0).contiguous() for part in state.split(self.size, dim=1))
        return parts if isinstance(self.network, nn.LSTM) else parts[0]

    def _join_state(self, parts: KernelState) -> Float[Tensor, "pieces state"]:
        # (1, P, H) each -> (P, S)
        if isinstance(parts, Tensor):
            parts = (parts,)
        return torch.cat(parts, dim=2).squeeze(0)


class Lstm(Recurrent):
    """Long short-term memory, ``torch.nn.LSTM``.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context, which is ignored.
        config: options of the core.

    References:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997.
    """

    Config = LstmConfig

    def __init__(self, features_dim: int, context_dim: int, config: LstmConfig) -> None:
        super().__init__(nn.LSTM(features_dim, config.size), config)


class Gru(Recurrent):
    """Gated recurrent unit, ``torch.nn.GRU``.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context, which is ignored.
        config: options of the core.

    References:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014.
    """

    Config = GruConfig

    def __init__(self, features_dim: int, context_dim: int, config: GruConfig) -> None:
        super().__init__(nn.GRU(features_dim, config.size), config)


def init_gates(weight: Float[Tensor, "gates in"], size: int) -> None:
    """Initialize the weights of each gate orthogonally, in place.

    Args:
        weight: (n_gates * size, in), the weights of all gates.
        size: H.
    """
    for gate in weight.detach().split(size):
        nn.init.orthogonal_(gate)


def init_forget_gate(bias: Float[Tensor, " gates"]) -> None:
    """Set the bias of an LSTM's forget gate to 1, in place.

    With a bias of 0 an LSTM would lose half of its cell state in each timestep.

    Args:
        bias: (4 * H,), of the gates (input, forget, cell, output).

    References:
        Gers et al., "Learning to Forget", Neural Computation 2000; Jozefowicz et al., "An Empirical
        Exploration of Recurrent Network Architectures", ICML 2015.
    """
    nn.init.ones_(bias.detach().chunk(4)[1])
