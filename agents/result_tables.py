"""Terminal output of the commands, and tables of evaluations for it."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mirl.agents.statistics import TaskResult, by_subset, suite_result
from mirl.configs.tasks import Subset
from mirl.configs.texts import printable
from mirl.envs.success import NO_REPORT

NO_SUCCESS = "–"
"""Placeholder in tables for an unknown success rate."""
SUMMARY_ROWS = ("mean", "IQM", "worst")
"""Rows of the table over several tasks, in the order of the fields of ``Aggregate``."""


class PlainConsole(Console):
    """Rich's console without markup: it prints every text unchanged.

    Names of tasks, missions and folders may contain control characters or text that Rich would take
    for markup.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as Rich lays it out, without control characters.

        Args:
            text: the text.
            options: Rich's own options.
        """
        return super().render_str(printable(text), **options)

    def log_line(self, line: str) -> None:
        """Print a line and let the terminal wrap it.

        Args:
            line: the line.
        """
        self.print(line, soft_wrap=True)


def results_table(results: Sequence[TaskResult], title: str) -> Table:
    """Return a table with one row per task, and the summary of each subset with several tasks.

    Args:
        results: the results of one evaluation.
        title: title of the table, to which the number of episodes is added.

    Returns:
        The table, for the terminal.
    """
    title = f"{title} ({_episodes(results)})"
    table = Table(title=title, title_justify="left", caption_justify="left")
    # folded in a narrow terminal, because names with the same beginning look equal if truncated
    table.add_column("task", overflow="fold")
    for column in ("success", "95 % interval", "return", "score", "length"):
        table.add_column(column, justify="right", no_wrap=True)
    for subset, in_subset in by_subset(results):
        for result in in_subset:
            table.add_row(*_task_cells(result))
        if len(in_subset) > 1:
            table.add_section()
            _add_summary(table, subset, in_subset)
        table.add_section()
    return table


def _episodes(results: Sequence[TaskResult]) -> str:
    """Return the number of episodes in words; a column of equal numbers would crowd the names."""
    counts = sorted({result.n_episodes for result in results})
    number = " – ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    noun = "episode" if counts == [1] else "episodes"
    return f"{number} {noun}" if len(results) == 1 else f"{number} {noun} per task"


def _add_summary(table: Table, subset: Subset, results: Sequence[TaskResult]) -> None:
    summary = suite_result(results)
    suffix = "" if subset == "trained" else " (held out)"
    rates = [NO_SUCCESS] * len(SUMMARY_ROWS)
    if summary.success is not None:
        rates = [f"{rate:.1%}" for rate in astuple(summary.success)]
    for name, rate, score in zip(SUMMARY_ROWS, rates, astuple(summary.score), strict=True):
        table.add_row(name + suffix, rate, "", "", f"{score:.3f}", "")
    if 0 < summary.tasks_with_success < len(results):
        note = f"over the {summary.tasks_with_success} of {len(results)} tasks that report it"
        lines = [] if table.caption is None else [str(table.caption)]
        table.caption = "\n".join([*lines, f"success{suffix}: {note}"])


def _task_cells(result: TaskResult) -> list[str]:
    return [
        result.label,
        *success_cells(result),
        f"{result.mean_return:.3f}",
        f"{result.score:.3f}",
        f"{result.mean_length:.1f}",
    ]


def success_cells(result: TaskResult) -> tuple[str, str]:
    """Return the success rate and its interval for a table.

    Args:
        result: the result of a task.

    Returns:
        Both as text, ``–`` if they are unknown.
    """
    if result.success_rate is None or result.success_interval is None:
        return NO_SUCCESS, NO_SUCCESS
    low, high = result.success_interval
    return f"{result.success_rate:.1%}", f"{low:.1%} – {high:.1%}"


def describe_missing_success(tasks: Sequence[str]) -> str:
    """Return which tasks report no success, and why it is unknown.

    Args:
        tasks: names of the tasks, at least one.

    Returns:
        The beginning of a sentence.
    """
    names = ", ".join(f"'{task}'" for task in tasks)
    if len(tasks) == 1:
        return f"task {names} reports no success ({NO_REPORT})"
    return f"tasks {names} report no success ({NO_REPORT})"


def missing_success_line(results: Sequence[TaskResult]) -> str | None:
    """Return a line that explains a table in which success is unknown.

    Args:
        results: the results in the table.

    Returns:
        The line; None if every task has a success rate.
    """
    # a task can have a result per subset
    tasks = list(dict.fromkeys(result.task for result in results if result.success is None))
    if not tasks:
        return None
    return f"{describe_missing_success(tasks)}; evaluate with 'success=return>=X' to define it"
