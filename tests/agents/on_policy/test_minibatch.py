"""The order of the rows of a minibatch, their hashes, and the sizes of batches."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mirl.agents.on_policy.minibatch import (
    N_BUCKETS,
    ObservationHashes,
    pad_to_bucket,
    sort_rows,
)


@given(st.integers(1, 500))
def test_batches_have_few_sizes(most: int) -> None:
    """Padded batches have few sizes, each at least the number of rows."""
    sizes = [len(pad_to_bucket(np.zeros(count, np.int64), most)) for count in range(most + 1)]
    assert len(set(sizes[1:])) <= N_BUCKETS
    assert all(0 <= size - count <= -(-most // N_BUCKETS) for count, size in enumerate(sizes))
    assert sizes[0] == 0


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_padding_repeats_last_row(count: int, most: int) -> None:
    rows = pad_to_bucket(np.arange(count), most)
    np.testing.assert_array_equal(rows, np.minimum(np.arange(len(rows)), count - 1))


@given(
    arrays(np.uint8, (12, 4), elements=st.integers(0, 3)),
    st.lists(st.integers(0, 300), min_size=12, max_size=12),
)
def test_hashes_equal_for_equal_observations(image: NDArray[np.uint8], numbers: list[int]) -> None:
    """Two hashes are equal if and only if the observations are."""
    parts = {"image": spaces.Box(0, 3, (4,), np.uint8), "number": spaces.Discrete(301)}
    assert ObservationHashes.supports(parts)
    hashes = ObservationHashes(parts, (1, 12))
    hashes.store(0, {"image": image, "number": np.array(numbers)})
    rows = [(*row, number) for row, number in zip(image.tolist(), numbers, strict=True)]
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            assert (hashes.values[0, i] == hashes.values[0, j]) == (one == other)


@pytest.mark.parametrize(
    "part",
    [
        spaces.Box(0, 1, (3,), np.float32),
        spaces.Box(-1, 1, (3,), np.int8),
        spaces.Box(0, 255, (84, 84, 3), np.uint8),
        spaces.Box(0, 2**20, (3,), np.int32),
        spaces.Discrete(2**20),
    ],
    ids=str,
)
def test_rarely_equal_observations_unsupported(part: spaces.Space[Any]) -> None:
    """Observations that are hardly ever equal are not hashed."""
    assert not ObservationHashes.supports({"part": part})


def test_rows_are_sorted_by_context() -> None:
    """Rows are sorted by context, then by hash; equal hashes share an observation."""
    contexts = np.array([1, 0, 1, 0, 1], np.int32)
    hashes = np.array([7, 9, 7, 8, 6], np.uint64)
    order = sort_rows(5, contexts, hashes)
    assert order.order.tolist() == [3, 1, 4, 0, 2]
    assert order.inverse is not None
    assert order.inverse.tolist() == [0, 1, 2, 3, 3]
    assert order.n_unique == 4


def test_rows_without_hashes_share_nothing() -> None:
    order = sort_rows(3, np.array([1, 0, 1], np.int32), None)
    assert order.order.tolist() == [1, 0, 2]
    assert order.inverse is None
