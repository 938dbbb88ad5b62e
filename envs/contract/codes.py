"""Codes of symbolic images: MiniGrid's tables, and codes that are in no table or beyond a bound."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from minigrid.core import constants
from numpy.typing import NDArray

from mirl.configs.errors import ContractError
from mirl.envs.type_aliases import Array

UnknownCodes = Literal["error", "hash"]
"""Handling of unknown codes: raise an error, or hash them to values reserved for them."""

N_BUCKETS = 16
"""Number of values per channel that unknown codes share with ``unknown_codes="hash"``."""
MAX_DIRECTION = 3
"""Largest direction of the agent, which MiniGrid stores in the state channel of its cell."""

_CHANNELS = (
    ("object", "OBJECT_TO_IDX"),
    ("color", "COLOR_TO_IDX"),
    ("state", "STATE_TO_IDX"),
)
"""Name of each channel of MiniGrid's symbolic image, and the table of its codes."""
_TABLES = (
    "OBJECT_TO_IDX",
    "COLOR_TO_IDX",
    "STATE_TO_IDX",
    "IDX_TO_OBJECT",
    "IDX_TO_COLOR",
    "COLORS",
)
"""Tables of ``minigrid.core.constants`` that users may extend."""

Tables = dict[str, dict[Any, Any]]
"""Contents of MiniGrid's tables, by their names."""


def grid_high() -> tuple[int, int, int]:
    """Return the largest object, color and state code in the present MiniGrid tables.

    Users may add objects, colors and states to the tables before they make an environment.
    """
    return (
        max(constants.OBJECT_TO_IDX.values()),
        max(constants.COLOR_TO_IDX.values()),
        max(MAX_DIRECTION, *constants.STATE_TO_IDX.values()),
    )


def minigrid_tables() -> Tables:
    """Return copies of MiniGrid's tables, to be sent to a worker process."""
    return {name: dict(getattr(constants, name)) for name in _TABLES}


def add_to_minigrid_tables(tables: Mapping[str, Mapping[Any, Any]]) -> None:
    """Add missing entries to MiniGrid's tables; existing entries stay unchanged.

    Args:
        tables: contents of the tables, as ``minigrid_tables`` returns them.
    """
    for name, entries in tables.items():
        table = getattr(constants, name)
        for key, value in entries.items():
            table.setdefault(key, value)


def is_code_space(space: spaces.Space[Any]) -> bool:
    """Return True for a Box (H, W, channels) of integer codes, False for pixels and vectors.

    Args:
        space: the space of one key.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    if space.dtype.kind not in "iu" or space.low.min() < 0:
        return False
    # high >= 255 means pixels, and the dtype's largest value means integers without bounds
    return bool(space.high.max() < min(255, np.iinfo(space.dtype.name).max))


class CodeValues:
    """Check of the codes of an image, which can hash unknown codes to values reserved for them.

    Args:
        key: key of the image.
        space: a Box (H, W, channels) with the known codes as its bounds.
        unknown_codes: handling of larger codes.
        from_minigrid: whether the codes are those of MiniGrid's tables.
    """

    def __init__(
        self,
        key: str,
        space: spaces.Box,
        unknown_codes: UnknownCodes = "error",
        from_minigrid: bool = False,
    ) -> None:
        self._key = key
        self._low = space.low
        self._known = space.high
        self._from_minigrid = from_minigrid
        self._n_buckets = 0
        self.space = space
        """Space of the codes after ``convert``."""
        if unknown_codes == "hash":
            largest = int(np.iinfo(space.dtype.name).max)
            self._n_buckets = min(N_BUCKETS, largest - int(space.high.max()))
        if self._n_buckets:
            # an unknown code v becomes known + 1 + v % n_buckets, which is never a known code
            high = (space.high + self._n_buckets).astype(space.dtype)
            self.space = spaces.Box(space.low, high, space.shape, space.dtype.type)

    def convert(self, image: Array) -> Array:
        """Return the codes, each within the bounds of ``space``.

        Args:
            image: codes, (H, W, channels).

        Raises:
            ContractError: if a code is unknown and cannot be hashed.
        """
        is_unknown = image > self._known
        if is_unknown.any():
            if not self._n_buckets:
                raise self._error(image, is_unknown)
            hashed = self._known + 1 + image % self._n_buckets
            image = np.where(is_unknown, hashed, image).astype(image.dtype)
        is_low = image < self._low
        if is_low.any():
            raise self._error(image, is_low)
        return image

    def _error(self, image: Array, is_unknown: NDArray[np.bool_]) -> ContractError:
        """Return an error that names the first unknown code."""
        row, column, channel = np.argwhere(is_unknown)[0].tolist()
        name = f"channel {channel}"
        remedy = "raise the bound 'high' of its Box"
        if self._from_minigrid:
            name, table = _CHANNELS[channel]
            remedy = f"add it to minigrid.core.constants.{table} before the environment is made"
        where = (row, column, channel)
        return ContractError(
            f"observation '{self._key}': expected {name} codes from {self._low[where]} to "
            f"{self._known[where]}, got {image[where]} in cell ({row}, {column}); {remedy}, or "
            "use encoder.unknown=hash (in Python, unknown_codes='hash')"
        )
