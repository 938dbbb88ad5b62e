"""Runs that exist are compared on the same episodes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from comparison_setup import TINY

from mirl.agents import train
from mirl.agents.comparison.existing_runs import compare_episodes, compare_runs
from mirl.agents.statistics import TaskResult
from mirl.configs.comparison import RunComparisonConfig, parse_comparison
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError

NAMES = {"first": "a", "second": "b"}
REPORTING = "task.kwargs.reports=true"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs ``a`` and ``b``, and of ``other``, which is another task."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in (("a", (REPORTING,)), ("b", (REPORTING, "seed=1")), ("other", ())):
        words = (*TINY, *words, "progress=false", f"runs_dir={folder}", f"name={name}")
        train(compose_train(words))
    return folder


def compared(runs: Path, *names: str, words: tuple[str, ...] = ()) -> RunComparisonConfig:
    """Return the configuration of a comparison of runs."""
    folders = [str(runs / name) for name in names]
    argv = [*folders, "episodes=30", "n_envs=8", "checkpoint=last", f"out={runs / 'out'}", *words]
    config = parse_comparison(argv)
    assert isinstance(config, RunComparisonConfig)
    return config


def test_runs_play_the_same_episodes(runs: Path) -> None:
    table = compare_runs(compared(runs, "a", "b"))
    assert [row[:4] for row in table.rows] == [
        ["corridor_env:ToyCorridor-v0", "A − B", "30", "success"],
        ["corridor_env:ToyCorridor-v0", "A − B", "30", "return"],
    ]
    assert table.title == "The same episodes; A = a, B = b"
    report = json.loads((runs / "out" / "results.json").read_text())
    assert report["tasks"]["a"][0]["episodes"] == 30
    assert (runs / "out" / "table.csv").exists()


def test_equal_runs_do_not_differ(runs: Path, tmp_path: Path) -> None:
    """The same weights on the same episodes have the same outcomes, also in several rounds."""
    copy = tmp_path / "copy"
    shutil.copytree(runs / "a", copy)
    config = compared(runs, "a", words=(str(copy), "deterministic=true"))
    success, returns = compare_runs(config).rows
    assert success[6] == "+0.0% (+0.0% – +0.0%)"
    assert returns[6] == "+0.000 (+0.000 – +0.000)"


def test_other_task_is_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match="have tasks that differ"):
        compare_runs(compared(runs, "a", "other"))


def test_bad_option_is_one_error(runs: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option 'episode'"):
        compare_runs(compared(runs, "a", "b", words=("episode=3",)))


def result(success: list[bool] | None, returns: list[float]) -> TaskResult:
    """Return the result of a task."""
    known = None if success is None else np.array(success)
    return TaskResult("door", known, np.array(returns), np.ones(len(returns), int))


def test_rows_count_differing_episodes() -> None:
    first = result([True, True, False, True], [1.0, 1.0, 0.0, 1.0])
    second = result([True, False, False, False], [1.0, 0.0, 0.0, 0.0])
    success, returns = compare_episodes([first], [second], NAMES)
    assert (success["only_first"], success["only_second"]) == (2, 0)
    assert (success["first_mean"], success["second_mean"], success["mean"]) == (0.75, 0.25, 0.5)
    assert (returns["metric"], returns["mean"], returns["p_value"]) == ("return", 0.5, None)


def test_unknown_success_has_no_row() -> None:
    [row] = compare_episodes([result(None, [2.0, 3.0])], [result([True, True], [1, 1])], NAMES)
    assert (row["metric"], row["mean"]) == ("return", 1.5)
