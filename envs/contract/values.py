"""Check and conversion of observed values: dtype, shape, and the range of integers.

A value of another dtype is converted if the conversion is lossless, and rejected otherwise.
Integers are compared with their bounds in every observation, because they index tables. Floats are
compared in the first observations only, by ``check_bounds``: nothing uses their bounds.
"""

from typing import Any

import numpy as np
from gymnasium import spaces

from mirl.configs.errors import ContractError
from mirl.envs.contract.codes import CodeValues, UnknownCodes, is_code_space
from mirl.envs.contract.descriptions import describe_value
from mirl.envs.type_aliases import AnySpace, Array

BOUND_TOLERANCE = 1e-5
"""Relative tolerance within which a float may exceed its bound, for rounding."""


class Values:
    """Check of the values of one key, and their conversion to its space if that is lossless.

    Args:
        key: key of the observation.
        space: its space: a Box, Discrete, MultiDiscrete or MultiBinary.
        unknown_codes: handling of unknown codes of an image, see ``CodeValues``.
        from_minigrid: whether an image holds the codes of MiniGrid's tables.

    Raises:
        ContractError: if the space is of another kind, or has no entries.
    """

    def __init__(
        self,
        key: str,
        space: AnySpace,
        unknown_codes: UnknownCodes = "error",
        from_minigrid: bool = False,
    ) -> None:
        check_observation_space(key, space)
        self._key = key
        self._declared = space
        self._codes: CodeValues | None = None
        self.space: AnySpace = space
        """Space of the converted values; it starts at 0 if SB3 requires that."""
        self._dtype: np.dtype[Any] = np.dtype(space.dtype)
        self._shape: tuple[int, ...] = space.shape or ()
        self._start: Any = 0
        self._low: Any = None
        self._high: Any = None
        match space:
            case spaces.Box():
                if is_code_space(space):
                    self._codes = CodeValues(key, space, unknown_codes, from_minigrid)
                    self.space = self._codes.space
                elif space.dtype.kind in "iu" and _is_narrow(space):
                    self._low = space.low
                    self._high = space.high
            case spaces.Discrete():
                self._start = int(space.start)
                self._low = self._start
                self._high = self._start + int(space.n) - 1
                self.space = spaces.Discrete(int(space.n))
            case spaces.MultiDiscrete():
                self._start = space.start
                self._low = space.start
                self._high = space.start + space.nvec - 1
                self.space = spaces.MultiDiscrete(space.nvec, dtype=space.dtype.type)
            case spaces.MultiBinary():
                self._low = 0
                self._high = 1

    def convert(self, value: Any) -> Any:
        """Return a value in the form of ``space``.

        Args:
            value: value that the environment returned.

        Raises:
            ContractError: if the value is not in the declared space.
        """
        array = value
        # the cheapest test first: almost every value passes it
        if (
            type(value) is not np.ndarray
            or value.dtype != self._dtype
            or value.shape != self._shape
        ):
            array = self._cast(value)
        if self._codes is not None:
            return self._codes.convert(array)
        if self._low is not None:
            is_outside = (array < self._low) | (array > self._high)
            if np.any(is_outside):
                raise self._range_error(array)
        if np.any(self._start):
            array = array - self._start
        # SB3's check_env accepts a numpy scalar for a Discrete, but not an array of shape ()
        return array[()] if isinstance(self._declared, spaces.Discrete) else array

    def check_bounds(self, value: Array) -> None:
        """Raise an error if a float exceeds the bounds of its Box.

        Args:
            value: a converted value. Non-finite numbers pass; they have a check of their own.

        Raises:
            ContractError: if an entry is outside of its bounds.
        """
        space = self._declared
        if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
            return
        # an infinite bound has an infinite tolerance, and their difference would be NaN
        low = np.where(np.isfinite(space.low), space.low - _tolerance(space.low), space.low)
        high = np.where(np.isfinite(space.high), space.high + _tolerance(space.high), space.high)
        is_outside = np.isfinite(value) & ((value < low) | (value > high))
        if is_outside.any():
            raise self._range_error(value)

    def _cast(self, value: Any) -> Array:
        """Return the value with the dtype and shape of the space; raise if that is not lossless."""
        try:
            array = np.asarray(value)
        except ValueError:  # rows of different lengths
            raise self._form_error(value) from None
        if array.dtype.kind not in "biuf":
            raise self._form_error(value)
        # the value of a Discrete may be an array of any shape with one element
        if isinstance(self._declared, spaces.Discrete) and array.size == 1:
            array = array.reshape(())
        if array.shape != self._shape:
            raise self._form_error(value)
        cast = cast_without_loss(array, self._dtype)
        if cast is None:
            raise self._form_error(value)
        return cast

    def _form_error(self, value: Any) -> ContractError:
        """Return an error about dtype and shape."""
        expected = f"an array of shape {self._shape}, {self._dtype}"
        remedy = f"return an array of shape {self._shape}"
        if isinstance(self._declared, spaces.Discrete):
            expected = "one integer"
            remedy = "return an int"
        elif isinstance(value, np.ndarray) and value.shape == self._shape:
            remedy = f"return it as {self._dtype} by np.asarray(…, np.{self._dtype.name})"
            is_real = value.dtype.kind == "f" and self._dtype.kind in "iu"
            if is_real and not np.array_equal(value, np.trunc(value)):
                remedy = (
                    f"return whole numbers as {self._dtype} (for a picture from 0 to 1, "
                    "np.uint8(255 * picture))"
                )
        return ContractError(
            f"observation '{self._key}': expected {expected}, as its space says, got "
            f"{describe_value(value)}; {remedy}, or change the observation space"
        )

    def _range_error(self, value: Array) -> ContractError:
        """Return an error that names an entry outside of the bounds."""
        low = self._low
        high = self._high
        if isinstance(self._declared, spaces.Box):
            low = self._declared.low
            high = self._declared.high
        low, high, array = np.broadcast_arrays(low, high, value)
        where = tuple(np.argwhere((array < low) | (array > high))[0].tolist())
        entry = ""
        if where:
            entry = f" at index {where if len(where) > 1 else where[0]}"
        # array[where] is printed with the digits of its own dtype
        return ContractError(
            f"observation '{self._key}': expected values in [{low[where]}, {high[where]}], got "
            f"{array[where]}{entry}; change the bounds of its space, or clip it to them"
        )


