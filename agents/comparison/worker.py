"""One run of a comparison, in a process of its own: train, evaluate and record it."""

import csv
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout

from mirl.agents.comparison.engine import OWNER
from mirl.agents.comparison.machine import machine
from mirl.agents.context_use import ContextUseSummary
from mirl.agents.evaluation import RunEvaluation, evaluate_run
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.atomic_files import write_json
from mirl.agents.runs.run import LOCK
from mirl.agents.statistics import TaskSummary
from mirl.agents.training import TrainResult, train
from mirl.configs.comparison import run_name
from mirl.configs.compose import compose_train
from mirl.configs.imports import load_plugins

RUNS = "runs"
"""Folder of the run directories, inside that of the comparison."""
RECORDS = "records"
"""Folder with a JSON file per finished run."""
LOGS = "logs"
"""Folder with what each run has printed."""
STOP = "stop"
"""File that asks all runs to save a checkpoint and to end."""
POLL_SECONDS = 0.5
"""Seconds between two looks at the file."""
LOCK_SECONDS = 60
"""Seconds to wait for the process of a comparison that was killed to leave the run directory."""

Curve = list[tuple[int, float]]
"""Timesteps and value of each evaluation during training."""


class Record(TypedDict):
    """The results of a run, as its JSON file holds them."""

    setting: str
    task: str
    seed: int
    options: list[str]
    parameters: int
    timesteps: int
    seconds: float
    """Time of the training, since it was last resumed."""
    tasks: list[TaskSummary]
    context_use: ContextUseSummary | None
    success_curve: Curve
    return_curve: Curve
    held_out_curve: Curve
    machine: dict[str, object]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a comparison.

    Args:
        setting: name of the setting.
        task: the task as it was typed.
        seed: seed of the run.
        options: options of ``train.py`` of this setting and task.
    """

    setting: str
    task: str
    seed: int
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of its run directory."""
        return run_name(self.setting, self.task, self.seed)

    def words(self, folder: Path) -> list[str]:
        """Return the arguments of ``train.py`` that make this run.

        Args:
            folder: folder of the comparison.
        """
        return [
            *self.options,
            f"seed={self.seed}",
            f"name={self.name}",
            f"runs_dir={folder / RUNS}",
            "progress=false",
        ]

    def record_path(self, folder: Path) -> Path:
        """Return the file of its record, which exists when the run is finished.

        Args:
            folder: folder of the comparison.
        """
        return folder / RECORDS / f"{self.name}.json"

    def log_path(self, folder: Path) -> Path:
        """Return the file with what the run prints.

        Args:
            folder: folder of the comparison.
        """
        return folder / LOGS / f"{self.name}.txt"


def train_and_evaluate(planned: PlannedRun, folder: Path) -> bool:
    """Train a run, or resume it, evaluate it and write its record.

    Args:
        planned: the run.
        folder: folder of the comparison.

    Returns:
        True if the run is finished, False if it was stopped.

    Raises:
        ConfigError: the run does not fit its environment.
        RunError: the training failed.
    """
    with _logged(planned.log_path(folder)) as log, _stop_on_request(folder / STOP):
        _reset_start_method()
        load_plugins()
        config = compose_train(planned.words(folder))
        _wait_for_lock(config.run_dir)
        started = time.perf_counter()
        result = train(config, log)
        if not result.finished:
            return False
        seconds = time.perf_counter() - started
        evaluated = evaluate_run(result.run, result.checkpoint, config.test_evaluation)
    write_json(planned.record_path(folder), _record(planned, result, evaluated, seconds))
    return True


def _record(
    planned: PlannedRun, result: TrainResult, evaluated: RunEvaluation, seconds: float
) -> Record:
    with (result.run.path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    use = evaluated.context_use
    return {
        "setting": planned.setting,
        "task": planned.task,
        "seed": planned.seed,
        "options": list(planned.options),
        "parameters": _parameters(rows),
        "timesteps": result.timesteps,
        "seconds": round(seconds, 1),
        "tasks": [of_task.summary() for of_task in evaluated.results],
        "context_use": None if use is None else use.summary(),
        "success_curve": _column(rows, metrics.EVAL_SUCCESS),
        "return_curve": _column(rows, metrics.EVAL_RETURN),
        "held_out_curve": _column(rows, metrics.HELD_OUT_SUCCESS),
        "machine": machine(),
    }


@contextmanager
def _logged(path: Path) -> Iterator[Callable[[str], None]]:
    """Write all that is printed to a file, and the traceback of an error; yield a log function."""
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        try:
            yield lambda line: print(line, file=file)
        except Exception:
            traceback.print_exc()
            raise


@contextmanager
def _stop_on_request(stop_file: Path) -> Iterator[None]:
    """Interrupt the training as Ctrl-C does once the file exists, or the owner has died.

    The process that owns this one may be killed without a chance to write the file.
    """
    owner = os.environ.get(OWNER)
    # A training that Ctrl-C has reached must not be ended by the second signal, from here. Outside
    # of the training there is nothing to save.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            if stop_file.exists() or owner not in (None, str(os.getppid())):
                # more than once, because the training may only begin later
                os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()  # so that no signal follows
        signal.signal(signal.SIGINT, previous)


def _reset_start_method() -> None:
    """Undo that loky has named itself as the way to start processes, which environments need."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)


def _wait_for_lock(run_dir: Path) -> None:
    """Wait until another process has left the run directory; if it does not, train says so."""
    if run_dir.exists():
        with suppress(Timeout), FileLock(run_dir / LOCK, timeout=LOCK_SECONDS):
            return


def _column(rows: Sequence[dict[str, str]], name: str) -> Curve:
    """Return the timesteps and the values of a metric where it was logged."""
    points = []
    for row in rows:
        if row.get(name):
            points.append((int(row[metrics.TIMESTEPS]), float(row[name])))
    return points


def _parameters(rows: Sequence[dict[str, str]]) -> int:
    # logged once, in a row without timesteps
    [value] = [row["model/parameters"] for row in rows if row.get("model/parameters")]
    return int(float(value))
