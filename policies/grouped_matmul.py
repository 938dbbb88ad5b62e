"""Products y_b = z_bᵀ 𝕎 x_b for batches in which many rows share a context.

Grouped form: compute zᵀ𝕎 once per distinct context, sort the rows by context, and multiply all rows
of a context by its matrix in one product.

Row-by-row form: multiply the outer products z ⊗ x of a chunk of rows by 𝕎. It takes three matrix
products for forward and backward, and never holds the outer products of all rows.

Shapes in this file: B rows, P positions of a row, G distinct contexts, X features, Z context
features, O outputs.
"""

from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

GROUP_OVERHEAD: float = 400_000
"""Fixed cost of a group (kernel calls, small products), in multiplications; measured by
``benchmarks/interactions.py``."""

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Elements of z ⊗ x that the row-by-row form holds at a time, by device type: as many as fit in the
cache of a CPU, or as keep a GPU busy."""


class ContextGroups:
    """Assignment of the rows of a batch to distinct contexts.

    Args:
        index: (B,), for each row the index of its context.
        count: G, the number of distinct contexts.
        ordered: whether the rows are already sorted by context, so that no row has to be moved.
        counts: number of rows of each context, if known; it saves a synchronization with the
            device.

    Examples:
        >>> import torch
        >>> from mirl.policies.grouped_matmul import ContextGroups
        >>> groups = ContextGroups(torch.tensor([0, 1, 1, 0, 1]), count=2)
        >>> groups.counts, groups.order.tolist()
        ([2, 3], [0, 3, 1, 2, 4])
        >>> x, weights, shifts = torch.ones(5, 1, 4), torch.ones(2, 4, 3), torch.zeros(2, 3)
        >>> groups.multiply(x, weights, shifts).shape  # by two matrix products
        torch.Size([5, 1, 3])
    """

    def __init__(
        self,
        index: Int[Tensor, " batch"],
        count: int,
        *,
        ordered: bool = False,
        counts: list[int] | None = None,
    ) -> None:
        self.index = index
        self.count = count
        self.ordered = ordered
        if counts is not None:
            # fills the cached property, which then never reads from the device
            self.counts = counts

    def take(self, rows: Int[Tensor, " taken"], *, keep_order: bool = True) -> "ContextGroups":
        """Return the groups of some of the rows.

        Args:
            rows: (taken,), indices of the rows.
            keep_order: whether ``rows`` is non-decreasing, so that sorted rows stay sorted.

        Returns:
            The groups of these rows, with the same contexts.
        """
        index = self.index.index_select(0, rows)
        return ContextGroups(index, self.count, ordered=self.ordered and keep_order)

    @cached_property
    def order(self) -> Int[Tensor, " batch"]:
        """Indices of the rows, sorted by context."""
        # stable, because the order of the rows within a group decides how its sums round
        return torch.argsort(self.index, stable=True)

    @cached_property
    def inverse(self) -> Int[Tensor, " batch"]:
        """Position of each row in ``order``."""
        rows = torch.arange(len(self.index), device=self.index.device)
        return torch.empty_like(self.order).index_copy_(0, self.order, rows)

    @cached_property
    def counts(self) -> list[int]:
        """Number of rows of each context."""
        counts: list[int] = torch.bincount(self.index, minlength=self.count).tolist()
        return counts

    def spans(self, positions: int) -> list[slice]:
        """Return the slice of the sorted rows that belongs to each context.

        Args:
            positions: P, the number of positions of each row.

        Returns:
            One slice per context, into B * P sorted positions.
        """
        spans = []
        for end, count in zip(accumulate(self.counts), self.counts, strict=True):
            spans.append(slice(positions * (end - count), positions * end))
        return spans

    def prefer_grouped(self, multiplications: int) -> bool:
        """Return True if rows share contexts often enough for the grouped form to be cheaper.

        Args:
            multiplications: Z * X * O, the number of elements of 𝕎.
        """
        grouped = self.count * (2 * multiplications + GROUP_OVERHEAD)
        row_by_row = len(self.index) * multiplications
        return grouped <= row_by_row

    def multiply(
        self,
        x: Float[Tensor, "batch positions features"],
        weights: Float[Tensor, "groups features out"],
        shifts: Float[Tensor, "groups out"],
    ) -> Float[Tensor, "batch positions out"]:
        """Return x_b W[index_b] + s[index_b], computed by one matrix product per context.

        Args:
            x: features, (B, P, X).
            weights: one matrix per context, (G, X, O).
            shifts: one vector per context, (G, O).

        Returns:
            The products in the order of the rows, (B, P, O).
        """
        batch, positions, _ = x.shape
        if not self.ordered:
            x = x.index_select(0, self.order)
        # (B, P, X) -> (B * P, X)
        rows = x.reshape(batch * positions, -1)
        operands = cast_for_autocast(rows, weights, shifts)
        spans = self.spans(positions)
        products: Tensor = _PerGroup.apply(*operands, spans)  # type: ignore[no-untyped-call]
        # (B * P, O) -> (B, P, O)
        y = products.unflatten(0, (batch, positions))
        if self.ordered:
            return y
        return y.index_select(0, self.inverse)


def multiply_row_by_row(
    x: Float[Tensor, "batch features"],
    z: Float[Tensor, "batch context"],
    weight: Float[Tensor, "context features out"],
) -> Float[Tensor, "batch out"]:
    """Return z_bᵀ 𝕎 x_b for one context per row.

    With few outputs, x is multiplied by 𝕎 first, which gives (B, Z * O); otherwise z ⊗ x is
    multiplied by 𝕎, in chunks of (rows, Z * X).

    Args:
        x: features, (B, X).
        z: contexts, (B, Z).
        weight: 𝕎, (Z, X, O).

    Returns:
        The products, (B, O).
    """
    z_dim, x_dim, out_dim = weight.shape
    if 4 * out_dim <= x_dim:
        # (Z, X, O) -> (X, Z * O)
        flat = weight.transpose(0, 1).flatten(1)
        # (B, X) x (X, Z * O) -> (B, Z, O)
        by_context = (x @ flat).unflatten(1, (z_dim, out_dim))
        # (B, 1, Z) x (B, Z, O) -> (B, O)
        return torch.bmm(z.unsqueeze(1), by_context).squeeze(1)
    if torch.compiler.is_exporting():
        # an exported program cannot loop over chunks whose number depends on the batch size
        # (B, Z, 1) * (B, 1, X) -> (B, Z * X)
        outer_products = (z.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        return outer_products @ weight.flatten(0, 1)
    operands = cast_for_autocast(x, z, weight)
    y: Tensor = _RowByRow.apply(*operands)  # type: ignore[no-untyped-call]
    return y


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the dtype that autocast gives to matrix products on their device.

    PyTorch casts the operands of ``matmul`` automatically, but not those of an autograd function.

    Args:
        tensors: operands of one product, on one device.

    Returns:
        The cast tensors; the unchanged tensors outside of autocast and for float64, which
        autocast ignores.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


class _PerGroup(torch.autograd.Function):
    """Compute x[span of group g] W_g + s_g for every group g.

    The products are written in place: splitting and concatenating would copy everything twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        shifts: Tensor,
        spans: list[slice],
    ) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.spans = spans  # save_for_backward takes tensors only
        y = x.new_empty(len(x), weights.shape[2])
        for rows, weight, shift in zip(spans, weights, shifts, strict=True):
            torch.addmm(shift, x[rows], weight, out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weights = ctx.saved_tensors
        # PyTorch drops the gradients that it did not ask for
        x_needed, weights_needed, _, _ = ctx.needs_input_grad
        x_gradient = torch.empty_like(x)
        weight_gradients = torch.empty_like(weights)
        shift_gradients = y_gradient.new_empty(len(weights), weights.shape[2])
        # a group without rows gets zeros, the sums over its empty slice
        for group, rows in enumerate(ctx.spans):
            if x_needed:
                # ∂y W_gᵀ
                torch.mm(y_gradient[rows], weights[group].T, out=x_gradient[rows])
            if weights_needed:
                # xᵀ ∂y
                torch.mm(x[rows].T, y_gradient[rows], out=weight_gradients[group])
            torch.sum(y_gradient[rows], 0, out=shift_gradients[group])
        return x_gradient, weight_gradients, shift_gradients, None


class _RowByRow(torch.autograd.Function):
    """Compute z_bᵀ 𝕎 x_b from the outer products z ⊗ x, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, z, weight)
        y = x.new_empty(len(x), weight.shape[2])
        for rows in _chunks(x, weight):
            # (rows, Z, 1) * (rows, 1, X) -> (rows, Z, X)
            products = z[rows].unsqueeze(2) * x[rows].unsqueeze(1)
            # (rows, Z * X) x (Z * X, O) -> (rows, O)
            torch.mm(products.flatten(1), weight.flatten(0, 1), out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, z, weight = ctx.saved_tensors
        x_needed, z_needed, weight_needed = ctx.needs_input_grad
        # (Z, X, O) -> (Z * X, O)
        flat = weight.flatten(0, 1)
        x_gradient = torch.empty_like(x)
        z_gradient = torch.empty_like(z)
        # the sum over the chunks is too long for bfloat16
        sum_dtype = torch.float32 if flat.dtype == torch.bfloat16 else None
        weight_gradient = torch.zeros_like(flat, dtype=sum_dtype)
        for rows in _chunks(x, weight):
            # (rows, Z, 1) * (rows, 1, X) -> (rows, Z * X)
            products = (z[rows].unsqueeze(2) * x[rows].unsqueeze(1)).flatten(1)
            if weight_needed:
                weight_gradient += products.T @ y_gradient[rows]
            if x_needed or z_needed:
                # 𝕎 times the gradient of y, written into the memory of the products: (rows, Z, X)
                flat_gradient = torch.mm(y_gradient[rows], flat.T, out=products)
                gradient = flat_gradient.unflatten(1, weight.shape[:2])
                x_gradient[rows] = torch.bmm(z[rows].unsqueeze(1), gradient).squeeze(1)
                z_gradient[rows] = torch.bmm(gradient, x[rows].unsqueeze(2)).squeeze(2)
        return x_gradient, z_gradient, weight_gradient.to(weight.dtype).view_as(weight)


def _chunks(x: Tensor, weight: Tensor) -> list[slice]:
    """Return slices of rows, each with about ``CHUNK_ELEMENTS`` elements of z ⊗ x."""
    elements = CHUNK_ELEMENTS.get(x.device.type, 2**20)
    size = max(1, elements // (weight.shape[0] * weight.shape[1]))
    return [slice(start, start + size) for start in range(0, len(x), size)]
