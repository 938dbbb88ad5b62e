"""The interface of engines, and code that all of them share."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from mirl.configs.errors import ConfigError, RunError

Item = TypeVar("Item")
Result = TypeVar("Result")
Handle = TypeVar("Handle")
THREADS = "OMP_NUM_THREADS"
"""Environment variable with the maximum number of torch's threads in a process."""
CPUS = "LOKY_MAX_CPU_COUNT"
"""Environment variable that sets joblib's ``cpu_count``, which determines how environments are
divided among processes and threads."""


class Engine(Protocol):
    """Anything that can execute independent calls of a function, several at a time."""

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        """Call a function with each item.

        Args:
            function: a function that can be pickled.
            items: arguments that can be pickled. The next one is taken when a process is free, so
                an iterator that ends early stops the engine.

        Yields:
            Each item with the result or the exception of its call, in order of completion. An
            exception, or the death of a process, does not stop the others.
        """
        ...


def keep_busy(
    items: Iterable[Item],
    jobs: int,
    start: Callable[[Item], Handle],
    wait: Callable[[list[Handle]], list[Handle]],
) -> Iterator[tuple[Item, Handle]]:
    """Start items asynchronously, several at a time; yield each with its handle when it has ended.

    Args:
        items: the items; the next one is taken when fewer than ``jobs`` are running.
        jobs: number of items at a time.
        start: starts an item and returns a handle for it.
        wait: waits briefly; returns those of the running handles that have ended.
    """
    waiting = iter(items)
    running: list[tuple[Item, Handle]] = []
    while True:
        for item in islice(waiting, jobs - len(running)):
            running.append((item, start(item)))
        if not running:
            return
        ended = wait([handle for _, handle in running])
        for pair in [pair for pair in running if pair[1] in ended]:
            running.remove(pair)
            yield pair


class JobDiedError(RunError):
    """The process of a call has died, so its result is unknown."""


def thread_variables(cpus: int) -> dict[str, str]:
    """Return the environment variables that limit the threads of a job.

    If ``OMP_NUM_THREADS`` of this process is smaller, it is kept.

    Args:
        cpus: number of CPUs of the job.
    """
    threads = cpus
    limit = os.environ.get(THREADS, "")
    if limit.isdecimal():
        threads = max(1, min(threads, int(limit)))
    return {THREADS: str(threads), CPUS: str(cpus)}


def divide(cores: int, jobs: int | None, n_runs: int) -> tuple[int, int]:
    """Divide cores among runs.

    Args:
        cores: number of cores.
        jobs: number of runs at a time; None for as many as there are cores.
        n_runs: total number of runs.

    Returns:
        The number of runs at a time, and the number of cores for each.
    """
    jobs = max(1, min(jobs or cores, n_runs))
    return jobs, max(1, cores // jobs)


class Outcome(NamedTuple):
    """The result of a call on another machine, in plain values that any machine can read."""

    result: object = None
    error: str = ""
    """Text of the exception, if there was one."""
    kind: str = ""
    """Name of its class."""

    def unwrap(self) -> object:
        """Return the result, or the exception as one of MIRL's."""
        if not self.kind:
            return self.result
        if self.kind == ConfigError.__name__:
            return ConfigError(self.error)
        return RunError(self.error)


def call_safely(function: Callable[[Item], object], item: Item) -> Outcome:
    """Call a function; return an exception as text instead of raising it.

    Ray and submitit pickle exceptions, which fails for some classes, and Ray repeats a call that
    exits.

    Args:
        function: the function.
        item: its argument.
    """
    try:
        return Outcome(function(item))
    except (ConfigError, RunError) as error:
        kind = ConfigError if isinstance(error, ConfigError) else RunError
        return Outcome(None, str(error), kind.__name__)
    except (Exception, SystemExit) as error:
        name = type(error).__name__
        return Outcome(None, f"{name}: {error}", name)
