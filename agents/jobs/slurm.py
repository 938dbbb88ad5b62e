"""Engine that submits calls as Slurm jobs with submitit."""

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from joblib import cpu_count

from mirl.agents.jobs.engine import (
    Item,
    JobDiedError,
    Outcome,
    Result,
    call_safely,
    divide,
    keep_busy,
    thread_variables,
)
from mirl.agents.jobs.process import STOP
from mirl.configs.errors import ConfigError

FOLDER = "slurm"
"""Folder of submitit's files, inside the folder of the jobs."""
TIMEOUT_MINUTES = 24 * 60
"""Default time limit of a job in minutes; submitit's own default is a few minutes."""
POLL_SECONDS = 0.5
"""Seconds between two checks of the jobs."""
GENERIC = ("mem_gb", "nodes", "gpus_per_node", "cpus_per_task", "tasks_per_node", "timeout_min")
"""Options that submitit has for every cluster; the others are named ``slurm_...``."""


class ResumableCall:
    """A call that submitit resubmits when its job reaches the time limit."""

    def __call__(self, function: Callable[[Item], object], item: Item) -> Outcome:
        """Call a function.

        Args:
            function: the function.
            item: its argument.
        """
        return call_safely(function, item)

    def checkpoint(self, function: Callable[[Item], object], item: Item) -> object:
        """Return the call that resumes from the last checkpoint of the run.

        Args:
            function: the function.
            item: its argument.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self, function, item)


class SlurmEngine:
    """Submit a Slurm job per call.

    The jobs continue if the command is killed; a repeated command waits for them.

    Args:
        folder: folder of the jobs, which all machines share.
        jobs: number of jobs in the queue at a time.
        options: options of the jobs, as ``submitit.AutoExecutor`` takes them.
        cluster: ``slurm``, or ``local`` for processes on this machine.
    """

    def __init__(
        self, folder: Path, jobs: int, options: Mapping[str, object], cluster: str
    ) -> None:
        self.folder = folder
        self.jobs = jobs
        self.options = dict(options)
        self.cluster = cluster

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | BaseException]]:
        """Call a function with each item, in jobs; see ``Engine``.

        Args:
            function: a function that can be pickled.
            items: arguments that can be pickled.

        Yields:
            Each item with the result or the exception of its call.
        """
        executor = self._executor()

        def start(item: Item) -> Any:
            with self._environment():
                return executor.submit(ResumableCall(), function, item)

        for item, job in keep_busy(items, self.jobs, start, self._wait):
            yield item, cast(Result | BaseException, _outcome(job))

    def _wait(self, jobs: list[Any]) -> list[Any]:
        """Return the jobs that have ended; wait briefly if there are none."""
        if (self.folder / STOP).exists():
            self._cancel_pending(jobs)
        ended = [job for job in jobs if job.done()]
        if not ended:
            time.sleep(POLL_SECONDS)
        return ended

    def _executor(self) -> Any:
        import submitit

        executor = submitit.AutoExecutor(
            folder=(self.folder / FOLDER).absolute(), cluster=self.cluster
        )
        try:
            executor.update_parameters(**self.options)
        except (AssertionError, NameError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"slurm.: submitit does not take these options: {reason}") from None
        return executor

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Set the variables that a job inherits, which limit its threads."""
        variables = thread_variables(cast(int, self.options["cpus_per_task"]))
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _cancel_pending(self, jobs: Iterable[Any]) -> None:
        for job in jobs:
            if job.state == "PENDING":
                job.cancel()


def _outcome(job: Any) -> object:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return cast(Outcome, job.result()).unwrap()
    except (FailedJobError, UncompletedJobError) as error:
        state = f"job {job.job_id} ended as {job.state} without a result"
        lines = [line for line in str(error).splitlines() if line.strip()]
        return JobDiedError(f"{state}: {lines[-1].strip() if lines else ''} ({job.paths.stderr})")


def check_slurm(options: Mapping[str, str]) -> None:
    """Raise unless jobs can be submitted.

    Args:
        options: the options of the Slurm jobs.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm, or an option is wrong.
    """
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("engine=slurm needs submitit: pip install 'mirl[sweep]'")
    cluster = options.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise ConfigError(f"slurm.cluster: expected slurm or local, got '{cluster}'")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "engine=slurm: no srun here; start the command on a machine of a Slurm cluster, or use "
            "engine=local; slurm.cluster=local tries the jobs without Slurm"
        )


def slurm_engine(
    jobs: int | None, n_runs: int, folder: Path, options: Mapping[str, str]
) -> SlurmEngine:
    """Return an engine that submits jobs.

    Args:
        jobs: number of jobs in the queue at a time; None for all of them.
        n_runs: total number of runs.
        folder: folder of the jobs.
        options: the options of the Slurm jobs, as typed by the user; ``cluster=local`` divides the
            cores of this machine instead.

    Returns:
        The engine.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm, or an option is wrong.
    """
    check_slurm(options)
    given = {key: int(value) if value.isdecimal() else value for key, value in options.items()}
    cluster = str(given.pop("cluster", "slurm"))
    at_once = max(1, min(jobs or n_runs, n_runs))
    cpus = 1
    if cluster == "local":
        at_once, cpus = divide(cpu_count(), jobs, n_runs)
    parameters: dict[str, object] = {"cpus_per_task": cpus, "timeout_min": TIMEOUT_MINUTES}
    for key, option in given.items():
        parameters["timeout_min" if key == "time" else key] = option
    typed: dict[str, object] = {}
    for key, parameter in parameters.items():
        typed[key if key in GENERIC else f"slurm_{key}"] = parameter
    if not isinstance(typed["cpus_per_task"], int):
        raise ConfigError(f"slurm.cpus_per_task: expected a number, got '{typed['cpus_per_task']}'")
    return SlurmEngine(folder, at_once, typed, cluster)
