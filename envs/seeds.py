"""Environment seeds: one per environment, from disjoint ranges for training and evaluation."""

from typing import Literal

import numpy as np

from mirl.configs.errors import ConfigError, nearest

SeedSplit = Literal["train", "validation", "test"]
"""Purpose of an environment; no seed belongs to two splits."""

_RANGES: dict[SeedSplit, tuple[int, int]] = {
    "train": (0, 2**30),
    "validation": (2**30, 2**29),
    "test": (2**30 + 2**29, 2**29),
}
"""First seed and number of seeds of each split; all fit EnvPool's signed 32-bit seeds."""


def env_seeds(seed: int, seed_split: SeedSplit, task_index: int, n: int) -> list[int]:
    """Return the seeds of a task's environments.

    Args:
        seed: seed from which they are derived.
        seed_split: split whose range they come from.
        task_index: index of the task in its suite.
        n: number of environments of the task.

    Returns:
        n seeds. Seeds of one split can coincide by chance, seeds of two splits cannot.

    Raises:
        ConfigError: if the split is unknown.
    """
    if seed_split not in _RANGES:
        raise ConfigError(f"unknown seed_split '{seed_split}'." + nearest(seed_split, _RANGES))
    start, size = _RANGES[seed_split]
    # Each value is a hash of all three numbers, so neighboring seeds give unrelated values.
    values = np.random.SeedSequence([seed, start, task_index]).generate_state(n)
    return [int(value) % size + start for value in values]


def replacement_seed(seed: int) -> int:
    """Return a new seed of the same split for an environment that failed.

    Args:
        seed: the seed of the environment that failed.

    Raises:
        ValueError: if the seed does not belong to any split.
    """
    for start, size in _RANGES.values():
        if start <= seed < start + size:
            # A hash of the old seed, so that a run with the same failures can be repeated.
            value = np.random.SeedSequence(seed).generate_state(1)[0]
            return int(value) % size + start
    raise ValueError(f"seed must be from 0 to 2**31 - 1, as env_seeds() returns it, got {seed}")
