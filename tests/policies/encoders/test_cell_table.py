"""Cells as a table: gathered, without unused rows, and convolved."""

import pytest
import torch
from torch import Tensor, nn

from mirl.policies.encoders import CellTable

close = torch.testing.assert_close
SIZES = [(5, 5, 3), (7, 7, 3), (6, 9, 3), (8, 5, 2), (4, 4, 1)]


def table_of(height: int, width: int, n_rows: int = 9, channels: int = 4) -> CellTable:
    """Return three observations whose cells have some of the rows of a table."""
    rows = torch.randn(n_rows, channels, requires_grad=True)
    return CellTable(rows, torch.randint(1, n_rows - 1, (3, height * width)))


def convolved_cells(table: CellTable, convolution: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Return PyTorch's convolution of the gathered cells, with the channels last."""
    image = table.gather().transpose(1, 2).unflatten(2, size)
    outputs: Tensor = convolution(image)
    return outputs.permute(0, 2, 3, 1)


@pytest.mark.parametrize(("height", "width", "kernel"), SIZES)
def test_convolve_equals_convolution(height: int, width: int, kernel: int) -> None:
    """The outputs are those of a convolution, for every size of the map and the kernel."""
    table = table_of(height, width)
    convolution = nn.Conv2d(4, 6, kernel)
    expected = convolved_cells(table, convolution, (height, width))
    close(table.convolve(convolution, (height, width)), expected)


@pytest.mark.parametrize(("height", "width", "kernel"), SIZES)
def test_convolve_has_convolution_gradients(height: int, width: int, kernel: int) -> None:
    """The gradients of the table, the kernel and the bias are those of a convolution."""
    table = table_of(height, width)
    convolution = nn.Conv2d(4, 6, kernel)
    inputs = [table.rows, *convolution.parameters()]
    expected = convolved_cells(table, convolution, (height, width))
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    convolved = table.convolve(convolution, (height, width))
    close(torch.autograd.grad((convolved * weights).sum(), inputs), gradients)


def test_convolve_passes_gradcheck() -> None:
    """The gradient agrees with finite differences."""
    table = table_of(5, 6)
    convolution = nn.Conv2d(4, 2, 3).double()

    def convolve(rows: Tensor) -> Tensor:
        return CellTable(rows, table.row_ids).convolve(convolution, (5, 6))

    assert torch.autograd.gradcheck(convolve, table.rows.detach().double().requires_grad_())


def test_bfloat16_sums_are_float32() -> None:
    """Under autocast the sums and their gradient stay in float32: 4,000 equal cells count."""
    table = CellTable(torch.ones(1, 4, requires_grad=True), torch.zeros(4000, 9, dtype=torch.long))
    convolution = nn.Conv2d(4, 1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        convolved = table.convolve(convolution, (3, 3))
    assert convolved.dtype == torch.float32
    (gradient,) = torch.autograd.grad(convolved.sum(), table.rows)
    kernel_sums = convolution.weight.sum((0, 2, 3))
    close(gradient[0], 4000 * kernel_sums, rtol=0.02, atol=40)


def test_unused_rows_are_left_out() -> None:
    """Without its unused rows, a table has the same cells."""
    table = table_of(5, 5)
    smaller = table.without_unused()
    assert len(smaller.rows) == len(table.row_ids.unique())
    close(smaller.gather(), table.gather())


def test_exported_program_keeps_all_rows() -> None:
    """The number of used rows depends on the data, which an exported program cannot know."""

    class Gather(nn.Module):
        def forward(self, rows: Tensor, index: Tensor) -> Tensor:
            return CellTable(rows, index).without_unused().gather()

    table = table_of(5, 5)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Gather(), (table.rows, table.row_ids), dynamic_shapes=(None, {0: batch})
    )
    # other rows, and another number of observations
    index = torch.randint(0, 9, (5, 25))
    close(exported.module()(table.rows, index), CellTable(table.rows, index).gather())
