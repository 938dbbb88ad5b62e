"""Columns store the values of one observation key and return them."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from mirl.agents.on_policy.bit_packing import BitPacking
from mirl.agents.on_policy.storage import CategoricalColumn, PackedColumn, PlainColumn, build_column
from mirl.policies.features import UniqueRows

close = torch.testing.assert_close
CPU = torch.device("cpu")


@st.composite
def integer_boxes(draw: st.DrawFn) -> spaces.Box:
    """Draw boxes with any bounds within their type, often worth packing."""
    dtype = draw(
        st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
    )
    shape, limits = draw(array_shapes(min_dims=0, max_dims=3, max_side=4)), np.iinfo(dtype)
    highest = draw(st.sampled_from([1, 3, 10, min(255, limits.max), limits.max]))
    high = draw(arrays(dtype, shape, elements=st.integers(0, highest)))
    low = draw(
        arrays(dtype, shape, elements=st.integers(draw(st.sampled_from([0, limits.min])), 0))
    )
    return spaces.Box(low, high, dtype=dtype)  # type: ignore[arg-type]


@given(integer_boxes(), st.integers(0, 2**32 - 1))
def test_stored_values_are_returned(space: spaces.Box, seed: int) -> None:
    """A column returns the values that were stored, in no more memory."""
    n_steps, n_envs, rng = 3, 4, np.random.default_rng(seed)
    size = (n_steps, n_envs, *space.shape)
    values = rng.integers(space.low, space.high, size, dtype=space.dtype.type, endpoint=True)
    column, rows = (
        build_column("values", space, (n_steps, n_envs), CPU),
        rng.integers(n_steps * n_envs, size=7),
    )
    assert isinstance(column, PackedColumn) is BitPacking.supports(space)
    for timestep, current in enumerate(values):
        close(column.store(timestep, current), torch.tensor(current), rtol=0, atol=0)
    close(column.take(rows), torch.tensor(values.reshape(-1, *space.shape)[rows]), rtol=0, atol=0)
    assert column.nbytes <= values.nbytes


@pytest.mark.parametrize("wrong", [4, 300, -1, -0.5])
def test_values_outside_bounds_raise(wrong: float) -> None:
    """Values outside the bounds of the space are an error that names the key."""
    column = build_column("lamp", spaces.Box(0, 3, (2, 2), np.int64), (1, 3), CPU)
    values = np.zeros((3, 2, 2), np.array(wrong).dtype)
    column.store(0, values)
    values[1, 0, 1] = wrong
    with pytest.raises(ValueError, match=r"'lamp' within the bounds of its space"):
        column.store(0, values)


@pytest.mark.parametrize(
    ("n", "size"), [(2, 1), (256, 1), (257, 2), (2**15, 2), (2**15 + 1, 4), (2**31 + 1, 8)]
)
def test_discrete_values_use_smallest_dtype(n: int, size: int) -> None:
    """A Discrete value takes no more bytes than the largest one needs."""
    column = PlainColumn(spaces.Discrete(n), (1, 2), CPU)
    column.store(0, np.array([0, n - 1]))
    assert column.nbytes == 2 * size
    close(column.take(np.array([1, 0])), torch.tensor([n - 1, 0]))


def test_negative_discrete_values() -> None:
    """Values of a Discrete space that starts below zero are returned."""
    column = PlainColumn(spaces.Discrete(3, start=-1), (1, 3), CPU)
    column.store(0, np.array([-1, 0, 1]))
    close(column.take(np.arange(3)), torch.tensor([-1, 0, 1]))


def assert_unique_rows(
    distinct: UniqueRows | torch.Tensor, expected: NDArray[Any], *, ordered: bool
) -> None:
    """Check the distinct rows and the index of a categorical column."""
    assert isinstance(distinct, UniqueRows)
    rows, groups = distinct
    close(rows[groups.index], torch.tensor(expected), rtol=0, atol=0)
    assert len(rows) == groups.count == len(np.unique(expected, axis=0))
    assert groups.counts == torch.bincount(groups.index).tolist()
    assert groups.ordered is ordered
    assert not ordered or bool((groups.index.diff() >= 0).all())


@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (3,)]), st.floats(0, 1))
def test_categorical_column_returns_values(
    seed: int, shape: tuple[int, ...], change: float
) -> None:
    """A categorical column returns the values that were stored."""
    n_steps, n_envs, rng = 5, 6, np.random.default_rng(seed)
    column = CategoricalColumn((n_steps, n_envs), CPU)
    for _ in range(2):  # buffer
        missions, now = (
            np.zeros((n_steps, n_envs, *shape), np.int16),
            rng.integers(3, size=(n_envs, *shape)),
        )
        for timestep in range(n_steps):
            changed = rng.random(n_envs) < change
            now[changed] = rng.integers(3, size=now[changed].shape)
            missions[timestep] = now
            assert_unique_rows(
                column.store(timestep, missions[timestep].copy()), missions[timestep], ordered=False
            )
        rows = rng.permutation(n_steps * n_envs)[:17]
        rows = rows[np.argsort(column.index.reshape(-1)[rows])]
        assert_unique_rows(column.take(rows), missions.reshape(-1, *shape)[rows], ordered=True)
        column.clear()
        assert column.nbytes == column.index.nbytes
