"""Engine that executes calls in processes on this machine."""

import os
from collections.abc import Callable, Iterable, Iterator

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from mirl.agents.jobs.engine import Item, JobDiedError, Result, divide, thread_variables

OWNER = "MIRL_OWNER"
"""Environment variable with the id of the process that started this one and waits for it."""


class LokyEngine:
    """Start a process per call with joblib's loky, on this machine.

    With a separate process per call, the death of one does not end the others, and none inherits
    the memory or imports of an earlier call.

    Args:
        jobs: number of processes at a time.
        cpus: number of CPUs for each of them.
    """

    def __init__(self, jobs: int, cpus: int) -> None:
        self.jobs = jobs
        self.cpus = cpus

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the processes."""
        return {**thread_variables(self.cpus), OWNER: str(os.getpid())}

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
            except TerminatedWorkerError:
                return item, JobDiedError(
                    "its process died, killed or out of memory; fewer jobs=… need less memory"
                )
            # the caller reports any exception when the others have ended
            except BaseException as error:
                return item, error


def local_engine(jobs: int | None, n_runs: int) -> LokyEngine:
    """Return an engine that divides the cores of this machine among the runs.

    Args:
        jobs: number of runs at a time; None for as many as there are cores.
        n_runs: total number of runs.

    Returns:
        The engine.
    """
    return LokyEngine(*divide(cpu_count(), jobs, n_runs))
