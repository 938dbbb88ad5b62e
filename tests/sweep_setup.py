"""Tiny sweeps, and an engine that works in this process."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from comparison_setup import TINY

from mirl.agents.jobs.engine import Item, Result
from mirl.configs.commands.sweep import SweepConfig, parse_sweep


def sweep(folder: Path, *words: str) -> SweepConfig:
    """Return the configuration of a sweep of tiny runs in a folder."""
    return parse_sweep(["--multirun", *TINY, *words, f"out={folder}"])


class InProcessEngine:
    """Engine that calls the function itself, one item after the other."""

    def __init__(self) -> None:
        self.executed: list[object] = []

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        for item in items:
            self.executed.append(item)
            try:
                yield item, function(item)
            except Exception as error:
                yield item, error