def check_observation_space(key: str, space: AnySpace) -> None:
    """Raise an error if SB3 cannot make a batch of the values of a space.

    Args:
        key: key of the observation.
        space: its space.

    Raises:
        ContractError: if the space is of another kind, or has no entries.
    """
    owner = f"observation '{key}'"
    expected = "expected a Box, Discrete, MultiDiscrete, MultiBinary or Text"
    match space:
        case spaces.Box() | spaces.MultiDiscrete() if not np.prod(space.shape):
            raise ContractError(
                f"{owner}: expected at least one number, got a space of shape {space.shape}; leave "
                "the key out"
            )
        case spaces.Box() if space.dtype.kind not in "biuf":
            raise ContractError(
                f"{owner}: expected real numbers, got {space.dtype}; split it into real numbers"
            )
        case spaces.Box() | spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return
        case spaces.Dict() | spaces.Tuple():
            raise ContractError(
                f"{owner}: {expected}, got a nested {type(space).__name__}; give each of its parts "
                "a key of its own in one Dict, or use "
                "task.wrappers=[gymnasium.wrappers:FlattenObservation]"
            )
        case None:
            raise ContractError(
                f"{owner}: {expected}, got None; set self.observation_space in __init__()"
            )
        case _:
            raise ContractError(
                f"{owner}: {expected}, got {type(space).__name__}; convert it in a wrapper to a "
                "Box of fixed shape, for example padded to the largest length"
            )


def cast_without_loss(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return an array as another dtype, or None if values would change.

    Floats may be rounded to a narrower float, but are never converted to integers: that would
    succeed only in timesteps in which all values happen to be whole numbers.

    Args:
        array: numbers or booleans.
        dtype: dtype of the result.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "f" and dtype.kind != "f":
        return None
    if not array.size or np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        overflows = np.isfinite(array) & ~np.isfinite(cast)
        return None if overflows.any() else cast
    if dtype.kind == "f":
        # every integer up to this power of two is a float of this dtype
        lowest = -(2 ** (np.finfo(dtype).nmant + 1))
        highest = 2 ** (np.finfo(dtype).nmant + 1)
    elif dtype.kind == "b":
        lowest = 0
        highest = 1
    else:
        lowest = int(np.iinfo(dtype).min)
        highest = int(np.iinfo(dtype).max)
    if int(array.min()) < lowest or int(array.max()) > highest:
        return None
    return array.astype(dtype)


def _is_narrow(space: spaces.Box) -> bool:
    """Return True if the dtype can hold numbers outside of the bounds of an integer Box."""
    limits = np.iinfo(space.dtype.name)
    return bool((space.low > limits.min).any() or (space.high < limits.max).any())


def _tolerance(bound: Array) -> Array:
    return BOUND_TOLERANCE * np.maximum(1.0, np.abs(bound))
