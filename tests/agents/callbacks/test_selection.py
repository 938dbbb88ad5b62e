"""The best checkpoint is selected by success, or by score or return where that is unknown."""

import csv
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from corridor_env import corridor
from hypothesis import given
from hypothesis import strategies as st
from run_setup import checkpoint_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirl.agents import train
from mirl.agents.callbacks.selection import (
    SuccessNotice,
    criterion_value,
    criterion_without_success,
)
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult
from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
BOUNDS = "score_low: -16, score_high: -1"
KNOWN = "kwargs: {reports: true}"


@pytest.fixture
def tiny(tmp_path: Any) -> Build:
    """``tiny(*fields, words=...)``: four iterations on corridors with these fields of a task."""

    def build(*fields: str, words: tuple[str, ...] = ()) -> TrainConfig:
        sizes = ("agent.n_envs=4", "agent.n_steps=32", "agent.batch_size=64", "agent.n_epochs=2")
        others = ("total_timesteps=512", "evaluation.episodes=8", "evaluation.every=128")
        common = ("progress=false", "device=cpu", "precision=fp32", f"runs_dir={tmp_path}")
        return compose_train([*corridor(*fields), *sizes, *others, *common, *words])

    return build


def result(task: str, rate: float | None, episode_return: float, **options: Any) -> TaskResult:
    """Return a result of four episodes."""
    success = None if rate is None else np.arange(4) < round(rate * 4)
    return TaskResult(task, success, np.full(4, episode_return), np.full(4, 5), **options)


def scripted(*evaluations: list[TaskResult]) -> Callable[..., list[TaskResult]]:
    """Return a stand-in for ``evaluate`` that returns these results."""
    remaining = iter(evaluations)
    return lambda *_, **__: next(remaining)


@pytest.mark.parametrize(
    ("fields", "criterion"),
    [
        (["success: reward"], "return"),
        ([BOUNDS], "score"),
        ([BOUNDS, BOUNDS], "score"),
        ([BOUNDS, ""], "return"),
        (["score_high: 2", BOUNDS], "return"),
    ],
)
def test_scores_select_where_bounds_exist(tiny: Build, fields: list[str], criterion: str) -> None:
    """Scores make tasks comparable, but only if none of their bounds is assumed."""
    assert criterion_without_success(tiny(*fields)) == criterion


def test_held_out_bounds_do_not_matter(tiny: Build) -> None:
    """Only the trained tasks select the best checkpoint."""
    config = tiny(BOUNDS, "", words=("split.tasks=[task1]", "split.name=one"))
    assert criterion_without_success(config) == "score"


RETURNS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5)


@given(RETURNS)
def test_value_is_mean_or_worst(returns: list[float]) -> None:
    results = [result(str(i), None, value) for i, value in enumerate(returns)]
    assert criterion_value(results, "return", "mean") == pytest.approx(np.mean(returns))
    assert criterion_value(results, "return", "worst") == min(returns)
    scaled = [
        result(str(i), 0.5, value, score_low=-1.0, score_high=1.0)
        for i, value in enumerate(returns)
    ]
    assert criterion_value(scaled, "score", "worst") == pytest.approx((min(returns) + 1) / 2)
    assert criterion_value(scaled, "success", "mean") == 0.5


def test_notice_names_each_task_once(tiny: Build) -> None:
    lines: list[str] = []
    notice = SuccessNotice(tiny("", "", ""), lines.append)
    notice.tell([])
    notice.tell(["task0"])
    notice.tell(["task0", "task1", "task2"])
    notice.tell(["task2"])
    assert len(lines) == 2
    assert lines[0] == (
        "task 'task0' reports no success (no 'is_success' or 'success' in the last info of an "
        "episode): tables show –, the best checkpoint is that of the highest mean return; "
        "to define it, start a run with 'success=return>=X' and another name=…"
    )
    assert lines[1].startswith("tasks 'task1', 'task2' report no success")


@pytest.mark.parametrize(
    ("fields", "words", "highest"),
    [
        ([""], (), "the highest return;"),
        ([BOUNDS], (), "the highest score;"),
        ([BOUNDS, BOUNDS], ("evaluation.best_by=worst",), "the highest score of the worst task;"),
    ],
)
def test_notice_says_what_selects(
    tiny: Build, fields: list[str], words: tuple[str, ...], highest: str
) -> None:
    lines: list[str] = []
    SuccessNotice(tiny(*fields, words=words), lines.append).tell(["task0"])
    assert f"the best checkpoint is that of {highest}" in lines[0]


def test_notice_of_held_out_task(tiny: Build) -> None:
    """A task that selects nothing has no part in the choice of the best checkpoint."""
    lines: list[str] = []
    config = tiny("", "", words=("split.tasks=[task1]", "split.name=one"))
    SuccessNotice(config, lines.append).tell(["task1"])
    assert "best checkpoint" not in lines[0]


