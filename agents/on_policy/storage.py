"""One key of the observation over a whole rollout, kept as compactly as its space allows, on the training device.

Each column takes one timestep of all environments and gives what the policy reads of it; afterwards it gives any rows.
Rows count timesteps × environments, a timestep's environments side by side.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mirl.policies.features import UniqueRows
from mirl.policies.grouped_matmul import ContextGroups

Rows = NDArray[np.integer[Any]]

SAME_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""What stands in for types that ``index_select`` does not take."""


class Column(Protocol):
    """What all columns do."""

    def store(self, timestep: int, values: NDArray[Any]) -> Tensor | UniqueRows:
        """Keep the values (environments, …) of a timestep, and give them to the policy."""

    def take(self, rows: Rows) -> Tensor | UniqueRows:
        """The values of some rows."""

    @property
    def nbytes(self) -> int:
        """What the column holds."""


class PlainColumn:
    """Values in their space's own type; those of a ``Discrete`` in the smallest that holds them."""

    def __init__(
        self, space: spaces.Space[Any], shape: tuple[int, int], device: torch.device
    ) -> None:
        self.dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        kept = SAME_BITS.get(self.dtype, self.dtype)
        if isinstance(space, spaces.Discrete) and space.start >= 0:
            kept = smallest_dtype(int(space.start + space.n) - 1)
        self.data = torch.zeros(*shape, *(space.shape or ()), dtype=kept, device=device)

    def store(self, timestep: int, values: NDArray[Any]) -> Tensor:
        current = on_device(values, self.data.device)
        self.data[timestep] = current
        return current

    def take(self, rows: Rows) -> Tensor:
        return (
            self.data.flatten(0, 1)
            .index_select(0, on_device(rows, self.data.device))
            .to(self.dtype)
        )

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class PackedColumn:
    """Small integers, several to a byte: MiniGrid's view takes 56 bytes instead of 147.

    Each value has as many bits as its bound needs, and none lies across two bytes.
    """

    def __init__(
        self, key: str, space: spaces.Box, shape: tuple[int, int], device: torch.device
    ) -> None:
        self.key, self.shape, self.low, self.high = key, space.shape, space.low, space.high
        self.dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        self.n_bytes, byte_of, shift_of = _pack_bits(_bits(space))
        # The values of a byte one after the other; where a byte has fewer, a column of zeros stands in.
        layers = np.full((max(np.bincount(byte_of)), self.n_bytes), len(byte_of))
        layer_shifts = np.zeros_like(layers)
        depth = np.zeros(self.n_bytes, dtype=np.int64)
        for value, (byte, shift) in enumerate(zip(byte_of, shift_of, strict=True)):
            layers[depth[byte], byte], layer_shifts[depth[byte], byte] = value, shift
            depth[byte] += 1
        as_bytes: dict[str, Any] = {"dtype": torch.uint8, "device": device}
        self.layers, self.layer_shifts = layers, layer_shifts.astype(np.uint8)
        self.byte_of = torch.from_numpy(byte_of).to(device)
        self.shift_of = torch.as_tensor(shift_of, **as_bytes)
        self.mask = torch.as_tensor((1 << _bits(space)) - 1, **as_bytes)
        self.data = torch.zeros(*shape, self.n_bytes, **as_bytes)

    @staticmethod
    def supports(space: spaces.Space[Any]) -> bool:
        """Integers from 0 to bounds of less than a byte, for at most half of what they take unpacked."""
        if not isinstance(space, spaces.Box) or space.dtype.kind not in "iu" or space.low.min() < 0:
            return False
        return (
            bool(space.high.max() < 256)
            and 2 * int(_bits(space).sum()) <= 8 * space.dtype.itemsize * space.low.size
        )

    def store(self, timestep: int, values: NDArray[Any]) -> Tensor:
        if not ((self.low <= values) & (values <= self.high)).all():
            reach = f"from {values.min()} to {values.max()}"
            raise ValueError(
                f"the observation '{self.key}' goes beyond the bounds of its space: it reaches {reach}"
            )
        flat = np.zeros((len(values), len(self.byte_of) + 1), dtype=np.uint8)
        flat[:, :-1] = values.reshape(len(values), -1)
        packed = np.zeros((len(values), self.n_bytes), dtype=np.uint8)
        for layer, shifts in zip(self.layers, self.layer_shifts, strict=True):
            packed |= flat.take(layer, axis=1) << shifts
        self.data[timestep] = on_device(packed, self.data.device)
        return on_device(values, self.data.device)

    def take(self, rows: Rows) -> Tensor:
        packed = self.data.flatten(0, 1).index_select(0, on_device(rows, self.data.device))
        values = packed[:, self.byte_of].bitwise_right_shift_(self.shift_of).bitwise_and_(self.mask)
        return values.to(self.dtype).view(-1, *self.shape)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class CategoricalColumn:
    """The context as an index into its distinct values, of which a rollout has few: missions, task ids.

    The index stays in the host's memory, where minibatches are sorted by it: no question is ever asked of the device.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.device = device
        self.index = np.zeros(shape, dtype=np.int32)
        self.clear()

    def clear(self) -> None:
        """Begin another rollout."""
        self._ids: dict[bytes, int] = {}
        self._distinct: list[NDArray[Any]] = []
        self._before: NDArray[Any] | None = None

    def store(self, timestep: int, values: NDArray[Any]) -> UniqueRows:
        now = self.index[timestep]
        rows = values.reshape(len(values), -1)
        if self._before is None:
            changed: Sequence[int] = range(len(values))
        else:
            now[:] = self.index[timestep - 1]
            changed = np.flatnonzero((rows != self._before).any(1)).tolist()
        for slot in changed:  # after the first timestep, only where an episode has just begun
            now[slot] = self._index_of(values[slot])
        self._before = rows
        distinct, index, counts = np.unique(now, return_inverse=True, return_counts=True)
        return self._unique_rows(distinct, index, counts, ordered=False)

    def _index_of(self, value: NDArray[Any]) -> int:
        found = self._ids.setdefault(value.tobytes(), len(self._ids))
        if found == len(self._distinct):
            self._distinct.append(np.array(value))
        return found

    def take(self, rows: Rows) -> UniqueRows:
        distinct, counts = np.unique(self.index.reshape(-1)[rows], return_counts=True)
        return self._unique_rows(
            distinct, np.repeat(np.arange(len(distinct)), counts), counts, ordered=True
        )

    def _unique_rows(
        self, distinct: Rows, index: Rows, counts: Rows, *, ordered: bool
    ) -> UniqueRows:
        values = np.stack([self._distinct[i] for i in distinct])
        groups = ContextGroups(
            on_device(index, self.device), len(distinct), ordered=ordered, counts=counts.tolist()
        )
        return UniqueRows(on_device(values, self.device), groups)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + sum(value.nbytes for value in self._distinct)


def build_column(
    key: str, space: spaces.Space[Any], shape: tuple[int, int], device: torch.device
) -> Column:
    """The most compact column for a space."""
    if isinstance(space, spaces.Box) and PackedColumn.supports(space):
        return PackedColumn(key, space, shape, device)
    return PlainColumn(space, shape, device)


def smallest_dtype(largest: int) -> torch.dtype:
    """The smallest integer type that holds 0 … ``largest``."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """The values as a tensor there, without waiting for the device."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _bits(space: spaces.Box) -> NDArray[np.int64]:
    return np.ceil(np.log2(space.high.reshape(-1).astype(np.float64) + 1)).astype(np.int64)


def _pack_bits(bits: NDArray[np.int64]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """First fit, the widest first: the number of bytes, and for each value its byte and its first bit there."""
    byte_of, shift_of = np.zeros_like(bits), np.zeros_like(bits)
    used: list[int] = []
    open_from = 0
    for value in np.argsort(-bits, kind="stable"):
        while open_from < len(used) and used[open_from] == 8:
            open_from += 1
        byte = next(
            (b for b in range(open_from, len(used)) if used[b] + bits[value] <= 8), len(used)
        )
        if byte == len(used):
            used.append(0)
        byte_of[value], shift_of[value] = byte, used[byte]
        used[byte] += int(bits[value])
    return max(len(used), 1), byte_of, shift_of


N_BUCKETS = 16
"""So many sizes a batch may have."""


def pad_to_bucket(rows: Rows, most: int) -> Rows:
    """``rows``, the last of them repeated, so that they have one of ``N_BUCKETS`` sizes up to ``most``.

    Where there are more, in the same steps on.
    """
    return np.pad(rows, (0, -len(rows) % -(-most // N_BUCKETS)), mode="edge")
