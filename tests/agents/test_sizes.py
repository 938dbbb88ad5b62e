"""Batches have few sizes, each at least what was asked for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mirl.agents.on_policy.storage import N_BUCKETS, pad_to_bucket


@given(st.integers(1, 500))
def test_few_sizes_serve_all_counts(most: int) -> None:
    sizes = [len(pad_to_bucket(np.zeros(count, np.int64), most)) for count in range(most + 1)]
    assert len(set(sizes[1:])) <= N_BUCKETS
    assert all(0 <= size - count <= -(-most // N_BUCKETS) for count, size in enumerate(sizes))
    assert sizes[0] == 0


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_only_the_last_row_is_repeated(count: int, most: int) -> None:
    rows = pad_to_bucket(np.arange(count), most)
    np.testing.assert_array_equal(rows, np.minimum(np.arange(len(rows)), count - 1))
