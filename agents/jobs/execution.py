"""Execute jobs in a folder: its lock, stop signals, and the reasons for failures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock, Timeout

from mirl.agents.callbacks.schedule import stop_signals
from mirl.agents.jobs.engine import Engine
from mirl.agents.jobs.local import local_engine
from mirl.agents.jobs.process import STOP
from mirl.configs.commands.engines import EngineConfig
from mirl.configs.errors import ConfigError, RunError

LOGS = "logs"
"""Folder with the output of each job."""


class Job(Protocol):
    """A job in a folder."""

    @property
    def name(self) -> str:
        """Its name, which is unique within the folder."""
        ...


JobT = TypeVar("JobT", bound=Job)


def log_path(folder: Path, job: Job) -> Path:
    """Return the path of the file with a job's output.

    Args:
        folder: folder of the jobs.
        job: one of them.
    """
    return folder / LOGS / f"{job.name}.txt"


def check_engine(config: EngineConfig) -> None:
    """Raise if the engine is not available, before anything is written.

    Args:
        config: the configuration that chooses it.

    Raises:
        ConfigError: its package is not installed, or there is no such cluster.
    """
    if config.slurm and config.engine != "slurm":
        options = ", ".join(f"slurm.{key}" for key in config.slurm)
        raise ConfigError(f"{options}: expected engine=slurm, got engine={config.engine}")
    match config.engine:
        case "local":
            return
        # imported on use, because the others are optional
        case "slurm":
            from mirl.agents.jobs.slurm import check_slurm

            check_slurm(config.slurm)
        case "ray":
            from mirl.agents.jobs.ray_cluster import check_ray

            check_ray()


def build_engine(config: EngineConfig, n_runs: int, folder: Path) -> Engine:
    """Return the engine that a configuration chooses.

    Args:
        config: the configuration.
        n_runs: total number of runs.
        folder: folder of the jobs, which all machines share.

    Returns:
        The engine.

    Raises:
        ConfigError: its package is not installed, or there is no such cluster.
    """
    match config.engine:
        case "local":
            return local_engine(config.jobs, n_runs)
        case "slurm":
            from mirl.agents.jobs.slurm import slurm_engine

            return slurm_engine(config.jobs, n_runs, folder, config.slurm)
        case "ray":
            from mirl.agents.jobs.ray_cluster import ray_engine

            return ray_engine(config.jobs, n_runs)


def execute(
    engine: Engine,
    function: Callable[[JobT], object],
    jobs: Iterable[JobT],
    folder: Path,
    on_end: Callable[[JobT, object, str], None],
) -> None:
    """Execute jobs until all have ended; on a signal, ask them to save a checkpoint and end.

    Args:
        engine: the engine.
        function: executes one job.
        jobs: the jobs; the next one is taken when it can begin.
        folder: folder of the jobs.
        on_end: called with each job that has ended, its result, and one line about the exception
            that ended it, which is empty if there was no exception.
    """
    with stop_signals((folder / STOP).touch) as stop_requested:

        def waiting() -> Iterator[JobT]:
            for job in jobs:
                if stop_requested():
                    return
                yield job

        for job, outcome in engine.run(function, waiting()):
            if not isinstance(outcome, BaseException):
                on_end(job, outcome, "")
            elif not stop_requested():
                on_end(job, outcome, _reason(outcome, log_path(folder, job)))


def execute_and_log(
    engine: Engine,
    function: Callable[[JobT], object],
    jobs: Sequence[JobT],
    folder: Path,
    *,
    label: Callable[[JobT], str],
    summary: Callable[[JobT], str],
    log: Callable[[str], None],
) -> dict[str, str]:
    """Execute jobs as ``execute`` does, and log one line per finished or failed job.

    Args:
        engine: the engine.
        function: executes one job; returns True if it is finished.
        jobs: the jobs.
        folder: folder of the jobs.
        label: returns the name of a job for its line.
        summary: returns the results of a finished job for its line.
        log: called with each line.

    Returns:
        The reason for each failure, by the name of the job.
    """
    failures: dict[str, str] = {}
    n_ended = 0

    def on_end(job: JobT, is_finished: object, failure: str) -> None:
        nonlocal n_ended
        n_ended += 1
        if failure:
            failures[job.name] = failure
            log(f"[{n_ended}/{len(jobs)}] {label(job)}: failed")
        elif is_finished:
            log(f"[{n_ended}/{len(jobs)}] {label(job)}: {summary(job)}")

    execute(engine, function, jobs, folder, on_end)
    return failures


def _reason(error: BaseException, log: Path) -> str:
    """Return one line about the error that ended a job."""
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError | RunError):
        return text
    return f"{type(error).__name__}: {text} (traceback: {log})"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder and keep other processes from executing jobs in it.

    Args:
        folder: the folder.

    Raises:
        ConfigError: it cannot be created, or another process works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be created: {error.strerror}") from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another process works in {folder}; wait for it, or choose another out=…"
        ) from None
    try:
        (folder / STOP).unlink(missing_ok=True)
        yield
    finally:
        lock.release()
