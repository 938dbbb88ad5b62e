"""Compact storage of a rollout's observations, one column per observation key.

A column stores one timestep of all environments at a time and returns the input for the policy.
Later it returns any rows of the rollout. Row t * N + n is timestep t of environment n.

Shapes: T timesteps, N environments, B rows of a minibatch, G groups of equal values.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from mirl.agents.on_policy.bit_packing import BitPacking, Space, Values
from mirl.policies.features import Observations, UniqueRows
from mirl.policies.grouped_matmul import ContextGroups

Rows = NDArray[np.int64]
"""Indices of rows of a rollout, t * N + n."""
PolicyInput = Tensor | Observations
"""Observations on the training device; a mapping if the observation space is ``Dict``."""

SIGNED_DTYPE = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Stand-ins of the same width for data types that ``index_select`` does not support."""


class Column(Protocol):
    """Storage of one observation key for a whole rollout."""

    def store(self, timestep: int, values: Values) -> Tensor | UniqueRows:
        """Store the values of one timestep.

        Args:
            timestep: t, the timestep of the rollout.
            values: (N, ...), one value per environment.

        Returns:
            The values on the training device, in the form that the policy takes.
        """

    def take(self, rows: Rows) -> Tensor | UniqueRows:
        """Return the values of some rows.

        Args:
            rows: (B,), indices t * N + n.

        Returns:
            (B, ...), the values on the training device.
        """

    def to_array(self) -> Values:
        """Return the values of all rows in host memory, (T * N, ...), in order."""

    @property
    def nbytes(self) -> int:
        """Return the size of the column in bytes."""


class PlainColumn(Column):
    """Values in the data type of their space, or in the smallest that fits for ``Discrete``.

    Args:
        space: the space of the values.
        shape: (T, N).
        device: where the values are stored.
    """

    def __init__(self, space: Space, shape: tuple[int, int], device: torch.device) -> None:
        # Torch has no public map from NumPy dtypes, so convert an empty array.
        self.dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        stored_dtype = SIGNED_DTYPE.get(self.dtype, self.dtype)
        # smallest_dtype is for non-negative numbers, so not for a negative start.
        if isinstance(space, spaces.Discrete) and space.start >= 0:
            stored_dtype = smallest_dtype(int(space.start + space.n) - 1)
        size = (*shape, *(space.shape or ()))
        self.data = torch.zeros(size, dtype=stored_dtype, device=device)

    def store(self, timestep: int, values: Values) -> Tensor:
        """Store the values of one timestep; see ``Column.store``."""
        current = on_device(values, self.data.device)
        self.data[timestep] = current
        return current

    def take(self, rows: Rows) -> Tensor:
        """Return the values of some rows; see ``Column.take``."""
        index = on_device(rows, self.data.device)
        # (T, N, ...) -> (T * N, ...) -> (B, ...)
        stored = self.data.flatten(0, 1).index_select(0, index)
        return stored.to(self.dtype)

    def to_array(self) -> Values:
        """Return the values of all rows; see ``Column.to_array``."""
        return self.take(np.arange(self.data.shape[0] * self.data.shape[1])).cpu().numpy()

    @property
    def nbytes(self) -> int:
        """Return the size of the column in bytes."""
        return self.data.nbytes


class PackedColumn(Column):
    """Small integers packed several to a byte: MiniGrid's view takes 56 bytes instead of 147.

    Args:
        key: the observation key, for error messages.
        space: a box that ``BitPacking`` supports.
        shape: (T, N).
        device: where the packed values are stored.
    """

    def __init__(
        self, key: str, space: spaces.Box, shape: tuple[int, int], device: torch.device
    ) -> None:
        self.key = key
        self.low = space.low
        self.high = space.high
        self.packing = BitPacking(space, device)
        size = (*shape, self.packing.n_bytes)
        self.data = torch.zeros(size, dtype=torch.uint8, device=device)

    def store(self, timestep: int, values: Values) -> Tensor:
        """Store the values of one timestep; see ``Column.store``.

        Args:
            timestep: t, the timestep of the rollout.
            values: (N, ...), one value per environment.

        Returns:
            The values on the training device, unpacked.

        Raises:
            ValueError: if a value is outside the bounds of its space.
        """
        # Checked, because packing would cut off the upper bits of larger values.
        is_valid = np.less_equal(self.low, values) & np.less_equal(values, self.high)
        if not is_valid.all():
            raise ValueError(
                f"expected the observation '{self.key}' within the bounds of its space, got values "
                f"from {values.min()} to {values.max()}; correct the space or the environment"
            )
        packed = self.packing.pack(values)
        self.data[timestep] = on_device(packed, self.data.device)
        return on_device(values, self.data.device)

    def take(self, rows: Rows) -> Tensor:
        """Return the values of some rows, unpacked; see ``Column.take``."""
        index = on_device(rows, self.data.device)
        return self.packing.unpack(self.data.flatten(0, 1).index_select(0, index))

    def to_array(self) -> Values:
        """Return the values of all rows, unpacked; see ``Column.to_array``."""
        return self.take(np.arange(self.data.shape[0] * self.data.shape[1])).cpu().numpy()

    @property
    def nbytes(self) -> int:
        """Return the size of the column in bytes."""
        return self.data.nbytes


