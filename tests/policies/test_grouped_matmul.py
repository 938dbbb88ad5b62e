"""Products for one context per row and for distinct contexts with an index."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fusion_cases import MEMBERS, X, Z, normal, randomized, value_and_gradients
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mirl.policies import grouped_matmul
from mirl.policies.grouped_matmul import ContextGroups, multiply_row_by_row

close = torch.testing.assert_close


@st.composite
def groupings(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw a number of contexts and the context of each row; some may have no row."""
    groups = draw(st.integers(1, 5))
    return groups, draw(st.lists(st.integers(0, groups - 1), min_size=1, max_size=8))


# ---------------------------------------------------------------------------- the two forms of zᵀ𝕎x

Form = Callable[[Tensor, Tensor, Tensor, ContextGroups], Tensor]


def by_group(x: Tensor, z: Tensor, weight: Tensor, groups: ContextGroups) -> Tensor:
    weights = torch.einsum("gz,zxo->gxo", z, weight)
    return groups.multiply(
        x.unsqueeze(1), weights, weights.new_zeros(groups.count, weight.shape[2])
    ).squeeze(1)


def row_by_row(x: Tensor, z: Tensor, weight: Tensor, groups: ContextGroups) -> Tensor:
    return multiply_row_by_row(x, z[groups.index], weight)


def by_einsum(x: Tensor, z: Tensor, weight: Tensor, groups: ContextGroups) -> Tensor:
    return torch.einsum("bz,zxo,bx->bo", z[groups.index], weight, x)


def by_torchs_bilinear(x: Tensor, z: Tensor, weight: Tensor, groups: ContextGroups) -> Tensor:
    return F.bilinear(z[groups.index], x, weight.permute(2, 0, 1))


BOTH_FORMS = pytest.mark.parametrize("form", [by_group, row_by_row])
ROWS = [2, 0, 2, 1, 2, 2, 0]


def inputs(
    rows: int, groups: int, outputs: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Return x (rows, 6), z (groups, 5) and 𝕎 (5, 6, outputs)."""
    return tuple(
        normal(*shape, seed=i).to(dtype)
        for i, shape in enumerate([(rows, X), (groups, Z), (Z, X, outputs)])
    )


def with_gradients(
    form: Form, groups: ContextGroups, *tensors: Tensor, wanted: str = "xzw"
) -> list[Tensor | None]:
    """Return y and the gradients of a fixed random projection of it.

    ``wanted`` names the inputs x, z and w that need a gradient.
    """
    leaves = [
        tensor.detach().clone().requires_grad_(name in wanted)
        for name, tensor in zip("xzw", tensors, strict=True)
    ]
    y = form(*leaves, groups)
    if wanted:
        (y * normal(*y.shape, seed=9).to(y.dtype)).sum().backward()
    return [y, *(leaf.grad for leaf in leaves)]


@contextmanager
def rows_per_chunk(rows: int) -> Iterator[None]:
    with patch.dict(grouped_matmul.CHUNK_ELEMENTS, cpu=rows * Z * X):
        yield


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
@pytest.mark.parametrize("reference", [by_einsum, by_torchs_bilinear])
@BOTH_FORMS
@given(
    grouping=groupings(),
    in_order=st.booleans(),
    chunk=st.integers(1, 9),
    outputs=st.sampled_from([1, 4]),
)
@example(grouping=(1, [0, 0, 0, 0]), in_order=True, chunk=4, outputs=4).via(
    "one context, one chunk exactly"
)
@example(grouping=(4, [2, 0, 3, 1]), in_order=False, chunk=3, outputs=4).via(
    "all distinct, a shorter last chunk"
)
@example(grouping=(4, [3, 0, 0, 3]), in_order=False, chunk=1, outputs=4).via(
    "empty groups, a chunk per row"
)
@example(grouping=(1, [0]), in_order=True, chunk=9, outputs=4).via("a batch of one row")
@example(grouping=(3, [2, 0, 2, 1, 0]), in_order=False, chunk=1, outputs=1).via("few outputs")
@settings(max_examples=15, deadline=None, derandomize=True)
def test_both_forms_equal_trilinear_form(
    form: Form,
    reference: Form,
    dtype: torch.dtype,
    tolerance: float,
    grouping: tuple[int, list[int]],
    in_order: bool,
    chunk: int,
    outputs: int,
) -> None:
    """Both forms equal the trilinear form, in value and gradients."""
    count, rows = grouping
    groups = ContextGroups(
        torch.tensor(sorted(rows) if in_order else rows), count, ordered=in_order
    )
    tensors = inputs(len(rows), count, outputs, dtype)
    with rows_per_chunk(chunk):
        got = with_gradients(form, groups, *tensors)
    close(got, with_gradients(reference, groups, *tensors), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("in_order", [False, True])
def test_positions_share_matrix_and_shift(in_order: bool) -> None:
    """All positions of a row use the matrix and the shift of the row's context."""
    index = torch.tensor(sorted(ROWS) if in_order else ROWS)
    groups = ContextGroups(index, 4, ordered=in_order, counts=[2, 1, 4, 0])
    tensors = (normal(len(ROWS), 3, X), normal(4, X, 2, seed=1), normal(4, 2, seed=2))
    expected = value_and_gradients(
        nn.Identity(),
        tensors,
        lambda x, w, s: torch.einsum("bpx,bxo->bpo", x, w[index]) + s[index].unsqueeze(1),
    )
    close(value_and_gradients(nn.Identity(), tensors, groups.multiply), expected)


@pytest.mark.parametrize("wanted", ["", "x", "z", "w", "xz", "xw", "zw"])
@BOTH_FORMS
def test_only_required_gradients_are_computed(form: Form, wanted: str) -> None:
    """Inputs that need no gradient get none."""
    groups, tensors = ContextGroups(torch.tensor(ROWS), 3), inputs(len(ROWS), 3)
    with rows_per_chunk(2):
        got = with_gradients(form, groups, *tensors, wanted=wanted)
    close(got, with_gradients(by_einsum, groups, *tensors, wanted=wanted))


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda y: y.sum(), id="expanded"),
        pytest.param(lambda y: (y.T * normal(*y.T.shape)).sum(), id="transposed"),
        pytest.param(lambda y: y[:, :1].sum(), id="of one column"),
    ],
)
@BOTH_FORMS
def test_gradients_of_any_layout(form: Form, loss: Callable[[Tensor], Tensor]) -> None:
    """The gradient of the output may have any memory layout."""
    groups = ContextGroups(torch.tensor(ROWS), 3)
    ours, theirs = ([each.requires_grad_() for each in inputs(len(ROWS), 3)] for _ in range(2))
    with rows_per_chunk(2):
        loss(form(*ours, groups)).backward()
    loss(by_einsum(*theirs, groups)).backward()
    close([each.grad for each in ours], [each.grad for each in theirs])


