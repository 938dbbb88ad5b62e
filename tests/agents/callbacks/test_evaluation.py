"""Evaluation while training logs its results and selects the best checkpoint."""

import csv
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from run_setup import checkpoint_of

from mirl.agents import train
from mirl.agents.statistics import TaskResult
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import Subset

Build = Callable[..., TrainConfig]


def one(task: str, successes: int, episodes: int, subset: Subset) -> TaskResult:
    """Return a result with returns of 1 for success and episodes of 4 timesteps."""
    success = np.arange(episodes) < successes
    lengths = np.full(episodes, 4)
    return TaskResult(task, success, success.astype(float), lengths, subset=subset)


def scripted_evaluation(**rates: list[list[float]]) -> Callable[..., list[TaskResult]]:
    """Return a stand-in for ``evaluate`` that plays success rates per subset and evaluation."""
    plays = {subset: iter(script) for subset, script in rates.items()}

    def play(*_: Any, subset: Subset, **__: Any) -> list[TaskResult]:
        return [
            one(str(i), round(rate * 4), 4, subset=subset)
            for i, rate in enumerate(next(plays[subset]))
        ]

    return play


@pytest.mark.parametrize(
    ("best_by", "best"), [("mean", "step_000000128"), ("worst", "step_000000256")]
)
def test_best_by_selects_mean_or_worst(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, best_by: str, best: str
) -> None:
    """The best checkpoint has the best mean, or the best worst task."""
    script = scripted_evaluation(trained=[[1.0, 0.25], [0.5, 0.5], [1.0, 0.0]])
    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", script)
    config = tiny("total_timesteps=384", "evaluation.every=128", f"evaluation.best_by={best_by}")
    train(config)
    assert checkpoint_of(config.run_dir, "best").name == best


def test_held_out_success_never_selects(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out success is logged and never selects the best checkpoint."""
    script = scripted_evaluation(trained=[[0.75], [0.5], [0.25]], held_out=[[0.0], [0.5], [1.0]])
    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", script)
    config = tiny("task=goto_local", "split=objects", "total_timesteps=384", "evaluation.every=128")
    train(config)
    with (config.run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["eval/success_rate"]]
    assert [float(row["eval/held_out/success_rate"]) for row in rows] == [0.0, 0.5, 1.0]
    assert checkpoint_of(config.run_dir, "best").name == "step_000000128"


def test_evaluation_logs_suite_summary(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mirl.agents.callbacks.evaluation.evaluate",
        scripted_evaluation(trained=[[0.0, 0.5, 0.75, 1.0]]),
    )
    config = tiny("total_timesteps=128", "evaluation.every=128")
    train(config)
    with (config.run_dir / "metrics.csv").open() as file:
        [row] = [row for row in csv.DictReader(file) if row["eval/success_rate"]]
    names = ("success_rate", "success_iqm", "success_worst", "score", "return")
    assert [float(row[f"eval/{name}"]) for name in names] == [0.5625, 0.625, 0.0, 0.5625, 0.5625]


def test_evaluation_logs_one_line(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, and so without a progress bar, each evaluation is a line."""
    monkeypatch.setattr(
        "mirl.agents.callbacks.evaluation.evaluate",
        scripted_evaluation(trained=[[0.25, 0.75], [1.0, 1.0]]),
    )
    lines: list[str] = []
    train(tiny("total_timesteps=256", "evaluation.every=128"), lines.append)
    [first, last] = [line for line in lines if "timesteps: success" in line]
    assert re.fullmatch(r"128 timesteps: success 50\.0%, return 0\.500, \d:\d\d:\d\d", first)
    assert last.startswith("256 timesteps: success 100.0%, return 1.000, ")
