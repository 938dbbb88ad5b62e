"""Cells of few types as rows of a table, so that each type is computed once.

Shapes: R rows of the table, B observations, P cells of an observation, C channels.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class CellTable(NamedTuple):
    """Cells of a batch as rows of a table.

    Examples:
        >>> import torch
        >>> from mirl.policies.encoders import CellTable
        >>> wall, door = [0.0, 1.0], [2.0, 0.0]
        >>> table = CellTable(torch.tensor([wall, door]), torch.tensor([[0, 0, 1]]))
        >>> table.gather().tolist()
        [[[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]]]
    """

    rows: Float[Tensor, "rows channels"]
    """Features of each cell type, (R, C)."""
    row_ids: Int[Tensor, "batch cells"]
    """The row of each cell, (B, P)."""

    def gather(self) -> Float[Tensor, "batch cells channels"]:
        """Return the features of all cells, (B, P, C)."""
        return gather_rows(self.rows, self.row_ids)

    def without_unused(self) -> "CellTable":
        """Return the table without unused rows, if it is on a CPU.

        The number of unused rows depends on the data: the host would have to wait for a GPU to
        count them, and the shapes of a traced program cannot depend on it. In these two cases the
        table is unchanged.
        """
        if not self._has_countable_rows:
            return self
        used = torch.zeros(len(self.rows), dtype=torch.bool)
        used[self.row_ids.flatten()] = True
        # the new index of a row is the number of used rows before it
        new_index = used.cumsum(0) - 1
        return CellTable(self.rows[used], new_index[self.row_ids])

    @property
    def _has_countable_rows(self) -> bool:
        """True on a CPU and outside of a traced program."""
        return self.row_ids.device.type == "cpu" and not torch.compiler.is_compiling()

    def is_worth_convolving(self) -> bool:
        """Return True if ``convolve`` is faster than a convolution of the gathered cells.

        On a GPU it never is: the sums of its backward pass collide in memory.
        """
        return self._has_countable_rows and 2 * len(self.rows) <= self.row_ids.numel()

    def convolve(
        self, convolution: nn.Conv2d, size: tuple[int, int]
    ) -> Float[Tensor, "batch rows columns out"]:
        """Return the convolution of the cells: y_p = b + Σ_k W_k x_{p + k}.

        W_k x is computed once for each row of the table and each offset k of the kernel, and every
        position adds up the results that belong to it.

        Args:
            convolution: a convolution without padding and with a stride of 1.
            size: height and width of the cells.

        Returns:
            The outputs with the channels last, (B, H', W', O).
        """
        height, width = convolution.kernel_size
        n_offsets = height * width
        out_dim = convolution.out_channels
        # (O, C, h, w) -> (h, w, O, C) -> (K * O, C), K offsets
        weight = convolution.weight.permute(2, 3, 0, 1).reshape(n_offsets * out_dim, -1)
        assert convolution.bias is not None
        # each sum has one term of every offset, so that the bias may belong to the first offset
        bias = F.pad(convolution.bias, (0, (n_offsets - 1) * out_dim))
        # (R, K * O) -> (R * K, O), in float32 at least, because its gradient is a long sum
        terms = F.linear(self.rows, weight, bias).reshape(-1, out_dim)
        if terms.dtype == torch.bfloat16:
            terms = terms.float()
        # (B, P) -> (B, H, W) -> (B, H', W', h, w) -> (B * H' * W', K)
        windows = self.row_ids.unflatten(1, size).unfold(1, height, 1).unfold(2, width, 1)
        offsets = torch.arange(n_offsets, device=self.row_ids.device)
        term_index = windows.reshape(-1, n_offsets) * n_offsets + offsets
        sums: Tensor = _SumOfRows.apply(terms, term_index)  # type: ignore[no-untyped-call]
        # (B * H' * W', O) -> (B, H', W', O)
        return sums.unflatten(0, windows.shape[:3])


def gather_rows(
    table: Float[Tensor, "rows channels"], index: Int[Tensor, "batch cells"]
) -> Float[Tensor, "batch cells channels"]:
    """Gather rows of a table, in float32 at least.

    Args:
        table: (R, C).
        index: (B, P), indices of rows.

    Returns:
        The rows, (B, P, C).
    """
    if table.dtype == torch.bfloat16:
        table = table.float()  # the gradient of index_select is a long sum
    # (R, C) -> (B * P, C) -> (B, P, C)
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


class _SumOfRows(torch.autograd.Function):
    """Compute Σ_k rows[index[:, k]] as ``embedding_bag`` does, with a faster backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.n_rows = len(rows)  # save_for_backward takes tensors only
        return F.embedding_bag(index, rows, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        rows_gradient = gradient.new_zeros(ctx.n_rows, gradient.shape[1])
        for column in index.T:
            rows_gradient.index_add_(0, column, gradient)
        return rows_gradient, None