class CategoricalColumn(Column):
    """Values as indices into a table of distinct values: missions, task ids.

    A rollout has few distinct contexts. The index stays in host memory, where minibatches are
    sorted by it, so that the host never waits for the device.

    Args:
        shape: (T, N).
        device: where ``store`` and ``take`` put the values.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.device = device
        self.index = np.zeros(shape, np.int32)
        self.clear()

    def clear(self) -> None:
        """Clear the distinct values, at the start of a rollout."""
        self._index_of_bytes: dict[bytes, int] = {}
        self._distinct: list[Values] = []
        self._previous: Values | None = None

    def store(self, timestep: int, values: Values) -> UniqueRows:
        """Store the values of one timestep.

        Args:
            timestep: t, the timestep of the rollout.
            values: (N, ...), one value per environment.

        Returns:
            The distinct values, (G, ...), and the index of each environment's value.
        """
        current = self.index[timestep]
        rows = values.reshape(len(values), -1)
        changed: Sequence[int] = range(len(values))
        if self._previous is not None:
            # A context changes only if an episode has just started.
            current[:] = self.index[timestep - 1]
            changed = np.flatnonzero((rows != self._previous).any(1)).tolist()
        for env_index in changed:
            current[env_index] = self._index_of(values[env_index])
        self._previous = rows
        # Only the values of this timestep; the table has those of the whole rollout.
        distinct, index, counts = np.unique(current, return_inverse=True, return_counts=True)
        return self._unique_rows(distinct, index, counts, ordered=False)

    def take(self, rows: Rows) -> UniqueRows:
        """Return the values of some rows.

        Args:
            rows: (B,), indices t * N + n, sorted by their distinct value.

        Returns:
            The distinct values, (G, ...), and the index of each row's value.
        """
        distinct, counts = np.unique(self.index.reshape(-1)[rows], return_counts=True)
        # The rows are sorted by their value, so that each group is one block.
        index = np.repeat(np.arange(len(distinct)), counts)
        return self._unique_rows(distinct, index, counts, ordered=True)

    def to_array(self) -> Values:
        """Return the values of all rows; see ``Column.to_array``."""
        return np.stack(self._distinct)[self.index.reshape(-1)]

    @property
    def nbytes(self) -> int:
        """Return the size of the column in bytes."""
        return self.index.nbytes + sum(value.nbytes for value in self._distinct)

    def _index_of(self, value: Values) -> int:
        index = self._index_of_bytes.setdefault(value.tobytes(), len(self._index_of_bytes))
        # setdefault has just given a new value this index.
        if index == len(self._distinct):
            self._distinct.append(np.array(value))
        return index

    def _unique_rows(
        self,
        distinct: NDArray[np.int32],
        index: NDArray[np.int64],
        counts: NDArray[np.int64],
        *,
        ordered: bool,
    ) -> UniqueRows:
        values = np.stack([self._distinct[i] for i in distinct])
        groups = ContextGroups(
            on_device(index, self.device), len(distinct), ordered=ordered, counts=counts.tolist()
        )
        return UniqueRows(on_device(values, self.device), groups)


def build_column(
    key: str, space: Space, shape: tuple[int, int], device: torch.device
) -> PackedColumn | PlainColumn:
    """Build the most compact column for a space.

    Args:
        key: the observation key, for error messages.
        space: the space of the values.
        shape: (T, N).
        device: where the values are stored.
    """
    if isinstance(space, spaces.Box) and BitPacking.supports(space):
        return PackedColumn(key, space, shape, device)
    return PlainColumn(space, shape, device)


def smallest_dtype(largest: int) -> torch.dtype:
    """Return the smallest integer data type that holds 0 to ``largest``.

    Args:
        largest: the largest value, not negative.
    """
    # Without uint16 and uint32, which index_select does not support.
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def action_storage(space: Space) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the data type and the shape in which one action is stored.

    Args:
        space: the action space.
    """
    match space:
        case spaces.Discrete():
            return smallest_dtype(int(space.n) - 1), ()
        case spaces.MultiDiscrete():
            return smallest_dtype(int(space.nvec.max()) - 1), space.shape
        case spaces.MultiBinary():
            return torch.uint8, space.shape
        case _:
            # Flat, because SB3's distributions take flat actions.
            return torch.float32, (get_action_dim(space),)


def on_device(values: Values, device: torch.device) -> Tensor:
    """Copy an array to a device without making the host wait for it.

    Args:
        values: the array; on a CPU the tensor shares its memory.
        device: the device of the tensor.
    """
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor
    # Only copies from pinned memory are asynchronous.
    return tensor.pin_memory().to(device, non_blocking=True)
