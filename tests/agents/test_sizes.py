"""Batches have few sizes, each at least what was asked for."""

from hypothesis import given
from hypothesis import strategies as st

from mirl.agents.sizes import SIZES, missing_rows


@given(st.integers(1, 2000))
def test_few_sizes_serve_all_counts(most: int) -> None:
    sizes = {count + missing_rows(count, most) for count in range(1, most + 1)}
    assert len(sizes) <= SIZES
    assert all(0 <= missing_rows(count, most) <= -(-most // SIZES) for count in range(most + 1))
    assert missing_rows(0, most) == 0
