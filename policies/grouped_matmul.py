"""Rows that share a context: which one each row has, and the two cheapest forms of y_b = z_bᵀ 𝕎 x_b.

Grouped: zᵀ𝕎 is formed once per distinct context, and the rows of a context, side by side, meet it in one matrix
product. Row by row: the products z ⊗ x of a few rows at a time meet 𝕎, which costs three matrix products forward and
backward and never holds what all rows would need.
"""

from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

GROUP_OVERHEAD: float = 400_000
"""What a group costs beside arithmetic (its calls, its own small products), in multiplications; measured by
``benchmarks/interactions.py``."""

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Products z ⊗ x held at a time by the row-by-row form: what a processor's cache holds, and what keeps a GPU busy."""


class ContextGroups:
    """Which of ``count`` distinct contexts each row of a batch has.

    :param index: (B,), for each row its context.
    :param ordered: the rows stand sorted by context already, so that nothing has to be moved.
    :param counts: the number of rows of each context, where it is known: the device need not be asked for it.
    """

    def __init__(
        self,
        index: Int[Tensor, " batch"],
        count: int,
        *,
        ordered: bool = False,
        counts: list[int] | None = None,
    ) -> None:
        self.index, self.count, self.ordered = index, count, ordered
        if counts is not None:
            self.counts = counts

    def take(self, rows: Int[Tensor, " taken"], *, keep_order: bool = True) -> "ContextGroups":
        """The groups of some rows, which do not descend unless it is said."""
        return ContextGroups(
            self.index.index_select(0, rows), self.count, ordered=self.ordered and keep_order
        )

    @cached_property
    def order(self) -> Int[Tensor, " batch"]:
        """The rows, sorted by context."""
        return torch.argsort(self.index, stable=True)

    @cached_property
    def inverse(self) -> Int[Tensor, " batch"]:
        """Where each row stands in ``order``."""
        return torch.empty_like(self.order).index_copy_(
            0, self.order, torch.arange(len(self.index), device=self.index.device)
        )

    @cached_property
    def counts(self) -> list[int]:
        """The number of rows of each context."""
        counts: list[int] = torch.bincount(self.index, minlength=self.count).tolist()
        return counts

    def spans(self, positions: int) -> list[slice]:
        """Where the sorted rows of each context stand, at so many positions each."""
        ends = list(accumulate(self.counts))
        return [
            slice(positions * (end - count), positions * end)
            for end, count in zip(ends, self.counts, strict=True)
        ]

    def prefer_grouped(self, multiplications: int) -> bool:
        """Whether rows share contexts often enough for the grouped form, given Z · X · O."""
        return (
            self.count * (2 * multiplications + GROUP_OVERHEAD) <= len(self.index) * multiplications
        )

    def multiply(
        self,
        x: Float[Tensor, "batch positions features"],
        weights: Float[Tensor, "groups features out"],
        shifts: Float[Tensor, "groups out"],
    ) -> Float[Tensor, "batch positions out"]:
        """x_b W[index_b] + s[index_b], one matrix product per context."""
        batch, positions, _ = x.shape
        rows = (x if self.ordered else x.index_select(0, self.order)).reshape(batch * positions, -1)
        products = _PerGroup.apply(*as_autocast(rows, weights, shifts), self.spans(positions))  # type: ignore[no-untyped-call]
        y: Tensor = products.unflatten(0, (batch, positions))
        return y if self.ordered else y.index_select(0, self.inverse)


def multiply_row_by_row(
    x: Float[Tensor, "batch features"],
    z: Float[Tensor, "batch context"],
    weight: Float[Tensor, "context features out"],
) -> Float[Tensor, "batch out"]:
    """z_bᵀ 𝕎 x_b for a context per row: with few outputs x meets 𝕎 first, (B, Z·O), else z ⊗ x does, (rows, Z·X)."""
    z_dim, x_dim, out_dim = weight.shape
    if 4 * out_dim <= x_dim:
        by_context = (x @ weight.transpose(0, 1).flatten(1)).unflatten(1, (z_dim, out_dim))
        return torch.bmm(z.unsqueeze(1), by_context).squeeze(1)
    y: Tensor = _RowByRow.apply(*as_autocast(x, z, weight))  # type: ignore[no-untyped-call]
    return y


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type that matrix products have here; PyTorch casts for ``matmul``, and not for all others."""
    device = tensors[0].device.type
    if (
        not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64
    ):  # which autocast leaves alone
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


class _PerGroup(torch.autograd.Function):
    """x[span of group g] W_g + s_g for every g, written in place: splitting and joining would copy all of it twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, shifts: Tensor, spans: list[slice]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.spans = spans
        y = x.new_empty(len(x), weights.shape[2])
        for rows, weight, shift in zip(spans, weights, shifts, strict=True):
            torch.addmm(shift, x[rows], weight, out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weights = ctx.saved_tensors
        x_counts, weights_count, _, _ = (
            ctx.needs_input_grad
        )  # PyTorch drops what we return for the others
        x_gradient, weight_gradients = torch.empty_like(x), torch.empty_like(weights)
        shift_gradients = y_gradient.new_empty(len(weights), weights.shape[2])
        for group, rows in enumerate(ctx.spans):
            if x_counts:
                torch.mm(y_gradient[rows], weights[group].T, out=x_gradient[rows])
            if weights_count:
                torch.mm(x[rows].T, y_gradient[rows], out=weight_gradients[group])
            torch.sum(y_gradient[rows], 0, out=shift_gradients[group])
        return x_gradient, weight_gradients, shift_gradients, None


class _RowByRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, z, weight)
        y = x.new_empty(len(x), weight.shape[2])
        for rows in _chunks(x, weight):
            products = z[rows].unsqueeze(2) * x[rows].unsqueeze(1)
            torch.mm(products.flatten(1), weight.flatten(0, 1), out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, z, weight = ctx.saved_tensors
        x_counts, z_counts, weight_counts = ctx.needs_input_grad
        flat = weight.flatten(0, 1)
        x_gradient, z_gradient = torch.empty_like(x), torch.empty_like(z)
        weight_gradient = torch.zeros_like(
            flat, dtype=torch.float32 if flat.dtype == torch.bfloat16 else None
        )
        for rows in _chunks(x, weight):
            products = (z[rows].unsqueeze(2) * x[rows].unsqueeze(1)).flatten(1)
            if weight_counts:
                weight_gradient += products.T @ y_gradient[rows]
            if x_counts or z_counts:  # 𝕎 g, (rows, Z, X), in the memory of the products
                behind = torch.mm(y_gradient[rows], flat.T, out=products).unflatten(
                    1, weight.shape[:2]
                )
                x_gradient[rows] = torch.bmm(z[rows].unsqueeze(1), behind).squeeze(1)
                z_gradient[rows] = torch.bmm(behind, x[rows].unsqueeze(2)).squeeze(2)
        return x_gradient, z_gradient, weight_gradient.to(weight.dtype).view_as(weight)


def _chunks(x: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS.get(x.device.type, 2**20) // (weight.shape[0] * weight.shape[1]))
    return [slice(start, start + size) for start in range(0, len(x), size)]
