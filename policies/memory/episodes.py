"""Episode boundaries inside sequences, so that no hidden state leaks across episodes.

Shapes: T timesteps, N sequences. An episode start splits a sequence into segments: P segments in
total, T * N timesteps in all of them. S is the size of a hidden state.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor


class Packing(NamedTuple):
    """The segments in the order of a ``torch.nn.utils.rnn.PackedSequence``, the longest first.

    Packed rows: the first timestep of every segment, then the second of those that have one, ...
    """

    rows: Int[Tensor, " steps"]
    """(T * N,), for each packed row its index t * N + n."""
    inverse: Int[Tensor, " steps"]
    """(T * N,), for each index t * N + n its packed row."""
    batch_sizes: list[int]
    """Number of segments that have a first, a second, ... timestep."""
    sequence: Int[Tensor, " pieces"]
    """(P,), the sequence of each segment."""
    starts_episode: Bool[Tensor, "pieces 1"]
    """(P, 1), True if a segment starts inside its sequence, with the start of an episode."""
    last: Int[Tensor, " batch"]
    """(N,), the last segment of each sequence."""


class Episodes:
    """The episode starts of N sequences of T timesteps.

    They are held in host memory, because the number and length of the segments decide which
    operations run: reading them from the device would make the host wait.

    Args:
        starts: (T, N), True where an episode starts.
        device: device of the hidden states.
    """

    def __init__(self, starts: NDArray[np.bool_], device: torch.device | str = "cpu") -> None:
        self.starts = starts
        self.device = torch.device(device)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (T, N)."""
        n_steps, n_sequences = self.starts.shape
        return n_steps, n_sequences

    @cached_property
    def are_unbroken(self) -> bool:
        """Return True if no episode starts after the first timestep, so that N = P."""
        return not self.starts[1:].any()

    @cached_property
    def number(self) -> Int[Tensor, "time batch"]:
        """Return (T, N), the number of each timestep's episode in its sequence.

        Number 0 is the episode that started before the sequence.
        """
        return self._to_device(self.starts.cumsum(0))

    def reset_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        """Return the hidden state for the first timestep: zeros where an episode starts.

        Args:
            state: (N, S), the hidden state before the first timestep.
        """
        return state.masked_fill(self._to_device(self.starts[0, :, None]), 0)

    def age(self, before: Float[Tensor, " batch"]) -> Float[Tensor, "time batch"]:
        """Return (T, N), the number of earlier timesteps in each timestep's episode.

        Args:
            before: (N,), the number of timesteps of the episode that precede the sequence.
        """
        timestep = np.arange(len(self.starts))[:, None]
        # The last start at or before each timestep; -1 if the episode started before the sequence.
        last_start = np.maximum.accumulate(np.where(self.starts, timestep, -1), axis=0)
        continues = last_start < 0
        since_start = np.where(continues, timestep, timestep - last_start)
        age_in_sequence = self._to_device(since_start).to(before.dtype)
        return age_in_sequence + before * self._to_device(continues)

    @cached_property
    def packing(self) -> Packing:
        """Return the segments, packed."""
        n_steps, n_sequences = self.shape
        starts_segment = self.starts.copy()
        # A segment also starts at t = 0, where the episode may have started earlier.
        starts_segment[0] = True
        # (T, N) -> (N * T,), sequence by sequence, so that a segment is contiguous.
        segment = starts_segment.T.reshape(-1).cumsum() - 1
        start = np.flatnonzero(starts_segment.T)
        length = np.diff(start, append=n_steps * n_sequences)
        longest_first = np.argsort(-length, kind="stable")
        rank = np.empty_like(longest_first)
        rank[longest_first] = np.arange(len(rank))
        # Sort all timesteps by their age in the segment, then by the rank of the segment.
        age = np.arange(n_steps * n_sequences) - start[segment]
        order = np.lexsort((rank[segment], age))
        # n * T + t -> t * N + n
        rows = order % n_steps * n_sequences + order // n_steps
        inverse = np.empty_like(rows)
        inverse[rows] = np.arange(len(rows))
        # The index n * T + t of each segment's first timestep, split into n and t.
        sequence, first_timestep = np.divmod(start[longest_first], n_steps)
        return Packing(
            rows=self._to_device(rows),
            inverse=self._to_device(inverse),
            batch_sizes=np.bincount(age).tolist(),
            sequence=self._to_device(sequence),
            starts_episode=self._to_device(first_timestep[:, None] > 0),
            last=self._to_device(rank[segment[n_steps - 1 :: n_steps]]),
        )

    @property
    def batch_sizes(self) -> list[int]:
        """Return the number of segments that have a first, a second, ... timestep."""
        n_steps, n_sequences = self.shape
        if self.are_unbroken:
            # Every sequence is one segment of T timesteps, so no packing is needed.
            return [n_sequences] * n_steps
        return self.packing.batch_sizes

    def pack(self, values: Float[Tensor, "time batch dim"]) -> Float[Tensor, "steps dim"]:
        """Pack the timesteps of the segments.

        Args:
            values: (T, N, D).

        Returns:
            (T * N, D), packed rows.
        """
        # (T, N, D) -> (T * N, D), which is the packed order if no episode starts inside.
        rows = values.flatten(0, 1)
        if self.are_unbroken:
            return rows
        return rows.index_select(0, self.packing.rows)

    def unpack(self, packed: Float[Tensor, "steps dim"]) -> Float[Tensor, "time batch dim"]:
        """Undo ``pack``.

        Args:
            packed: (T * N, D), packed rows.

        Returns:
            (T, N, D).
        """
        rows = packed
        if not self.are_unbroken:
            rows = packed.index_select(0, self.packing.inverse)
        # (T * N, D) -> (T, N, D)
        return rows.unflatten(0, self.shape)

    def first_states(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "pieces state"]:
        """Return the hidden state before each segment.

        Args:
            state: (N, S), the hidden states before the sequences, as ``reset_state`` returns them.

        Returns:
            (P, S), zeros for segments that start an episode.
        """
        if self.are_unbroken:
            return state
        of_sequence = state.index_select(0, self.packing.sequence)
        return of_sequence.masked_fill(self.packing.starts_episode, 0)

    def last_states(self, states: Float[Tensor, "pieces state"]) -> Float[Tensor, "batch state"]:
        """Return the hidden state after each sequence.

        Args:
            states: (P, S), the hidden states after the segments.

        Returns:
            (N, S), those of the last segments.
        """
        if self.are_unbroken:
            return states
        return states.index_select(0, self.packing.last)

    def _to_device(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type != "cuda":
            return tensor
        # Only copies from pinned memory are asynchronous.
        return tensor.pin_memory().to(self.device, non_blocking=True)


class OneTimestep(Episodes):
    """The episode starts of one timestep, held in a tensor, as an exported program requires.

    Args:
        starts: (N,), True where an episode starts.
    """

    def __init__(self, starts: Bool[Tensor, " batch"]) -> None:
        self.is_start = starts
        self.device = starts.device

    # N is a symbolic size, not an int, while a program for any batch size is exported.

    @property
    def shape(self) -> tuple[int, Any]:
        """Return (1, N)."""
        return 1, self.is_start.shape[0]

    @property
    def batch_sizes(self) -> list[Any]:
        """Return [N], because all N segments have one timestep."""
        return [self.is_start.shape[0]]

    @cached_property
    def are_unbroken(self) -> bool:
        """Return True, because no timestep follows in which an episode could start."""
        return True

    @cached_property
    def number(self) -> Int[Tensor, "1 batch"]:
        """Return (1, N), the number of each timestep's episode, 0 or 1."""
        return self.is_start.long().unsqueeze(0)

    def reset_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        """Return the hidden state for the timestep: zeros where an episode starts.

        Args:
            state: (N, S), the hidden state before the timestep.
        """
        return state.masked_fill(self.is_start.unsqueeze(1), 0)

    def age(self, before: Float[Tensor, " batch"]) -> Float[Tensor, "1 batch"]:
        """Return (1, N), the number of earlier timesteps in each timestep's episode.

        Args:
            before: (N,), the number of timesteps of the episode that precede this one.
        """
        return before.masked_fill(self.is_start, 0).unsqueeze(0)
