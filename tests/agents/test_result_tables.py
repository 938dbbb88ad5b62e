"""Tables name every task, and say where success is unknown."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from mirl.agents.result_tables import PlainConsole, missing_success_line, results_table
from mirl.agents.statistics import TaskResult


def one(task: str = "door", successes: int = 1, episodes: int = 2, **options: Any) -> TaskResult:
    """Return a result with returns of 1 for success and episodes of 4 timesteps."""
    success = np.arange(episodes) < successes
    return TaskResult(task, success, success.astype(float), np.full(episodes, 4), **options)


def rows_of(table: Table) -> list[list[str]]:
    return [
        list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)
    ]


def test_table_has_row_per_task() -> None:
    result = TaskResult(
        "door", np.array([True, False]), np.array([1.0, 0.0]), np.array([3, 5]), 0.25, 0.75
    )
    assert rows_of(results_table([result], "title")) == [
        ["door", "50.0%", "9.5% – 90.5%", "0.500", "0.500", "4.0"]
    ]


def test_texts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich's markup in a name is text, and control characters are shown."""
    console = PlainConsole()
    name = "[/b]:a:\x1b"
    console.print(results_table([one(name), one("b")], "[bold]"))
    console.log_line(name)
    shown = capsys.readouterr().out
    assert shown.count("[/b]:a:\\x1b") == 2
    assert "[bold]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["BabyAI-GoToLocalS8N7-v0", "MiniGrid-DoorKey-5x5-v0"])
def test_names_fit_into_80_columns(name: str) -> None:
    """Names of usual length stay on one line, between the widest numbers."""
    output = io.StringIO()
    results = [one(name, 930, 1000), one("goto_local", 1000, 1000, subset="held_out")]
    Console(file=output, width=80).print(results_table(results, "title"))
    cells = [line.split("│")[1].strip() for line in output.getvalue().splitlines() if "│" in line]
    assert cells == [name, "goto_local (held out)"]


def test_long_names_keep_every_letter() -> None:
    """A name that is too long continues in the next line."""
    names = ["MiniGrid-ObstructedMaze-1Dlhb-v0", "MiniGrid-ObstructedMaze-1Dlhb-v1"]
    output = io.StringIO()
    Console(file=output, width=80).print(results_table([unknown(name) for name in names], "title"))
    cells = [line.split("│")[1].strip() for line in output.getvalue().splitlines() if "│" in line]
    assert "".join(cells).startswith("".join(names))
    assert "…" not in output.getvalue()


def test_title_has_number_of_episodes() -> None:
    """Equal numbers are one, and different ones a range."""
    assert results_table([one(episodes=1000)], "title").title == "title (1,000 episodes)"
    two = [one("a", episodes=8), one("b", episodes=8)]
    assert results_table(two, "title").title == "title (8 episodes per task)"
    different = [one("a", episodes=8), one("b", episodes=4)]
    assert results_table(different, "title").title == "title (4 – 8 episodes per task)"


def test_table_ends_with_summary_rows() -> None:
    """Below several tasks stand their mean, interquartile mean and worst."""
    results = [one(str(successes), successes, 4) for successes in (0, 2, 3, 4)]
    rows = rows_of(results_table(results, "title"))
    assert [row[0] for row in rows] == ["0", "2", "3", "4", "mean", "IQM", "worst"]
    assert [(row[1], row[4]) for row in rows[4:]] == [
        ("56.2%", "0.562"),
        ("62.5%", "0.625"),
        ("0.0%", "0.000"),
    ]


def test_held_out_subset_has_own_rows() -> None:
    """The held-out subset has rows of its own."""
    results = [
        one("a", 2),
        one("b", 2),
        one("a", 0, subset="held_out"),
        one("b", 1, subset="held_out"),
    ]
    rows = {row[0]: row[1] for row in rows_of(results_table(results, "title"))}
    assert (rows["a"], rows["a (held out)"], rows["b (held out)"]) == ("100.0%", "0.0%", "50.0%")
    assert (rows["mean"], rows["mean (held out)"], rows["worst (held out)"]) == (
        "100.0%",
        "25.0%",
        "0.0%",
    )


def unknown(task: str, **options: Any) -> TaskResult:
    """Return a result whose success is unknown."""
    return TaskResult(task, None, np.full(4, -5.0), np.full(4, 5), **options)


def test_table_shows_dash_for_unknown_success() -> None:
    """The table of an unknown success has neither a rate nor an interval, nor a reason why."""
    table = results_table([unknown("own")], "title")
    assert rows_of(table) == [["own", "–", "–", "-5.000", "-5.000", "5.0"]]
    assert table.caption is None
    both = results_table([unknown("own"), unknown("other")], "title")
    assert [row[1] for row in rows_of(both)] == ["–"] * 5
    assert both.caption is None


def test_table_says_which_success_it_averages() -> None:
    """If some tasks report no success, the means are over the others, and the caption says so."""
    results = [one("a", 2), unknown("b"), one("c", 1), unknown("a", subset="held_out")]
    results += [one("c", 2, subset="held_out")]
    table = results_table(results, "title")
    rates = {row[0]: row[1] for row in rows_of(table)}
    assert (rates["b"], rates["mean"], rates["worst"]) == ("–", "75.0%", "50.0%")
    assert rates["mean (held out)"] == "100.0%"
    assert table.caption == (
        "success: over the 2 of 3 tasks that report it\n"
        "success (held out): over the 1 of 2 tasks that report it"
    )


def test_line_explains_missing_success() -> None:
    assert missing_success_line([one("a", 2)]) is None
    line = missing_success_line([one("a", 2), unknown("b"), unknown("b", subset="held_out")])
    assert line == (
        "task 'b' reports no success (no 'is_success' or 'success' in the last info of an "
        "episode); evaluate with 'success=return>=X' to define it"
    )
