"""Tests of the descriptions of values and spaces in error messages."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mirl.configs.tasks import TaskConfig
from mirl.envs.contract.descriptions import (
    MAX_CHARACTERS,
    describe_space,
    describe_value,
    name_task,
    shorten,
)

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers(), max_size=200),
    st.dictionaries(st.text(), st.integers(), max_size=50),
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_dims=3, max_side=9)),
)


@given(ANYTHING)
def test_descriptions_are_short_lines(value: Any) -> None:
    """Every value is described in one short line."""
    text = describe_value(value)
    assert len(text.splitlines()) == 1
    assert len(text) < MAX_CHARACTERS + 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "bool True"),
        (np.float32(0.5), "float32 0.5"),
        (np.array([1, 2]), "an array of shape (2,), int64, [1, 2]"),
        (np.zeros((9, 9), np.uint8), "an array of shape (9, 9), uint8, in [0, 0]"),
        ((1, 2, 3), "a tuple of length 3"),
        ({"a": 1}, "a dict with the keys ['a']"),
        (object(), "an object of type object"),
    ],
)
def test_descriptions_tell_type_and_range(value: Any, text: str) -> None:
    assert describe_value(value) == text


def test_box_is_described_by_extremes() -> None:
    space = spaces.Box(np.array([0, -2], np.float32), np.array([1, 5], np.float32))
    assert describe_space(space) == "Box of shape (2,), float32, in [-2.0, 5.0]"
    assert describe_space(spaces.Discrete(3)) == "Discrete(3)"


def test_tasks_are_named_once() -> None:
    assert name_task(TaskConfig(name="a", env_id="B-v0")) == "task 'a' (B-v0)"
    assert name_task(TaskConfig(name="B-v0", env_id="B-v0")) == "task 'B-v0'"


def test_long_texts_are_cut() -> None:
    assert shorten("a\nb") == "a b"
    assert len(shorten("x" * 1000)) == MAX_CHARACTERS + 1
