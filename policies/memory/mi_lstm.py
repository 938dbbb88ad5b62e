"""LSTM with a multiplicative interaction of input and hidden state in its gates.

Shapes: T timesteps, N sequences, P segments, X features, Z context, H size of h, R rank, M columns
of the gates that have the multiplicative term.
"""

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
    """An LSTM whose gates take a multiplicative interaction, scaled by the context.

        a_t = (1 + γ(z_t / Z)) ⊙ (V x_t + U h_{t−1} + m(x_t, h_{t−1})) + b
        c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g),  h_t = σ(o) ⊙ tanh(c_t)  with (i, f, g, o) = a_t

    where m is hᵀ𝕎x / H ("full"), P((A x / R) ⊙ (B h / H)) of rank R ("low_rank"), or
    α ⊙ (V x) ⊙ (U h) ("diagonal", multiplicative integration). γ, 𝕎, P and α start at zero, and
    the core then equals ``torch.nn.LSTM``. Without ``config.scaled_steps`` nothing is divided by
    Z, R and H.

    The hidden state is h and c, concatenated.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context; 0 for none.
        config: form, rank and gates of the multiplicative term.

    References:
        Wu et al., "On Multiplicative Integration with Recurrent Neural Networks", NeurIPS 2016.
    """

    Config = MiLstmConfig
    columns: Int[Tensor, " multiplied"]
    """(M,), the columns of a_t whose gates have the multiplicative term."""

    def __init__(self, features_dim: int, context_dim: int, config: MiLstmConfig) -> None:
        size = config.size
        super().__init__(features_dim, 2 * size, config)
        self.form = config.form
        self.main = Affine(features_dim, 4 * size, gain=0, bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * size))
        self.recur = Affine(size, 4 * size, gain=0, bias=False)
        for layer in (self.main, self.recur):
            # The transpose is a view in the layout (4 * H, in) of torch's LSTM.
            init_gates(layer.weight.T, size)
        init_forget_gate(self.bias)

        def scale_of(size: int) -> float:
            """Return the factor of an input of the multiplicative weights."""
            return 1 / size if config.scaled_steps else 1.0

        self.to_scale: Affine | None = None
        if config.scaled_by_context and context_dim > 0:
            self.to_scale = Affine(
                context_dim, 4 * size, gain=0, bias=False, scale=scale_of(context_dim)
            )
        is_multiplied = torch.tensor([gate in config.gates for gate in get_args(Gate)])
        columns = is_multiplied.repeat_interleave(size).nonzero().flatten()
        self.register_buffer("columns", columns, persistent=False)
        n_columns = len(columns)
        match config.form:
            case "full":
                self.state_scale = scale_of(size)
                self.weight = nn.Parameter(torch.zeros(features_dim, size, n_columns))
            case "low_rank":
                rank = config.rank
                self.factor_features = Affine(
                    features_dim, rank, gain=1, bias=False, scale=scale_of(rank)
                )
                self.factor_state = Affine(size, rank, gain=1, bias=False, scale=scale_of(size))
                self.weight = nn.Parameter(torch.zeros(config.rank, n_columns))
            case "diagonal":
                self.weight = nn.Parameter(torch.zeros(n_columns))
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
        """Run all segments side by side, one timestep after the other; see ``Core.run``."""
        batch_sizes = episodes.batch_sizes
        x = episodes.pack(x)
        # Everything that does not depend on h is computed for all timesteps at once.
        main = self.main(x)
        scale = self._scale(z, groups, episodes)
        factor = self._factor(x, main)
        # (..., M) -> (..., 4 * H), zeros for gates without the multiplicative term
        weight = self.weight.new_zeros(*self.weight.shape[:-1], len(self.bias))
        weight = weight.index_copy(-1, self.columns, self.weight)
        h, c = episodes.first_states(state).chunk(2, dim=1)
        outputs: list[Tensor] = []
        ended: list[Tensor] = []
        for main_t, factor_t, scale_t in zip(
            main.split(batch_sizes),
            factor.split(batch_sizes),
            scale.split(batch_sizes),
            strict=True,
        ):
            n_running = main_t.shape[0]
            if n_running < h.shape[0]:
                # Segments are sorted by length: the last ones have ended.
                ended.append(torch.cat([h[n_running:], c[n_running:]], dim=1))
                h = h[:n_running]
                c = c[:n_running]
            recurrent = self.recur(h)
            inputs = main_t + recurrent + self._multiply(weight, factor_t, h, recurrent)
            # b + (1 + γ(z)) ⊙ (V x + U h + m): the context does not scale the bias.
            i, f, g, o = torch.addcmul(self.bias, scale_t, inputs).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        # The segments that ended last are the longest, which come first in the packed order.
        last = torch.cat([torch.cat([h, c], dim=1), *reversed(ended)])
        return episodes.unpack(torch.cat(outputs)), episodes.last_states(last)

    def _factor(self, x: Tensor, main: Tensor) -> Float[Tensor, "steps factor"]:
        """Return the part of m that depends only on the input."""
        match self.form:
            case "full":
                # the scale of h, applied to x, which is cheapest
                return self.state_scale * x
            case "low_rank":
                return self.factor_features(x)
            case "diagonal":
                return main
            case _:
                assert_never(self.form)

    def _multiply(
        self, weight: Tensor, factor: Tensor, h: Tensor, recurrent: Tensor
    ) -> Float[Tensor, "pieces gates"]:
        """Return m(x_t, h_{t−1})."""
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
        """Return 1 + γ(z) of each packed row."""
        if self.to_scale is None:
            n_rows = sum(episodes.batch_sizes)
            # An expanded scalar: ones for every row, without their memory.
            return self.bias.new_ones(()).expand(n_rows, len(self.bias))
        if z is None:
            raise ValueError(
                "expected a context, because the context scales the gates, and got none; pass one "
                "or set scaled_by_context=false"
            )
        scale = 1 + self.to_scale(z)
        if groups is not None:
            scale = scale.index_select(0, groups.index)
        return episodes.pack(scale.unflatten(0, episodes.shape))
