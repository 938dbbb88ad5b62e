"""Which observations of a minibatch are equal: small worlds look alike, and what is alike is computed only once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LARGEST, LONGEST = 2**16, 1024
"""Digested are integers below the first, so many values at most: pixels hardly ever repeat, real numbers never do."""


class ObservationHashes:
    """A 64-bit number for each observation of a rollout, the same for the same observation.

    It is Σ mᵢ xᵢ mod 2⁶⁴ with random odd mᵢ, a universal hash: two different observations share one with a probability
    below 2⁻⁴⁷, whatever they are.

    :param parts: the observation's spaces by key, as ``store`` will see them.
    :param shape: timesteps and environments.
    """

    def __init__(self, parts: Mapping[str, spaces.Space[Any]], shape: tuple[int, int]) -> None:
        draw = np.random.default_rng(0)  # the same numbers in every run
        self.multipliers = {
            key: draw.integers(0, 2**64, _size(part), dtype=np.uint64) | np.uint64(1)
            for key, part in parts.items()
        }
        self.values = np.zeros(shape, dtype=np.uint64)

    @staticmethod
    def supports(parts: Mapping[str, spaces.Space[Any]]) -> bool:
        """Whether every part is made of small integers, and few of them."""
        return (
            all(_is_small(part) for part in parts.values())
            and sum(map(_size, parts.values())) <= LONGEST
        )

    def store(self, timestep: int, observation: Mapping[str, NDArray[Any]]) -> None:
        """Digest the observations (environments, …) of a timestep."""
        self.values[timestep] = sum(
            values.reshape(len(values), -1).astype(np.uint64) @ self.multipliers[key]
            for key, values in observation.items()
            if key in self.multipliers
        )


def _size(part: spaces.Space[Any]) -> int:
    return int(np.prod(part.shape or ()))


def _is_small(part: spaces.Space[Any]) -> bool:
    match part:
        case spaces.Box():
            return part.dtype.kind in "iu" and bool(
                part.low.min() >= 0 and part.high.max() < LARGEST
            )
        case spaces.Discrete():
            return bool(part.start >= 0 and part.start + part.n <= LARGEST)
        case spaces.MultiDiscrete():
            return bool(part.nvec.max() <= LARGEST)
        case _:
            return isinstance(part, spaces.MultiBinary)
