"""A grid: train and evaluate a run for each combination of values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import numpy as np
from rich.table import Table

from mirl.agents.jobs.engine import Engine
from mirl.agents.jobs.execution import build_engine, execute_and_log, log_path
from mirl.agents.jobs.trained_run import train_and_evaluate
from mirl.agents.result_tables import NO_SUCCESS
from mirl.agents.runs.atomic_files import load_json, write_json
from mirl.agents.statistics import TaskSummary
from mirl.agents.sweeps.plan import RECORDS, opened, write_results
from mirl.configs.commands.sweep import SweepConfig, SweepRun, describe, sweep_runs


class Record(TypedDict):
    """The results of a run, as its JSON file holds them."""

    settings: dict[str, str]
    run_dir: str
    words: list[str]
    timesteps: int
    seconds: float
    """Training time in seconds, since the run was last resumed."""
    success: float | None
    """Mean success rate of the trained tasks on test episodes; None if a task reports none."""
    episode_return: float
    """Mean return of the trained tasks on test episodes."""
    tasks: list[TaskSummary]


@dataclass(frozen=True)
class GridJob:
    """A run of a grid, to be executed in its own process.

    Args:
        name: name of the run directory.
        words: arguments of train.py.
        settings: the values that distinguish it from the other runs.
    """

    name: str
    words: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]

    def record_path(self, folder: Path) -> Path:
        """Return the path of its record, which exists once the run is finished.

        Args:
            folder: folder of the sweep.
        """
        return folder / RECORDS / f"{self.name}.json"


class GridResult(NamedTuple):
    """The state of a grid after ``run_grid``."""

    table: Table
    """All runs, for the terminal."""
    failures: dict[str, str]
    """The reason for each failure, by the name of the run."""
    missing: int
    """Number of runs that are not finished, failed ones included."""
    written: Path
    """The file of results."""


def run_grid(
    config: SweepConfig,
    log: Callable[[str], None] = lambda _: None,
    engine: Engine | None = None,
) -> GridResult:
    """Train and evaluate every run of a grid.

    Calling it again with the same configuration keeps finished runs and resumes the others. On
    Ctrl-C or SIGTERM the runs save a checkpoint and end.

    Args:
        config: the sweep.
        log: called with one line per finished or failed run.
        engine: executes the runs; None for the engine that the configuration chooses.

    Returns:
        The table, and the runs that failed or are not finished.

    Raises:
        ConfigError: an option is invalid, or the folder holds another sweep, or is in use.
    """
    runs = sweep_runs(config)
    with opened(config) as folder:
        jobs = [GridJob(run.name, run.words, tuple(run.settings.items())) for run in runs]
        waiting = []
        for run, job in zip(runs, jobs, strict=True):
            if not _is_finished(run, job, folder):
                waiting.append(job)
        if len(waiting) < len(runs):
            log(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already.")
        if engine is None:
            engine = build_engine(config, len(waiting), folder)
        failures = _execute(engine, waiting, folder, log)
        records: dict[str, Record] = {}
        for job in jobs:
            if job.record_path(folder).exists():
                records[job.name] = _load(job, folder)
        rows: list[dict[str, object]] = []
        for run in runs:
            row = dict(records[run.name]) if run.name in records else {"settings": run.settings}
            rows.append({"name": run.name, **row, "failure": failures.get(run.name, "")})
        written = write_results(folder, rows)
        table = _table(config, runs, records, failures)
        return GridResult(table, failures, len(runs) - len(records), written)


def _is_finished(run: SweepRun, job: GridJob, folder: Path) -> bool:
    """Return True if a run has a record and its directory has not been deleted since."""
    return job.record_path(folder).exists() and run.config.run_dir.is_dir()


def _execute(
    engine: Engine, jobs: Sequence[GridJob], folder: Path, log: Callable[[str], None]
) -> dict[str, str]:
    """Execute jobs until all have ended or a signal has come; return the failures."""
    for job in jobs:
        job.record_path(folder).unlink(missing_ok=True)
    return execute_and_log(
        engine,
        partial(train_and_record, folder=folder),
        jobs,
        folder,
        label=lambda job: describe(dict(job.settings)),
        summary=lambda job: _one_line(_load(job, folder)),
        log=log,
    )


def train_and_record(job: GridJob, folder: Path) -> bool:
    """Train a run, or resume it, evaluate it and write its record.

    Args:
        job: the run.
        folder: folder of the sweep.

    Returns:
        True if the run is finished, False if it was stopped.

    Raises:
        ConfigError: the run does not fit its environment, or its directory holds another run.
        RunError: the training failed.
    """
    run = train_and_evaluate([*job.words, "progress=false"], log_path(folder, job), folder)
    if run is None:
        return False
    result, evaluated, seconds = run
    tasks = [of_task.summary() for of_task in evaluated.results]
    trained = [task for task in tasks if task["subset"] == "trained"]
    known = [task["success_rate"] for task in trained if task["success_rate"] is not None]
    record: Record = {
        "settings": dict(job.settings),
        "run_dir": str(result.run.path),
        "words": list(job.words),
        "timesteps": result.timesteps,
        "seconds": seconds,
        "success": float(np.mean(known)) if len(known) == len(trained) else None,
        "episode_return": float(np.mean([task["return_mean"] for task in trained])),
        "tasks": tasks,
    }
    write_json(job.record_path(folder), record)
    return True


def _load(job: GridJob, folder: Path) -> Record:
    return cast(Record, load_json(job.record_path(folder)))


# -------------------------------------------------------------------------------------------- table


def _success(record: Record) -> str:
    rate = record["success"]
    return NO_SUCCESS if rate is None else f"{rate:.1%}"


def _one_line(record: Record) -> str:
    return f"success {_success(record)}, return {record['episode_return']:.3f}"


def _table(
    config: SweepConfig,
    runs: Sequence[SweepRun],
    records: dict[str, Record],
    failures: dict[str, str],
) -> Table:
    """Return a table with a row per run: its settings, its results and its directory."""
    table = Table(title="After training, on unseen episodes", title_justify="left")
    for name in config.swept:
        table.add_column(name, overflow="fold")
    for name in ("success", "return"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("run", overflow="fold")
    for run in runs:
        results = ("missing", "")
        if run.name in records:
            record = records[run.name]
            results = (_success(record), f"{record['episode_return']:.3f}")
        elif run.name in failures:
            results = ("failed", "")
        table.add_row(*run.settings.values(), *results, str(run.config.run_dir))
    return table
