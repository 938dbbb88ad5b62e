"""Tests of the check and conversion of observed values."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirl.configs.errors import ContractError
from mirl.envs.contract.values import Values, cast_without_loss

DTYPES = [
    np.dtype(name)
    for name in ("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32")
]
NUMBERS = arrays.arrays(
    st.sampled_from([*DTYPES, np.dtype("float64")]),
    arrays.array_shapes(min_dims=0, max_dims=2, max_side=4),
)
SPACES = st.one_of(
    st.integers(1, 9).flatmap(
        lambda n: st.integers(-5, 5).map(lambda start: spaces.Discrete(n, start=start))
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda nvec: st.lists(st.integers(-3, 3), min_size=len(nvec), max_size=len(nvec)).map(
            lambda start: spaces.MultiDiscrete(nvec, start=start)
        )
    ),
    st.integers(1, 6).map(spaces.MultiBinary),
    st.sampled_from([np.float32, np.float64]).map(
        lambda dtype: spaces.Box(-np.inf, np.inf, (3,), dtype)  # type: ignore[arg-type]
    ),
    st.sampled_from([np.uint8, np.int16, np.int64]).map(
        lambda dtype: spaces.Box(0, 7, (2, 3, 2), dtype)  # type: ignore[arg-type]
    ),
    st.just(spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    st.just(spaces.Box(0, 1, (4,), np.bool_)),
    st.just(spaces.Box(0, 1, (), np.float32)),
)


@settings(deadline=None)
@given(SPACES, st.integers(0, 2**31))
def test_members_of_a_space_pass(space: spaces.Space[Any], seed: int) -> None:
    """Every value of a space is converted to one of the declared space, which starts at 0."""
    values = Values("key", space)
    space.seed(seed)
    sample = space.sample()
    converted = values.convert(sample)
    assert values.space.contains(converted)
    start = getattr(space, "start", 0)
    np.testing.assert_array_equal(np.asarray(converted) + start, sample)


@settings(deadline=None)
@given(SPACES, NUMBERS)
def test_other_values_pass_or_are_refused(space: spaces.Space[Any], value: np.ndarray) -> None:
    """A value is taken with its numbers unchanged, or refused in one line that names the key."""
    values = Values("key", space)
    try:
        converted = values.convert(value)
    except ContractError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert len(message.splitlines()) == 1
        assert "observation 'key': expected" in message
        assert len(message) < 400
        return
    assert np.asarray(converted).dtype == space.dtype
    # rounded to the space's floats at most
    expected = value.astype(space.dtype) - getattr(space, "start", 0)
    np.testing.assert_array_equal(np.asarray(converted), expected.reshape(np.shape(converted)))


@given(NUMBERS, st.sampled_from(DTYPES))
def test_integers_are_never_changed(array: np.ndarray, dtype: np.dtype[Any]) -> None:
    """A cast between integers, booleans and floats keeps the values exactly, or is refused."""
    cast = cast_without_loss(array, dtype)
    if array.dtype.kind == "f" and dtype.kind != "f":
        assert cast is None
    elif cast is not None and array.dtype.kind != "f":
        assert [int(x) for x in cast.ravel().tolist()] == array.astype(object).ravel().tolist()


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Box(-1, 1, (2,), np.float64), np.zeros(2, np.float32)),
        (spaces.Box(-1, 1, (2,), np.float32), np.zeros(2, np.float64)),
        (spaces.Box(-1, 1, (2,), np.float32), np.array([1, 0])),
        (spaces.Box(-1, 1, (2,), np.float32), [0.5, 0.5]),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([3, 255])),
        (spaces.Discrete(3), np.int32(2)),
        (spaces.Discrete(3), np.array([2])),
        (spaces.Discrete(2), True),
        (spaces.MultiBinary(2), np.array([True, False])),
    ],
)
def test_lossless_values_are_taken(space: spaces.Space[Any], value: Any) -> None:
    assert Values("key", space).space.contains(Values("key", space).convert(value))


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(0, 255, (2,), np.uint8), np.zeros(2), r"uint8, .* float64.*np\.uint8"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.5, 1]), r"whole numbers.*\(255 \* "),
        (spaces.Box(0, 255, (2,), np.uint8), np.array(["a", "b"]), "expected an array of shape"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 256]), "int64, \\[0, 256\\]"),
        (spaces.Box(-1, 1, (2,)), np.zeros(3, np.float32), r"of shape \(2,\), float32.*\(3,\)"),
        (spaces.Box(-1, 1, (2,)), [[1.0], [2.0, 3.0]], "a list of length 2"),
        (spaces.Box(-1, 1, (2,)), None, "got None"),
        (spaces.Box(-1, 1, (2,)), "left", "the text 'left'"),
        (spaces.Box(-1, 1, (1,), np.float16), np.array([1e9]), "float16"),
        (spaces.Box(0, 7, (2,), np.int64), np.array([0, 8]), r"in \[0, 7\], got 8 at index 1"),
        (spaces.Discrete(3), 3, r"in \[0, 2\], got 3"),
        (spaces.Discrete(3), 1.0, "one integer"),
        (spaces.MultiDiscrete([3, 4], start=[1, 2]), np.array([1, 6]), r"\[2, 5\], got 6"),
    ],
)
def test_other_values_name_the_remedy(space: spaces.Space[Any], value: Any, message: str) -> None:
    with pytest.raises(ContractError, match=f"observation 'key'.*{message}"):
        Values("key", space).convert(value)


@given(st.floats(-1e6, 1e6, width=32))
def test_floats_are_compared_with_bounds(number: float) -> None:
    """``check_bounds`` refuses floats outside of their bounds, but not by a rounding error."""
    values = Values("key", spaces.Box(np.float32([-np.inf, 0]), np.float32([np.inf, 1])))
    observation = np.array([number, number], np.float32)
    converted = values.convert(observation)  # bounds of floats are compared only where asked
    if 0 <= number <= 1:
        values.check_bounds(converted)
    elif number < -1e-4 or number > 1.001:
        with pytest.raises(ContractError, match=r"'key': .*in \[0.0, 1.0\], got .*at index 1"):
            values.check_bounds(converted)


def test_non_finite_floats_are_left() -> None:
    """NaN and infinity have a check of their own, which ``on_fault`` decides."""
    values = Values("key", spaces.Box(0, 1, (3,)))
    values.check_bounds(np.array([np.nan, np.inf, 1 + 1e-6], np.float32))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0, 1, (0,)), "leave the key out"),
        (spaces.MultiDiscrete([]), "leave the key out"),
        (spaces.Dict(a=spaces.Discrete(2)), "FlattenObservation"),
        (spaces.Tuple([spaces.Discrete(2)]), "FlattenObservation"),
        (spaces.Sequence(spaces.Discrete(2)), "fixed shape"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "fixed shape"),
        (spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]), "fixed shape"),
        (None, r"set self\.observation_space"),
    ],
)
def test_spaces_without_batches_are_refused(space: Any, message: str) -> None:
    with pytest.raises(ContractError, match=f"observation 'key': expected.*{message}"):
        Values("key", space)
