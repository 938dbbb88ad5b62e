"""Engines, which execute the runs of a comparison; the one here uses processes of this machine."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import ProcessPoolExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = "OMP_NUM_THREADS"
"""Environment variable with the largest number of torch's threads in a process."""
CPUS = "LOKY_MAX_CPU_COUNT"
"""Environment variable with the result of joblib's ``cpu_count``, by which environments are
divided among processes and threads."""
OWNER = "MIRL_OWNER"
"""Environment variable with the id of the process that has started this one and waits for it."""


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
            Each item with the result or the exception of its call, in the order in which they end.
            An exception, or the death of a process, does not stop the others.
        """
        ...


class LokyEngine:
    """Start a process per call with joblib's loky, on this machine.

    A process of its own for each call keeps the death of one from ending the others, and begins
    without what an earlier call has allocated or imported.

    Args:
        jobs: number of processes at a time.
        cpus: number of CPUs of each of them.
    """

    def __init__(self, jobs: int, cpus: int) -> None:
        self.jobs = jobs
        self.cpus = cpus

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the processes."""
        threads = self.cpus
        limit = os.environ.get(THREADS, "")
        if limit.isdecimal():
            threads = max(1, min(threads, int(limit)))
        return {THREADS: str(threads), CPUS: str(self.cpus), OWNER: str(os.getpid())}

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        """Call a function with each item, in processes; see ``Engine``.

        Args:
            function: a function that can be pickled.
            items: arguments that can be pickled.

        Yields:
            Each item with the result or the exception of its call.
        """
        # a thread waits for each process
        parallel = Parallel(
            self.jobs,
            backend="threading",
            batch_size=1,
            pre_dispatch="n_jobs",
            return_as="generator_unordered",
        )
        yield from parallel(delayed(self._call)(function, item) for item in items)

    def _call(
        self, function: Callable[[Item], Result], item: Item
    ) -> tuple[Item, Result | BaseException]:
        with ProcessPoolExecutor(max_workers=1, env=self.environment) as executor:
            try:
                return item, executor.submit(function, item).result()
            # the caller reports it, whatever it is, when the others have ended
            except BaseException as error:
                return item, error


def local_engine(jobs: int | None, n_runs: int) -> LokyEngine:
    """Return an engine that divides the cores of this machine among the runs.

    Args:
        jobs: number of runs at a time; None for as many as there are cores.
        n_runs: number of runs in all.

    Returns:
        The engine.
    """
    cores = cpu_count()
    jobs = max(1, min(jobs or cores, n_runs))
    return LokyEngine(jobs, max(1, cores // jobs))
