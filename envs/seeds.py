"""Environment seeds: one per slot, and none that two splits share."""

from typing import Literal

import numpy as np

from mirl.configs.errors import ConfigError, nearest

SeedSplit = Literal["train", "validation", "test"]

_RANGES: dict[SeedSplit, tuple[int, int]] = {  # all fit in EnvPool's 32-bit signed seeds
    "train": (0, 2**30),
    "validation": (2**30, 2**29),
    "test": (2**30 + 2**29, 2**29),
}


def env_seeds(seed: int, seed_split: SeedSplit, task_index: int, n: int) -> list[int]:
    """Seeds of a task's n slots, from the split's own range of numbers."""
    if seed_split not in _RANGES:
        raise ConfigError(f"unknown seed_split '{seed_split}'." + nearest(seed_split, _RANGES))
    start, size = _RANGES[seed_split]
    state = np.random.SeedSequence([seed, start, task_index]).generate_state(n)
    return [int(value) % size + start for value in state]


def another_seed(seed: int) -> int:
    """In place of the seed of an environment that failed, of the same split."""
    for start, size in _RANGES.values():
        if start <= seed < start + size:
            return int(np.random.SeedSequence(seed).generate_state(1)[0]) % size + start
    raise ValueError(f"expected a seed of a split, got {seed}")
