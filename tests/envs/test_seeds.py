"""Tests of the environment seeds."""

import re
from typing import Any, get_args

import pytest

from mirl.configs.errors import ConfigError
from mirl.envs.seeds import SeedSplit, env_seeds, replacement_seed

RANGES: dict[SeedSplit, tuple[int, int]] = {
    "train": (0, 2**30),
    "validation": (2**30, 2**30 + 2**29),
    "test": (2**30 + 2**29, 2**31),
}


def test_splits_share_no_seed() -> None:
    """The seeds of the splits come from disjoint ranges."""
    assert set(RANGES) == set(get_args(SeedSplit))
    for split in get_args(SeedSplit):
        start, end = RANGES[split]
        for seed in (0, 1, 2**31 - 1):
            for task_index in range(3):
                seeds = env_seeds(seed, split, task_index, 500)
                assert all(start <= value < end for value in seeds)


def test_neighboring_seeds_share_no_seed() -> None:
    """Neighboring seeds and tasks have no environment seed in common."""
    groups = [set(env_seeds(seed, "train", task, 100)) for seed in range(5) for task in range(5)]
    assert len(set().union(*groups)) == 2500


def test_unknown_split_is_an_error() -> None:
    split: Any = "tset"
    message = re.escape("unknown seed_split 'tset'. Did you mean 'test'")
    with pytest.raises(ConfigError, match=message):
        env_seeds(0, split, 0, 1)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_replacement_keeps_the_split(split: SeedSplit) -> None:
    """A replacement seed is a new seed of the same split."""
    seeds = env_seeds(0, split, 0, 200)
    lowest, highest = RANGES[split]
    replacements = [replacement_seed(seed) for seed in seeds]
    assert all(lowest <= seed < highest for seed in replacements)
    assert not set(replacements) & set(seeds)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_replacement_of_foreign_seed_fails(seed: int) -> None:
    """A seed that belongs to no split has no replacement."""
    with pytest.raises(ValueError, match=rf"from 0 to 2\*\*31 - 1.*got {seed}"):
        replacement_seed(seed)
