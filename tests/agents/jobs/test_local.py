"""The engine calls functions in processes of their own."""

import os
from collections.abc import Iterator

import pytest
from engine_calls import call

from mirl.agents.jobs.engine import JobDiedError
from mirl.agents.jobs.local import OWNER, LokyEngine, local_engine


def test_failures_do_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception and a killed process are results like others; calls share no process."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = dict(LokyEngine(2, cpus=3).run(call, range(4)))
    assert isinstance(found[1], ValueError)
    assert isinstance(found[2], JobDiedError)
    first, last = found[0], found[3]
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert first[0] != last[0] != os.getpid()
    assert (first[1], last[1]) == ("3", "3")


def test_items_are_taken_when_free() -> None:
    """An iterator that ends early stops the engine, because it is not read ahead."""
    taken = []

    def items() -> Iterator[int]:
        for item in (0, 3, 0, 3):
            taken.append(item)
            yield item

    results = LokyEngine(1, cpus=1).run(call, items())
    next(results)
    assert len(taken) < 4
    assert len(list(results)) == 3


def test_processes_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirl.agents.jobs.local.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    engine = local_engine(2, 20)
    assert (engine.jobs, engine.cpus) == (2, 4)
    variables = {"OMP_NUM_THREADS": "4", "LOKY_MAX_CPU_COUNT": "4", OWNER: str(os.getpid())}
    assert engine.environment == variables
