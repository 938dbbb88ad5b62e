"""The whole family: loops in float64 with random weights, shapes, gradients, initialization."""

import numpy as np
import pytest
import torch
from fusion_cases import (
    MEMBERS,
    VECTOR_CONFIGS,
    O,
    X,
    Z,
    assert_equals_finite_differences,
    fresh,
    normal,
    randomized,
)
from fusion_loops import by_loop

close = torch.testing.assert_close


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_fusion_equals_loop(member: str) -> None:
    """Every fusion of vectors equals its equation, computed by loops over single numbers."""
    fusion, x, z = randomized(member), normal(4, X, seed=1), normal(4, Z, seed=2)
    expected = np.stack([by_loop(fusion, x[b].numpy(), z[b].numpy()) for b in range(4)])
    close(fusion(x, z), torch.from_numpy(expected))


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_fusion_of_cells_equals_loop(member: str) -> None:
    """Every fusion of cells equals its equation for each cell."""
    fusion, x, z = randomized(member), normal(3, 2, 2, X, seed=1), normal(3, Z, seed=2)
    y = fusion(x, z)
    assert y.shape == (3, 2, 2, O)
    for b, row, column in np.ndindex(3, 2, 2):
        close(
            y[b, row, column],
            torch.from_numpy(by_loop(fusion, x[b, row, column].numpy(), z[b].numpy())),
        )


@pytest.mark.parametrize("member", MEMBERS)
def test_permuted_batch_permutes_output(member: str) -> None:
    """Permuting the rows permutes the output."""
    fusion, x, z = randomized(member), normal(7, 3, X), normal(7, Z, seed=1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(order, torch.arange(7))
    close(fusion(x[order], z[order]), fusion(x, z)[order])


@pytest.mark.parametrize("member", MEMBERS)
def test_permuted_index_permutes_output(member: str) -> None:
    """Permuting the rows and their index permutes the output."""
    fusion, x, z = randomized(member), normal(7, 3, X), normal(3, Z, seed=1)
    index, order = torch.tensor([2, 0, 0, 1, 2, 2, 0]), torch.tensor([4, 6, 0, 3, 1, 5, 2])
    close(fusion(x[order], z, index[order]), fusion(x, z, index)[order])


@pytest.mark.parametrize("member", MEMBERS)
def test_leading_dimensions_equal_flat_batch(member: str) -> None:
    """Several leading dimensions give the output of the flattened batch."""
    fusion, x, z = randomized(member), normal(2, 3, 4, X), normal(2, 3, 4, Z, seed=1)
    y = fusion(x, z)
    assert y.shape == (2, 3, 4, O)
    close(y.reshape(24, O), fusion(x.reshape(24, X), z.reshape(24, Z)))


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_shared_context_equals_loop_over_positions(member: str) -> None:
    """Cells that share a context equal one call per position."""
    fusion, x, z = randomized(member), normal(3, 4, X), normal(3, Z, seed=1)
    close(fusion(x, z), torch.stack([fusion(x[:, p], z) for p in range(4)], dim=1))


@pytest.mark.parametrize("indexed", [False, True], ids=["rows", "grouped"])
@pytest.mark.parametrize("cells", [(), (2,)], ids=["vector", "cells"])
@pytest.mark.parametrize("member", MEMBERS)
def test_gradients_equal_finite_differences(
    member: str, cells: tuple[int, ...], indexed: bool
) -> None:
    fusion = randomized(member, 4, 3, 2)
    index = torch.tensor([1, 0, 1]) if indexed else None
    x = normal(3, *cells, 4)
    z = normal(2 if indexed else 3, 3, seed=1)
    assert_equals_finite_differences(fusion, x, z, index)


@pytest.mark.parametrize("member", MEMBERS)
def test_initial_output_ignores_context(member: str) -> None:
    """At initialization the output does not depend on the context."""
    fusion, x = fresh(member), normal(4, 3, X)
    close(fusion(x, normal(4, Z, seed=1)), fusion(x, normal(4, Z, seed=2)), rtol=0, atol=0)


@pytest.mark.parametrize("member", MEMBERS)
def test_trained_output_depends_on_context(member: str) -> None:
    """With random weights the output depends on the context of every row."""
    fusion, x = randomized(member), normal(4, 3, X)
    assert (fusion(x, normal(4, Z, seed=1)) - fusion(x, normal(4, Z, seed=2))).abs().amax(
        dim=(1, 2)
    ).min() > 1e-3


@pytest.mark.parametrize("member", MEMBERS)
def test_first_step_enables_context_gradient(member: str) -> None:
    """The context has no gradient at initialization and has one after one gradient step."""
    fusion, x, z = fresh(member), normal(8, 3, X), normal(8, Z, seed=1).requires_grad_()
    target = normal(8, 3, O, seed=2)
    (fusion(x, z) - target).square().mean().backward()
    assert z.grad is not None
    assert not z.grad.any()
    torch.optim.SGD(fusion.parameters(), lr=0.1).step()
    (fusion(x, z) - target).square().mean().backward()
    assert z.grad.any()


@pytest.mark.parametrize(
    "member", sorted({*MEMBERS} - {"adapter", "concat-hidden", "product-narrow"})
)
def test_initial_map_is_orthogonal(member: str) -> None:
    """At initialization the fusion is an orthogonal map times the gain."""
    fusion = fresh(member, X, Z, X)
    jacobian = torch.autograd.functional.jacobian(lambda x: fusion(x, normal(1, Z)), normal(1, X))[
        0, :, 0
    ]
    close(jacobian @ jacobian.T, 2 * torch.eye(X, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "context", "index"),
    [
        pytest.param((4, X + 1), (4, Z), None, id="wrong features"),
        pytest.param((4, X), (4, Z + 1), None, id="wrong context"),
        pytest.param((4, X), (3, Z), None, id="other number of rows"),
        pytest.param((4, X), (1, Z), None, id="one context for all, without an index"),
        pytest.param((1, X), (4, Z), None, id="one row for all contexts"),
        pytest.param((4, X), (4, 1, Z), None, id="the (B, 1, n) form of SB3's minibatches"),
        pytest.param((4, 1, X), (1, 4, Z), None, id="crossed leading dimensions"),
        pytest.param((4, 2, X), (4, 3, Z), None, id="other number of positions"),
        pytest.param((4, 2, X), (2, Z), None, id="contexts per position"),
        pytest.param((4, X), (Z,), None, id="a single context"),
        pytest.param((4, X), (2, Z), (3,), id="index too short"),
        pytest.param((4, X), (2, Z), (1,), id="one index for all"),
        pytest.param((4, X), (2, Z), (4, 1), id="index with a dimension too many"),
        pytest.param((4, X), (2, 1, Z), (4,), id="grouped contexts with a dimension too many"),
    ],
)
@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.usefixtures("as_users_run_it")
def test_wrong_shapes_raise(
    member: str, features: tuple[int, ...], context: tuple[int, ...], index: tuple[int, ...] | None
) -> None:
    where = None if index is None else torch.zeros(index, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expects features|index must give"):
        randomized(member)(normal(*features), normal(*context), where)


def test_shape_error_names_both_shapes() -> None:
    """The error names the expected shapes and the given ones."""
    with pytest.raises(
        ValueError,
        match=r"Film expects features \(\.\.\., 6\) and context \(4, 5\), got \(4, 6\) and",
    ):
        randomized("film")(normal(4, X), normal(4, 1, Z))
