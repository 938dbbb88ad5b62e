"""One context per row, or distinct contexts with an index: the same function, with the same gradients."""

import pytest
import torch
from fusion_members import MEMBERS, X, Z, normal, randomised, value_and_gradients
from hypothesis import example, given, settings
from hypothesis import strategies as st

close = torch.testing.assert_close


@st.composite
def groupings(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A number of contexts, and for each row which of them is its own; some may have no row."""
    groups = draw(st.integers(1, 5))
    return groups, draw(st.lists(st.integers(0, groups - 1), min_size=1, max_size=8))


@pytest.mark.parametrize("member", MEMBERS)
@given(grouping=groupings(), cells=st.sampled_from([(), (1,), (3,), (2, 2)]))
@example(grouping=(1, [0, 0, 0, 0]), cells=()).via("one context")
@example(grouping=(4, [2, 0, 3, 1]), cells=()).via("all distinct")
@example(grouping=(4, [3, 0, 0, 3]), cells=(2,)).via("empty groups")
@example(grouping=(1, [0]), cells=()).via("a batch of one row")
@settings(max_examples=12, deadline=None, derandomize=True)
def test_grouped_equals_one_context_per_row(
    member: str, grouping: tuple[int, list[int]], cells: tuple[int, ...]
) -> None:
    groups, rows = grouping
    fusion, index = randomised(member), torch.tensor(rows)
    x, z = normal(len(rows), *cells, X, seed=1), normal(groups, Z, seed=2)
    grouped, gradients = value_and_gradients(fusion, (x, z), lambda x, z: fusion(x, z, index))
    expected, expected_gradients = value_and_gradients(fusion, (x, z), lambda x, z: fusion(x, z[index]))
    close(grouped, expected)
    close(gradients, expected_gradients)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_context_without_rows_gets_no_gradient(member: str) -> None:
    fusion, index = randomised(member), torch.tensor([0, 2, 0])
    _, (_, z_gradient, *_) = value_and_gradients(
        fusion, (normal(3, 2, X), normal(3, Z)), lambda x, z: fusion(x, z, index)
    )
    assert not z_gradient[1].any()
    assert z_gradient[0].any()
    assert z_gradient[2].any()


@pytest.mark.parametrize("member", MEMBERS)
def test_the_contexts_order_does_not_matter(member: str) -> None:
    fusion, x, z = randomised(member), normal(5, 2, X), normal(3, Z)
    index, order = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 2, 0])
    close(fusion(x, z[order], torch.argsort(order)[index]), fusion(x, z, index))
