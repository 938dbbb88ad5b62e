"""Spaces survive the way through JSON, and a damaged description is rejected."""

import json
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from mirl.agents.runs.space_json import (
    action_space_from_json,
    observation_space_from_json,
    space_from_json,
    space_to_json,
)

IMAGE_HIGH = np.broadcast_to(np.array([10, 5, 3], np.uint8), (7, 7, 3))
SPACES = {
    "image": spaces.Box(np.zeros((7, 7, 3), np.uint8), IMAGE_HIGH, (7, 7, 3), np.uint8),
    "pixels": spaces.Box(0, 255, (84, 84, 3), np.uint8),
    "unbounded": spaces.Box(-np.inf, np.inf, (4,), np.float64),
    "half bounded": spaces.Box(np.array([0.1, -np.inf], np.float32), np.inf, (2,), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "tokens": spaces.Box(0, 2**31 - 1, (80,), np.int64),
    "discrete": spaces.Discrete(7),
    "shifted": spaces.Discrete(3, start=-1),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "mask": spaces.MultiBinary(4),
    "masks": spaces.MultiBinary((2, 3)),
}


def through_json(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_space_survives_json(space: spaces.Space[Any]) -> None:
    rebuilt = space_from_json(through_json(space_to_json(space)))
    assert rebuilt == space
    assert (rebuilt.shape, rebuilt.dtype) == (space.shape, space.dtype)
    if isinstance(space, spaces.Box) and isinstance(rebuilt, spaces.Box):
        np.testing.assert_array_equal(rebuilt.low, space.low)
        np.testing.assert_array_equal(rebuilt.high, space.high)


def test_dict_keeps_order_of_keys() -> None:
    """A Dict keeps the order of its keys, on which the order of the network's inputs depends."""
    observation = spaces.Dict(OrderedDict(z=SPACES["mask"], a=SPACES["image"]))
    rebuilt = observation_space_from_json(through_json(space_to_json(observation)))
    assert rebuilt == observation
    assert list(rebuilt) == ["z", "a"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"kind": "Text"},
        {"kind": "Dict", "spaces": 1},
        {"kind": "Discrete", "n": 0, "start": 0},
        {"kind": "Discrete", "n": "many", "start": 0},
        {"kind": "MultiDiscrete", "nvec": "a"},
        {"kind": "MultiBinary", "shape": [10**6, 10**6]},
        {"kind": "MultiBinary", "shape": 3},
        {"kind": "Box", "dtype": "object", "shape": [1], "low": 0, "high": 1},
        {"kind": "Box", "dtype": "uint8", "shape": [10**9], "low": 0, "high": 1},
        {"kind": "Box", "dtype": "uint8", "shape": [-1], "low": 0, "high": 1},
        {"kind": "Box", "dtype": "uint8", "shape": [2], "low": {"values": [1]}, "high": 1},
        {"kind": "Box", "dtype": "uint8", "shape": [1], "low": 0, "high": 10**9},
    ],
)
def test_damaged_description_is_rejected(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        space_from_json(value)


def test_kind_of_space_is_checked() -> None:
    with pytest.raises(ValueError, match="expected a Dict observation space"):
        observation_space_from_json(space_to_json(SPACES["discrete"]))
    with pytest.raises(ValueError, match="expected an action space"):
        action_space_from_json(space_to_json(spaces.Dict(a=SPACES["discrete"])))


def test_unsupported_space_is_rejected() -> None:
    with pytest.raises(TypeError, match="expected a Dict of spaces that SB3 can read"):
        space_to_json(spaces.Text(3))  # type: ignore[arg-type]
