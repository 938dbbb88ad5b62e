"""Packing of small integers, several to a byte.

Shapes: B rows, V values of a row, M bytes of a packed row.
"""

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.generic]
"""Observations of one key, (N, ...), in the data type of its space."""
Space = spaces.Space[object]


class BitPacking:
    """The layout of the values of a box in bytes.

    Each value has as many bits as its upper bound needs, and none crosses a byte boundary.

    Args:
        space: a box that ``supports`` accepts.
        device: where packed values are stored.
    """

    def __init__(self, space: spaces.Box, device: torch.device) -> None:
        self.shape = space.shape
        # Torch has no public map from NumPy dtypes, so convert an empty array.
        self.dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        bits = _bits(space)
        self.n_bytes, byte_of, shift_of = _assign_bytes(bits)
        # Layer i holds the i-th value of every byte, so that a whole layer is shifted at once.
        # Bytes with fewer values point to an extra column of zeros, number len(byte_of).
        n_layers = int(np.bincount(byte_of).max())
        self._layers = np.full((n_layers, self.n_bytes), len(byte_of))
        self._layer_shifts = np.zeros(self._layers.shape, np.uint8)
        depth = np.zeros(self.n_bytes, np.int64)
        for value, (byte, shift) in enumerate(zip(byte_of, shift_of, strict=True)):
            self._layers[depth[byte], byte] = value
            self._layer_shifts[depth[byte], byte] = shift
            depth[byte] += 1
        self._byte_of = torch.from_numpy(byte_of).to(device)
        self._shift_of = torch.as_tensor(shift_of, dtype=torch.uint8, device=device)
        self._mask = torch.as_tensor((1 << bits) - 1, dtype=torch.uint8, device=device)

    @staticmethod
    def supports(space: Space) -> bool:
        """Return True for integers in [0, 255] whose size packing at least halves.

        Args:
            space: the space of the values.
        """
        if not isinstance(space, spaces.Box) or space.dtype.kind not in "iu":
            return False
        if space.low.min() < 0 or space.high.max() >= 256:
            return False
        unpacked_bits = 8 * space.dtype.itemsize * space.low.size
        return 2 * int(_bits(space).sum()) <= unpacked_bits

    def pack(self, values: Values) -> NDArray[np.uint8]:
        """Pack values within the bounds of the space.

        Args:
            values: (B, *shape).

        Returns:
            (B, M), the bytes.
        """
        n_values = len(self._byte_of)
        # The extra column of zeros is for bytes that hold fewer values than others.
        flat = np.zeros((len(values), n_values + 1), np.uint8)
        flat[:, :-1] = values.reshape(len(values), -1)
        packed = np.zeros((len(values), self.n_bytes), np.uint8)
        for layer, shifts in zip(self._layers, self._layer_shifts, strict=True):
            packed |= flat.take(layer, axis=1) << shifts
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Unpack bytes on the device.

        Args:
            packed: (B, M), from ``pack``.

        Returns:
            (B, *shape), the values in the data type of the space.
        """
        # (B, M) -> (B, V) -> (B, *shape)
        values = packed[:, self._byte_of]
        # In place, because indexing has already made a copy.
        values = values.bitwise_right_shift_(self._shift_of).bitwise_and_(self._mask)
        return values.to(self.dtype).view(-1, *self.shape)


def _bits(space: spaces.Box) -> NDArray[np.int64]:
    """Return (V,), the number of bits that each value of the box needs."""
    high = space.high.reshape(-1).astype(np.float64)
    return np.ceil(np.log2(high + 1)).astype(np.int64)


def _assign_bytes(bits: NDArray[np.int64]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Assign values to bytes by first-fit decreasing bin packing.

    Args:
        bits: (V,), the number of bits of each value, at most 8.

    Returns:
        M, the number of bytes, at least 1; (V,), the byte of each value; (V,), its first bit there.
    """
    byte_of = np.zeros_like(bits)
    shift_of = np.zeros_like(bits)
    used: list[int] = []
    first_open = 0
    # Largest first. Stable, so that equal spaces always get the same layout.
    for value in np.argsort(-bits, kind="stable"):
        # Full bytes at the front need not be searched again.
        while first_open < len(used) and used[first_open] == 8:
            first_open += 1
        byte = first_open
        while byte < len(used) and used[byte] + bits[value] > 8:
            byte += 1
        if byte == len(used):
            used.append(0)
        byte_of[value] = byte
        shift_of[value] = used[byte]
        used[byte] += int(bits[value])
    return max(len(used), 1), byte_of, shift_of