@BOTH_FORMS
def test_inputs_of_any_layout(form: Form) -> None:
    """The inputs may have any memory layout."""
    x, z, weight = inputs(len(ROWS), 3)
    odd = (x.T.contiguous().T, z, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    groups = ContextGroups(torch.tensor(sorted(ROWS)), 3, ordered=True)
    got = value_and_gradients(nn.Identity(), odd, lambda x, z, w: form(x, z, w, groups))
    close(got, value_and_gradients(nn.Identity(), odd, lambda x, z, w: by_einsum(x, z, w, groups)))


@BOTH_FORMS
def test_autocast_keeps_gradient_dtype(form: Form) -> None:
    """Autocast computes in its own dtype, and gradients keep the dtype of the inputs."""
    groups, tensors = (
        ContextGroups(torch.tensor(ROWS), 3),
        inputs(len(ROWS), 3, dtype=torch.float32),
    )
    with torch.autocast("cpu", torch.bfloat16), rows_per_chunk(2):
        y, *gradients = with_gradients(form, groups, *tensors)
        in_float64 = form(*(tensor.double() for tensor in tensors), groups)
    assert y is not None
    assert y.dtype == torch.bfloat16
    assert in_float64.dtype == torch.float64
    for got, expected in zip(
        [y, *gradients], with_gradients(by_einsum, groups, *tensors), strict=True
    ):
        assert got is not None
        assert expected is not None
        assert got is y or got.dtype == torch.float32
        close(got.float(), expected, rtol=0, atol=0.02 * expected.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_row_by_row_limits_memory() -> None:
    """The row-by-row form never holds the outer products of all rows."""
    rows = 10 * X
    groups, tensors = ContextGroups(torch.arange(rows), rows), inputs(rows, rows)
    largest: dict[Form, int] = {}
    for form in (row_by_row, by_einsum):
        with rows_per_chunk(4), LargestTensor() as seen:
            with_gradients(form, groups, *tensors)
        largest[form] = seen.elements
    assert largest[row_by_row] == max(tensor.numel() for tensor in tensors) == rows * X
    assert largest[by_einsum] >= 4 * rows * X, "the measurement misses large tensors"


# ----------------------------------------------------------------------------------------- the rule


def test_prefer_grouped_depends_on_sizes() -> None:
    """Grouping is preferred if many rows share a context and the matrix is large."""

    def prefers(count: int, rows: int, multiplications: int) -> bool:
        return ContextGroups(torch.zeros(rows, dtype=torch.int64), count).prefer_grouped(
            multiplications
        )

    assert prefers(24, 1024, 64 * 128 * 128)
    assert not prefers(1024, 1024, 64 * 128 * 128), "every row has its own context"
    assert not prefers(24, 1024, 8 * 8 * 8), "the calls cost more than the products"
    assert prefers(2, 1024, 8 * 64 * 8)


@pytest.mark.parametrize("cells", [(), (3,)], ids=["vector", "cells"])
@pytest.mark.parametrize("member", ["bilinear", "hyper", "hyper-affine"])
def test_both_choices_are_equivalent(
    member: str, cells: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both choices of ``prefer_grouped`` give the same output and gradients."""
    fusion, groups = randomized(member), ContextGroups(torch.tensor(ROWS), 3)
    x, z = normal(len(ROWS), *cells, X, seed=1), normal(3, Z, seed=2)
    results = []
    for prefer in (True, False):
        monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_, prefer=prefer: prefer)
        with patch.object(
            ContextGroups, "multiply", autospec=True, side_effect=ContextGroups.multiply
        ) as grouped:
            results.append(value_and_gradients(fusion, (x, z), lambda x, z: fusion(x, z, groups)))
        assert grouped.called is prefer
    close(*results)


# --------------------------------------------------------------------------------- the whole family


@pytest.mark.parametrize("member", MEMBERS)
@given(grouping=groupings(), cells=st.sampled_from([(), (1,), (3,), (2, 2)]))
@example(grouping=(1, [0, 0, 0, 0]), cells=()).via("one context")
@example(grouping=(4, [2, 0, 3, 1]), cells=()).via("all distinct")
@example(grouping=(4, [3, 0, 0, 3]), cells=(2,)).via("empty groups")
@example(grouping=(1, [0]), cells=()).via("a batch of one row")
@settings(max_examples=12, deadline=None, derandomize=True)
def test_grouped_equals_context_per_row(
    member: str, grouping: tuple[int, list[int]], cells: tuple[int, ...]
) -> None:
    """Contexts with an index equal one context per row, in value and gradients."""
    groups, rows = grouping
    fusion, index = randomized(member), torch.tensor(rows)
    x, z = normal(len(rows), *cells, X, seed=1), normal(groups, Z, seed=2)
    with patch.object(
        ContextGroups, "prefer_grouped", return_value=True
    ):  # too few rows for the rule to choose it
        grouped, gradients = value_and_gradients(fusion, (x, z), lambda x, z: fusion(x, z, index))
    expected, expected_gradients = value_and_gradients(
        fusion, (x, z), lambda x, z: fusion(x, z[index])
    )
    close(grouped, expected)
    close(gradients, expected_gradients)


@pytest.mark.parametrize("member", MEMBERS)
def test_unused_context_gets_no_gradient(member: str) -> None:
    """A context that no row has gets no gradient."""
    fusion, index = randomized(member), torch.tensor([0, 2, 0])
    _, (_, z_gradient, *_) = value_and_gradients(
        fusion, (normal(3, 2, X), normal(3, Z)), lambda x, z: fusion(x, z, index)
    )
    assert not z_gradient[1].any()
    assert z_gradient[0].any()
    assert z_gradient[2].any()


@pytest.mark.parametrize("member", MEMBERS)
def test_context_order_is_irrelevant(member: str) -> None:
    """The order of the distinct contexts does not matter."""
    fusion, x, z = randomized(member), normal(5, 2, X), normal(3, Z)
    index, order = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 2, 0])
    close(fusion(x, z[order], torch.argsort(order)[index]), fusion(x, z, index))


@pytest.mark.parametrize("member", MEMBERS)
def test_fusions_support_autocast(member: str) -> None:
    """Every fusion computes its output and gradients under autocast."""
    fusion, index = randomized(member).float(), torch.tensor(ROWS)
    x, z = normal(len(ROWS), 2, X, seed=1).float(), normal(3, Z, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, gradients = value_and_gradients(fusion, (x, z), lambda x, z: fusion(x, z, index))
    expected, expected_gradients = value_and_gradients(
        fusion, (x, z), lambda x, z: fusion(x, z, index)
    )
    for got, wanted in zip([y.float(), *gradients], [expected, *expected_gradients], strict=True):
        assert got.dtype == torch.float32
        close(got, wanted, rtol=0, atol=0.05 * wanted.abs().max().item())
