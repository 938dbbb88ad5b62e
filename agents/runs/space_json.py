"""Spaces as JSON, so that a checkpoint can be loaded without its environment."""

import math

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.agents.runs.atomic_files import JsonObject
from mirl.envs.actions import ActionSpace

MAX_SIZE = 2**22
"""Maximum size of a space that is rebuilt, because an untrusted file may claim any shape."""
DTYPES = ("bool", *(f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)))
FLOAT_DTYPES = ("float16", "float32", "float64")


def space_to_json(space: spaces.Space[object]) -> JsonObject:
    """Describe a space by a JSON object.

    Args:
        space: a ``Dict`` of ``Box``, ``Discrete``, ``MultiDiscrete`` and ``MultiBinary`` spaces, or
            one of these.

    Returns:
        The object; ``space_from_json`` returns an equal space, with its keys in the same order.

    Raises:
        TypeError: the space is of another kind.
    """
    match space:
        case spaces.Dict():
            parts = {key: space_to_json(part) for key, part in space.spaces.items()}
            return {"kind": "Dict", "spaces": parts}
        case spaces.Box():
            return {
                "kind": "Box",
                "dtype": space.dtype.name,
                "shape": list(space.shape),
                "low": _bound_to_json(space.low),
                "high": _bound_to_json(space.high),
            }
        case spaces.Discrete():
            return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist()}
        case spaces.MultiBinary():
            return {"kind": "MultiBinary", "shape": list(space.shape)}
        case _:
            raise TypeError(f"expected a Dict of spaces that SB3 can read, got {space}")


def observation_space_from_json(value: object) -> spaces.Dict:
    """Rebuild an observation space.

    Args:
        value: the object that ``space_to_json`` returned.

    Returns:
        The space.

    Raises:
        ValueError: the value does not describe a ``Dict`` space.
    """
    space = space_from_json(value)
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"expected a Dict observation space, got {space}")
    return space


def action_space_from_json(value: object) -> ActionSpace:
    """Rebuild an action space.

    Args:
        value: the object that ``space_to_json`` returned.

    Returns:
        The space.

    Raises:
        ValueError: the value does not describe an action space.
    """
    space = space_from_json(value)
    if isinstance(space, spaces.Dict):
        raise ValueError("expected an action space, got a Dict space")
    return space


def space_from_json(value: object) -> spaces.Dict | ActionSpace:
    """Rebuild a space from its JSON object.

    Args:
        value: the object that ``space_to_json`` returned; nothing in it is trusted.

    Returns:
        The space.

    Raises:
        ValueError: the value does not describe a space, or one of more than ``MAX_SIZE`` numbers.
    """
    try:
        return _rebuild(value)
    except (AssertionError, AttributeError, KeyError, TypeError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"it does not describe a space: {reason}") from None


def _rebuild(value: object) -> spaces.Dict | ActionSpace:
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    match value["kind"]:
        case "Dict":
            # pairs keep their order; a dictionary would be sorted
            pairs = [(key, _rebuild(part)) for key, part in value["spaces"].items()]
            return spaces.Dict(pairs)
        case "Box":
            return _rebuild_box(value)
        case "Discrete":
            return spaces.Discrete(int(value["n"]), start=int(value["start"]))
        case "MultiDiscrete":
            counts = np.asarray(value["nvec"], dtype=np.int64)
            _checked_shape(counts.shape)
            return spaces.MultiDiscrete(counts)
        case "MultiBinary":
            shape = _checked_shape(value["shape"])
            # Gymnasium distinguishes MultiBinary(3) from MultiBinary([3]); the first is usual
            return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
        case kind:
            raise ValueError(f"expected a kind of space, got {kind!r}")


def _rebuild_box(value: JsonObject) -> spaces.Box:
    name = value["dtype"]
    if name not in (*DTYPES, *FLOAT_DTYPES):
        raise ValueError(f"expected the dtype of a Box, got {name!r}")
    dtype = np.dtype(name)
    shape = _checked_shape(value["shape"])
    low = _bound_from_json(value["low"], shape, dtype)
    high = _bound_from_json(value["high"], shape, dtype)
    return spaces.Box(low, high, shape, dtype.type)  # type: ignore[arg-type]  # checked above


def _checked_shape(shape: object) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)  # type: ignore[attr-defined]  # raises a TypeError
    if len(sizes) > 8 or any(size < 0 for size in sizes) or math.prod(sizes) > MAX_SIZE:
        raise ValueError(f"expected a shape of at most {MAX_SIZE:,} numbers, got {list(sizes)}")
    return sizes


def _bound_to_json(bound: NDArray[np.generic]) -> object:
    """Return one number if all elements share it, else a nested list; infinities as strings."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number_to_json(bound.flat[0].item())
    flat = [_number_to_json(number) for number in bound.ravel().tolist()]
    return {"values": flat}


def _number_to_json(number: float) -> float | str:
    # JSON has no infinity
    return number if math.isfinite(number) else str(number)


def _bound_from_json(
    value: object, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> NDArray[np.generic]:
    if isinstance(value, dict):
        numbers = [_number_from_json(number) for number in value["values"]]
        return np.array(numbers, dtype=dtype).reshape(shape)
    return np.full(shape, _number_from_json(value), dtype=dtype)


def _number_from_json(number: object) -> object:
    if isinstance(number, str):
        return float(number)  # infinities are strings
    return number
