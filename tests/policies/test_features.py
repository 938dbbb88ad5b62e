"""Values that pass between the parts of a network: distinct rows, contexts and features."""

from unittest.mock import patch

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mirl.policies.features import Context, Features, unique_rows
from mirl.policies.grouped_matmul import ContextGroups

close = torch.testing.assert_close


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1)
    )
)
@example([[0, 0], [0, 0]])
@example([[1, 2], [2, 1], [1, 2]])
@settings(max_examples=60, deadline=None, derandomize=True)
def test_unique_rows_equal_torch_unique(rows: list[list[int]]) -> None:
    """The distinct rows are those that ``torch.unique`` finds."""
    tokens = torch.tensor(rows)
    distinct, groups = unique_rows(tokens)
    close(distinct.index_select(0, groups.index), tokens)
    assert sorted(distinct.tolist()) == torch.unique(tokens, dim=0).tolist()
    assert groups.count == len(distinct)


def test_unique_rows_of_long_missions() -> None:
    """A large batch of few long missions is reduced to the distinct missions."""
    texts = torch.randint(0, 111, (17, 80), generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 17, (2048,), generator=torch.Generator().manual_seed(1))
    distinct, groups = unique_rows(texts[index])
    assert len(distinct) == groups.count == 17
    close(distinct[groups.index], texts[index])


def test_hash_collision_falls_back_to_unique() -> None:
    """After a hash collision the rows themselves are compared."""
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])
    unique = torch.unique

    def collide(values: Tensor, **options: object) -> tuple[Tensor, ...]:
        """Give all hashes one value, and compare rows as usual."""
        result: tuple[Tensor, ...] = unique(
            values if "dim" in options else torch.zeros_like(values), **options
        )  # type: ignore[arg-type]
        return result

    with patch.object(torch, "unique", side_effect=collide) as spy:
        distinct, groups = unique_rows(tokens)
    assert spy.call_args.kwargs["dim"] == 0, "the hashes collided, and the rows were not compared"
    close(distinct.index_select(0, groups.index), tokens)
    assert len(distinct) == groups.count == 3


def grouped_context() -> Context:
    """Return two distinct contexts for four rows."""
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return Context(values, ContextGroups(torch.tensor([0, 0, 1, 1]), 2, ordered=True))


def test_context_per_row() -> None:
    """Every row gets its own context, with and without an index."""
    context = grouped_context()
    expected = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]])
    close(context.per_row(), expected)
    close(Context(expected, None).per_row(), expected)


def test_taken_context_equals_selected_rows() -> None:
    """Taking rows of a context selects them, and keeps sorted rows sorted only if told so."""
    context = grouped_context()
    rows = torch.tensor([3, 0])
    taken = context.take(rows, keep_order=False)
    close(taken.per_row(), context.per_row()[rows])
    assert taken.groups is not None
    assert not taken.groups.ordered
    sorted_rows = context.take(torch.tensor([0, 3]))
    assert sorted_rows.groups is not None
    assert sorted_rows.groups.ordered


def test_selected_features_without_optional_values() -> None:
    """Selecting rows keeps a missing task and a missing action mask None."""
    features = Features(torch.arange(8.0).reshape(4, 2), grouped_context())
    selected = features.index_select(0, torch.tensor([1, 2]))
    close(selected.vector, features.vector[1:3])
    close(selected.context.per_row(), features.context.per_row()[1:3])
    assert selected.task is None
    assert selected.action_mask is None
