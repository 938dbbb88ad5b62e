"""TODO docstring."""

from typing import assert_never, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mirl.configs.networks import Gate, MiLstmConfig
from mirl.policies.fusions import Affine
from mirl.policies.grouped_matmul import ContextGroups, multiply_row_by_row
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes
from mirl.policies.memory.lstm import init_forget_gate, init_gates


class MiLstm(Core):
    """An LSTM whose gates take a multiplicative interaction of input and state, scaled by the context:

        a_t = (1 + γ(z_t)) ⊙ (V x_t + U h_{t−1} + m(x_t, h_{t−1})) + b
        c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g),  h_t = σ(o) ⊙ tanh(c_t)  with (i, f, g, o) = a_t

    where m is hᵀ𝕎x, or of rank R, P((A x) ⊙ (B h)), or α ⊙ (V x) ⊙ (U h), the multiplicative integration of Wu et al.,
    2016. γ, 𝕎, P and α start at zero, and at zero it is ``torch.nn.LSTM``.
    """

    columns: Int[Tensor, " multiplied"]
    """Where the gates that have the multiplicative term stand among all."""

    def __init__(self, features_dim: int, context_dim: int, config: MiLstmConfig) -> None:
        size = config.size
        super().__init__(features_dim, 2 * size, config)
        self.form = config.form
        self.main = Affine(features_dim, 4 * size, gain=0, bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * size))
        self.recur = Affine(size, 4 * size, gain=0, bias=False)
        for layer in (self.main, self.recur):
            init_gates(layer.weight.T, size)
        init_forget_gate(self.bias)
        scaled = config.scaled_by_context and context_dim > 0
        self.to_scale = Affine(context_dim, 4 * size, gain=0, bias=False) if scaled else None
        chosen = torch.tensor([gate in config.gates for gate in get_args(Gate)]).repeat_interleave(
            size
        )
        self.register_buffer("columns", chosen.nonzero().flatten(), persistent=False)
        multiplied = len(self.columns)
        match config.form:
            case "full":
                self.weight = nn.Parameter(torch.zeros(features_dim, size, multiplied))
            case "low_rank":
                self.factor_features = Affine(features_dim, config.rank, gain=1, bias=False)
                self.factor_state = Affine(size, config.rank, gain=1, bias=False)
                self.weight = nn.Parameter(torch.zeros(config.rank, multiplied))
            case "diagonal":
                self.weight = nn.Parameter(torch.zeros(multiplied))
            case _:
                assert_never(config.form)

    def run(
        self,
        x: Tensor,
        state: Tensor,
        episodes: Episodes,
        z: Tensor | None,
        groups: ContextGroups | None,
    ) -> tuple[Tensor, Tensor]:
        sizes, x = episodes.sizes, episodes.pack(x)
        main, scale = self.main(x), self._scale(z, groups, episodes)
        factor = self._factor(x, main)
        weight = self.weight.new_zeros(*self.weight.shape[:-1], len(self.bias))
        weight = weight.index_copy(-1, self.columns, self.weight)
        h, c = episodes.first_states(state).chunk(2, dim=1)
        outputs, ended = [], []
        for main_t, factor_t, scale_t in zip(
            main.split(sizes), factor.split(sizes), scale.split(sizes), strict=True
        ):
            if len(main_t) < len(h):  # the shortest pieces have ended
                ended.append(torch.cat([h[len(main_t) :], c[len(main_t) :]], dim=1))
                h, c = h[: len(main_t)], c[: len(main_t)]
            recurrent = self.recur(h)
            taken = main_t + recurrent + self._multiply(weight, factor_t, h, recurrent)
            i, f, g, o = torch.addcmul(self.bias, scale_t, taken).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        last = torch.cat([torch.cat([h, c], dim=1), *reversed(ended)])
        return episodes.unpack(torch.cat(outputs)), episodes.last_states(last)

    def _factor(self, x: Tensor, main: Tensor) -> Float[Tensor, "steps factor"]:
        """What of m depends on the input alone."""
        match self.form:
            case "full":
                return x
            case "low_rank":
                return self.factor_features(x)
            case "diagonal":
                return main
            case _:
                assert_never(self.form)

    def _multiply(
        self, weight: Tensor, factor: Tensor, h: Tensor, recurrent: Tensor
    ) -> Float[Tensor, "pieces gates"]:
        """m(x_t, h_{t−1})"""
        match self.form:
            case "full":
                return multiply_row_by_row(h, factor, weight)
            case "low_rank":
                return (factor * self.factor_state(h)) @ weight
            case "diagonal":
                return weight * factor * recurrent
            case _:
                assert_never(self.form)

    def _scale(
        self, z: Tensor | None, groups: ContextGroups | None, episodes: Episodes
    ) -> Float[Tensor, "steps gates"]:
        """1 + γ(z) of each packed timestep."""
        if self.to_scale is None:
            return self.bias.new_ones(()).expand(sum(episodes.sizes), len(self.bias))
        if z is None:
            raise ValueError("the context scales the gates, and none was given")
        scale = 1 + self.to_scale(z)
        of_each = scale if groups is None else scale.index_select(0, groups.index)
        return episodes.pack(of_each.unflatten(0, episodes.shape))
