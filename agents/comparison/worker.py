"""One run of a comparison, in its own process: train, evaluate and record it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mirl.agents.comparison.machine import machine
from mirl.agents.context_use import ContextUseSummary
from mirl.agents.jobs import trained_run
from mirl.agents.jobs.execution import log_path
from mirl.agents.jobs.trained_run import TrainedRun
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.atomic_files import write_json
from mirl.agents.runs.run_directory import METRICS
from mirl.agents.statistics import TaskSummary
from mirl.configs.comparison import run_name

RUNS = "runs"
"""Folder of the run directories, inside that of the comparison."""
RECORDS = "records"
"""Folder with a JSON file per finished run."""

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
    """Training time in seconds, since the run was last resumed."""
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
        task: the task as typed by the user.
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
        """Return the arguments of ``train.py`` that define this run.

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
        """Return the path of its record, which exists once the run is finished.

        Args:
            folder: folder of the comparison.
        """
        return folder / RECORDS / f"{self.name}.json"


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
    trained = trained_run.train_and_evaluate(
        planned.words(folder), log_path(folder, planned), folder
    )
    if trained is None:
        return False
    write_json(planned.record_path(folder), _record(planned, trained))
    return True


def _record(planned: PlannedRun, trained: TrainedRun) -> Record:
    result, evaluated, seconds = trained
    with (result.run.path / METRICS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    use = evaluated.context_use
    return {
        "setting": planned.setting,
        "task": planned.task,
        "seed": planned.seed,
        "options": list(planned.options),
        "parameters": _parameters(rows),
        "timesteps": result.timesteps,
        "seconds": seconds,
        "tasks": [of_task.summary() for of_task in evaluated.results],
        "context_use": None if use is None else use.summary(),
        "success_curve": _column(rows, metrics.EVAL_SUCCESS),
        "return_curve": _column(rows, metrics.EVAL_RETURN),
        "held_out_curve": _column(rows, metrics.HELD_OUT_SUCCESS),
        "machine": machine(),
    }


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
