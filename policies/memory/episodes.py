"""Where episodes start inside sequences, so that a memory reads many of them in one piece and mixes none."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor


class Packing(NamedTuple):
    """The pieces between two starts of an episode, the longest first, in the order of ``torch``'s packed sequences.

    A piece begins where an episode does, or where its sequence does.
    """

    rows: Int[Tensor, " steps"]
    """For each packed row its place in (T, N)."""
    places: Int[Tensor, " steps"]
    """For each place in (T, N) its packed row."""
    sizes: list[int]
    """How many pieces have a first, a second, … timestep."""
    sequence: Int[Tensor, " pieces"]
    """Of each piece."""
    inside: Bool[Tensor, "pieces 1"]
    """Whether it begins inside its sequence, where an episode does."""
    last: Int[Tensor, " batch"]
    """The piece that each sequence ends with."""


class Episodes:
    """Which timesteps of N sequences, T timesteps each, are the first of an episode.

    They are held in the host's memory: how many pieces there are decides what is computed, and the device need not be
    asked.
    """

    def __init__(self, starts: NDArray[np.bool_], device: torch.device | str = "cpu") -> None:
        self.starts, self.device = starts, torch.device(device)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, N)"""
        steps, sequences = self.starts.shape
        return steps, sequences

    @cached_property
    def are_whole(self) -> bool:
        """No episode starts behind the first timestep: each sequence is one piece."""
        return not self.starts[1:].any()

    @cached_property
    def episode(self) -> Int[Tensor, "time batch"]:
        """The number of the episode in its sequence; that which began before the sequence has number 0."""
        return self._on_device(self.starts.cumsum(0))

    def kept(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch state"]:
        """What is still remembered at the first timestep: nothing where an episode starts."""
        return state.masked_fill(self._on_device(self.starts[0, :, None]), 0)

    def age(self, before: Float[Tensor, " batch"]) -> Float[Tensor, "time batch"]:
        """How many timesteps of its episode precede each, given how many precede the sequence."""
        time = np.arange(len(self.starts))[:, None]
        start = np.maximum.accumulate(np.where(self.starts, time, -1), axis=0)
        since_start = self._on_device(np.where(start < 0, time, time - start)).to(before.dtype)
        return since_start + before * self._on_device(start < 0)

    @cached_property
    def packing(self) -> Packing:
        """The pieces."""
        steps, sequences = self.shape
        begins_piece = self.starts.copy()
        begins_piece[0] = True
        # what follows counts a sequence's timesteps first
        piece = begins_piece.T.reshape(-1).cumsum() - 1
        begins = np.flatnonzero(begins_piece.T)
        lengths = np.diff(begins, append=steps * sequences)
        longest_first = np.argsort(-lengths, kind="stable")
        rank = np.empty_like(longest_first)
        rank[longest_first] = np.arange(len(rank))
        age = np.arange(steps * sequences) - begins[piece]
        order = np.lexsort((rank[piece], age))
        rows = order % steps * sequences + order // steps
        places = np.empty_like(rows)
        places[rows] = np.arange(len(rows))
        sequence, first = np.divmod(begins[longest_first], steps)
        return Packing(
            self._on_device(rows),
            self._on_device(places),
            np.bincount(age).tolist(),
            self._on_device(sequence),
            self._on_device(first[:, None] > 0),
            self._on_device(rank[piece[steps - 1 :: steps]]),
        )

    @property
    def sizes(self) -> list[int]:
        """How many pieces have a first, a second, … timestep."""
        steps, sequences = self.shape
        return [sequences] * steps if self.are_whole else self.packing.sizes

    def pack(self, values: Float[Tensor, "time batch dim"]) -> Float[Tensor, "steps dim"]:
        """The timesteps of the pieces: the first of each, the longest piece first, then the second of each, …"""
        steps = values.flatten(0, 1)
        return steps if self.are_whole else steps.index_select(0, self.packing.rows)

    def unpack(self, packed: Float[Tensor, "steps dim"]) -> Float[Tensor, "time batch dim"]:
        """What was computed for them, in their places."""
        steps = packed if self.are_whole else packed.index_select(0, self.packing.places)
        return steps.unflatten(0, self.shape)

    def first_states(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "pieces state"]:
        """The state that each piece begins with."""
        if self.are_whole:
            return state
        return state.index_select(0, self.packing.sequence).masked_fill(self.packing.inside, 0)

    def last_states(self, states: Float[Tensor, "pieces state"]) -> Float[Tensor, "batch state"]:
        """Of the states that the pieces end with, those that the sequences do."""
        return states if self.are_whole else states.index_select(0, self.packing.last)

    def _on_device(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.device.type == "cuda"
            else tensor
        )
