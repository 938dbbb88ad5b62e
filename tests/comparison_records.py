"""Records of a comparison without any training, and an engine that writes them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mirl.agents.comparison.worker import PlannedRun, Record
from mirl.agents.runs.atomic_files import write_json
from mirl.agents.statistics import TaskSummary
from mirl.configs.errors import RunError
from mirl.configs.tasks import Subset


def summary(
    task: str, success: float | None, episode_return: float = 0.0, subset: Subset = "trained"
) -> TaskSummary:
    """Return the summary of a task in one run."""
    return {
        "task": task,
        "subset": subset,
        "episodes": 100,
        "successes": None if success is None else round(100 * success),
        "success_rate": success,
        "success_interval": None,
        "return_mean": episode_return,
        "return_std": 1.0,
        "score": episode_return,
        "length_mean": 10.0,
    }


def record(setting: str, task: str, seed: int, *tasks: TaskSummary) -> Record:
    """Return the record of a run; its curve reaches the success of its first task at 200."""
    rate = tasks[0]["success_rate"]
    points: list[tuple[int, float]] = []
    if rate is not None:
        points = [(100, 0.0), (200, rate)]
    return {
        "setting": setting,
        "task": task,
        "seed": seed,
        "options": [f"task={task}"],
        "parameters": 1234,
        "timesteps": 300,
        "seconds": 1.5,
        "tasks": list(tasks),
        "context_use": None,
        "success_curve": points,
        "return_curve": [(100, 0.0), (200, tasks[0]["return_mean"])],
        "held_out_curve": [],
        "machine": {},
    }


def two_settings(task: str, first: list[float], second: list[float]) -> list[Record]:
    """Return the records of the settings ``concat`` and ``film`` with these success rates."""
    records = []
    for seed, rates in enumerate(zip(first, second, strict=True)):
        for setting, rate in zip(("concat", "film"), rates, strict=True):
            records.append(record(setting, task, seed, summary(task, rate)))
    return records


class FakeEngine:
    """Engine that writes records in place of training; runs with a name in ``failing`` fail."""

    def __init__(self, folder: Path, failing: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.failing = failing
        self.executed: list[str] = []
        self.options: dict[str, tuple[str, ...]] = {}

    def run(
        self, _function: Callable[[PlannedRun], bool], items: Iterable[PlannedRun]
    ) -> Iterator[tuple[PlannedRun, bool | BaseException]]:
        for item in items:
            self.executed.append(item.name)
            self.options[item.name] = item.options
            if item.name in self.failing:
                yield item, RunError("the simulator\nbroke")
                continue
            (self.folder / "runs" / item.name).mkdir(exist_ok=True)
            results = record(item.setting, item.task, item.seed, summary("corridor", 0.5))
            write_json(item.record_path(self.folder), results)
            yield item, True