# --------------------------------------------------------------------------------------- whole runs


def rows_of(config: TrainConfig) -> list[dict[str, str]]:
    with (config.run_dir / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def notices(lines: list[str]) -> list[str]:
    """Return those of the logged lines that are about success."""
    return [line for line in lines if " no success " in line]


def test_run_without_success(tiny: Build) -> None:
    """A run whose task reports nothing logs no success, says so once, and selects by return."""
    lines: list[str] = []
    config = tiny("")
    run = train(config, lines.append).run
    [line] = notices(lines)
    assert line.startswith("task 'task0' reports no success")

    rows = rows_of(config)
    assert not [name for name in rows[0] if "success" in name]
    returns = {
        row["time/total_timesteps"]: row["eval/return"] for row in rows if row["eval/return"]
    }
    best = max(returns.values(), key=float)
    index = run.checkpoints.load_index()
    assert index["best_criterion"] == "return"
    assert index["best_score"] == float(best)
    # of equal returns the later one
    assert int(index["best"].removeprefix("step_")) == max(
        int(timesteps) for timesteps, value in returns.items() if value == best
    )
    checkpoint = run.checkpoint("best")
    assert (checkpoint.criterion, checkpoint.score) == ("return", float(best))
    state = run.checkpoint("last").state
    assert state["windows"]["ep_success_buffer"] == []
    assert {episode[0] for episode in state["episodes"]["task0"]} == {None}

    events = EventAccumulator(str(config.run_dir)).Reload()
    assert not [tag for tag in events.Tags()["scalars"] if "success" in tag]


def test_threshold_defines_success(tiny: Build) -> None:
    """With a threshold of the return, everything is as with a reported success."""
    lines: list[str] = []
    config = tiny("success: 'return>=-8'")
    run = train(config, lines.append).run
    assert notices(lines) == []
    last = [row for row in rows_of(config) if row["eval/success_rate"]][-1]
    assert 0 < float(last["eval/success_rate"]) <= 1
    assert "best_criterion" not in run.checkpoints.load_index()
    assert RunDirectory.open(config.run_dir).config.task.tasks[0].success == "return>=-8"


def test_mixed_suite_selects_by_return(tiny: Build) -> None:
    """If only some tasks report success, theirs is logged, and the return selects."""
    lines: list[str] = []
    config = tiny(KNOWN, "", words=("total_timesteps=128",))
    run = train(config, lines.append).run
    [line] = notices(lines)
    assert line.startswith("task 'task1' reports no success")
    [row] = [row for row in rows_of(config) if row["eval/return"]]
    assert row["eval/success_rate"] == row["eval/task0/success_rate"] != ""
    assert "eval/task1/success_rate" not in row
    assert run.checkpoints.best_criterion == "return"
    assert run.checkpoints.best_score == float(row["eval/return"])


def test_best_return_survives_resume(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run compares returns with the best return so far."""
    play = scripted(
        [result("task0", None, -3.0)],
        [result("task0", None, -9.0)],
        # what was reported before the stop is not compared with returns
        [result("task0", 1.0, -5.0)],
        [result("task0", 1.0, -2.0)],
    )
    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", play)
    config = tiny("")
    whole = train(config, lambda _: None).run
    assert whole.checkpoints.load_index()["best"] == "step_000000512"
    assert whole.checkpoints.best_score == -2.0

    # as if the run had been killed after its first two evaluations
    checkpoints = config.run_dir / "checkpoints"
    shutil.rmtree(checkpoints / "step_000000512")
    index = {"last": "step_000000128", "best": "step_000000128", "best_score": -3.0}
    (checkpoints / "index.json").write_text(json.dumps({**index, "best_criterion": "return"}))
    again = scripted(*([result("task0", 1.0, value)] for value in (-9.0, -5.0, -4.0)))
    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", again)
    run = train(config, lambda _: None).run
    assert run.checkpoints.load_index() == {
        "last": "step_000000512",
        "best": "step_000000128",
        "best_score": -3.0,
        "best_criterion": "return",
    }


def test_lost_success_changes_the_criterion(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an evaluation does not know the success, returns are compared among themselves."""
    bounds = {"score_low": -16.0, "score_high": -1.0}
    play = scripted(
        [result("task0", 1.0, -9.0, **bounds)],
        [result("task0", None, -8.0, **bounds)],
        [result("task0", None, -9.0, **bounds)],
        [result("task0", 1.0, -10.0, **bounds)],
    )
    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", play)
    config = tiny(BOUNDS)
    run = train(config, lambda _: None).run
    assert run.checkpoints.load_index() == {
        "last": "step_000000512",
        "best": "step_000000256",
        "best_score": pytest.approx(8 / 15),
        "best_criterion": "score",
    }
    assert checkpoint_of(config.run_dir, "128").criterion == "success"
