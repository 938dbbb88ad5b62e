"""Minibatches: their samples, the order of their rows, and which of their observations are equal.

In small worlds many observations of a rollout are equal. Equal ones share one forward pass.

Shapes: B samples of a minibatch, U unique observations among them (U <= B).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mirl.agents.on_policy.bit_packing import Space, Values
from mirl.agents.on_policy.storage import PolicyInput, Rows
from mirl.policies.recurrent import Sequences

MAX_INTEGER = 2**16
"""Upper bound of the integers that are hashed; real numbers hardly ever repeat."""
MAX_VALUES = 1024
"""Maximum number of values of a hashed observation: images hardly ever repeat."""
N_BUCKETS = 16
"""Number of different batch sizes that ``pad_to_bucket`` allows."""


class Samples(NamedTuple):
    """A minibatch; the names are those of SB3's ``RolloutBufferSamples``."""

    observations: PolicyInput
    """(U, ...), the unique observations if ``inverse`` is given, else (B, ...)."""
    actions: Tensor
    """(B, ...)."""
    old_values: Tensor
    """(B,), the values at the time of the rollout."""
    old_log_prob: Tensor
    """(B,), the log-probabilities at the time of the rollout."""
    advantages: Tensor
    """(B,), the advantages for the policy loss, as scaled by the update."""
    returns: Tensor
    """(B,), the targets of the value function."""
    inverse: Tensor | None = None
    """(B,), the index of each sample's observation, as in ``torch.unique(return_inverse=True)``;
    None if every sample has its own."""
    task_ids: Tensor | None = None
    """(B,), the task of each sample; None if there is one task."""
    sequences: Sequences | None = None
    """Hidden states and episode starts, for a recurrent policy; the samples are then these
    sequences, time first."""
    share: float = 1.0
    """Fraction of the minibatch in these samples; the other ranks have the rest. The gradient is
    the sum over the ranks of ``share`` times the gradient of their mean loss."""
    all_advantages: Tensor | None = None
    """(M,), the advantages of the minibatch on all ranks; None if these samples are all."""
    all_task_ids: Tensor | None = None
    """(M,), their tasks; None if these samples are all, or there is one task."""


class ObservationHashes:
    """A 64-bit hash of each observation of a rollout.

    The hash is Σ mᵢ xᵢ mod 2⁶⁴ with random odd multipliers mᵢ, a universal hash: the probability
    that two different observations collide is below 2⁻⁴⁷.

    Args:
        space: the space of each observation key.
        shape: (T, N), timesteps and environments.

    References:
        Carter and Wegman, "Universal Classes of Hash Functions", JCSS 1979.
    """

    def __init__(self, space: Mapping[str, Space], shape: tuple[int, int]) -> None:
        # A fixed seed: the same hashes in every run, and no draw from a global generator.
        rng = np.random.default_rng(0)
        self.multipliers: dict[str, NDArray[np.uint64]] = {}
        for key, part in space.items():
            drawn = rng.integers(0, 2**64, _size(part), dtype=np.uint64)
            # Odd numbers are invertible mod 2⁶⁴: changing one value always changes the hash.
            self.multipliers[key] = drawn | np.uint64(1)
        self.values = np.zeros(shape, np.uint64)

    @staticmethod
    def supports(space: Mapping[str, Space]) -> bool:
        """Return True if observations consist of few small integers, so that some may be equal.

        Args:
            space: the space of each observation key.
        """
        are_small = all(_has_small_integers(part) for part in space.values())
        return are_small and sum(_size(part) for part in space.values()) <= MAX_VALUES

    def store(self, timestep: int, observation: Mapping[str, Values]) -> None:
        """Hash the observations of one timestep.

        Args:
            timestep: t, the timestep of the rollout.
            observation: (N, ...) for each key.
        """
        hashes = np.zeros(self.values.shape[1], np.uint64)
        for key, multipliers in self.multipliers.items():
            values = observation[key]
            # Unsigned arithmetic wraps around, which is the mod 2⁶⁴.
            hashes += values.reshape(len(values), -1).astype(np.uint64) @ multipliers
        self.values[timestep] = hashes


class RowOrder(NamedTuple):
    """An order of the rows of a minibatch, and its unique observations."""

    order: Rows
    """(B,), a permutation that sorts the rows by context, then by observation."""
    first: Rows | slice
    """(U,), the position in that order of the first row with each observation, padded to one of few
    sizes; a slice of all positions if every row has its own observation."""
    inverse: Rows | None
    """(B,), the index in ``first`` of each row in that order; None if every row has its own."""
    n_unique: int
    """U, without the padding."""


def sort_rows(
    n_rows: int, contexts: NDArray[np.int32] | None, hashes: NDArray[np.uint64] | None
) -> RowOrder:
    """Sort the rows of a minibatch by context and observation, and find the unique observations.

    Args:
        n_rows: B.
        contexts: (B,), the index of each row's context; None not to sort by context.
        hashes: (B,), the hash of each row's observation; None if no observations are shared.
    """
    # Without hashes, every row keeps its own observation.
    if hashes is None:
        order = np.arange(n_rows)
        if contexts is not None:
            order = np.argsort(contexts, kind="stable")
        return RowOrder(order, slice(None), None, n_rows)
    # np.lexsort sorts by its last key first.
    sort_keys: list[NDArray[np.generic]] = [hashes]
    if contexts is not None:
        sort_keys.append(contexts)
    order = np.lexsort(sort_keys)
    sorted_hashes = hashes[order]
    # The first hash differs from its own complement, so that the first row always counts.
    is_first = np.diff(sorted_hashes, prepend=~sorted_hashes[0]) != 0
    first = np.flatnonzero(is_first)
    # Count the first rows up to each row: 0 for the rows of the first observation.
    inverse = np.cumsum(is_first) - 1
    return RowOrder(order, pad_to_bucket(first, n_rows), inverse, len(first))


def pad_to_bucket(rows: Rows, max_rows: int) -> Rows:
    """Repeat the last row until the number of rows is one of ``N_BUCKETS`` sizes.

    oneDNN compiles and caches one kernel per shape, so batches of few sizes are faster. Beyond
    ``max_rows`` the sizes continue in the same steps.

    Args:
        rows: (B,), indices of rows.
        max_rows: the largest number of rows to expect.

    Returns:
        (B',), the padded rows, with B' >= B.
    """
    bucket = -(-max_rows // N_BUCKETS)  # rounded up
    # -n % bucket is the number of rows missing to the next multiple of the bucket.
    return np.pad(rows, (0, -len(rows) % bucket), mode="edge")


def _size(space: Space) -> int:
    # Discrete has the shape (), whose product is 1.
    return int(np.prod(space.shape or ()))


def _has_small_integers(space: Space) -> bool:
    match space:
        case spaces.Box():
            is_integer = space.dtype.kind in "iu"
            return is_integer and bool(space.low.min() >= 0 and space.high.max() < MAX_INTEGER)
        case spaces.Discrete():
            return bool(space.start >= 0 and space.start + space.n <= MAX_INTEGER)
        case spaces.MultiDiscrete():
            return bool(space.nvec.max() <= MAX_INTEGER)
        case _:
            return isinstance(space, spaces.MultiBinary)
