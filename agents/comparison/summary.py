"""The numbers of a comparison: a row per task and setting, and a row per task and pair."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from mirl.agents.comparison.statistics import (
    Estimate,
    estimate,
    probability_of_improvement,
    rate_interval,
    t_interval,
    time_to_threshold,
    widen_by_episodes,
)
from mirl.agents.comparison.worker import Record
from mirl.agents.statistics import TaskSummary, interquartile_mean

THRESHOLD = 0.95
"""Success rate for which the first evaluation that reaches it is reported."""
ALL_TASKS = "all tasks"
"""Label of the rows over tasks that were trained in separate runs."""

Metric = Literal["success", "return"]
Row = dict[str, object]
"""The values of a row of ``table.csv`` and ``results.json``, by column."""
BySeed = dict[int, float]
"""A value per seed."""


@dataclass(frozen=True)
class Outcome:
    """A result of every setting, by task and seed.

    Args:
        label: name in the first column of the tables.
        metric: the quantity.
        values: for each setting, the values by seed of each task that was trained separately.
        episodes: number of episodes per value.
        task: the task whose learning curves belong to the outcome; None if there is none.
    """

    label: str
    metric: Metric
    values: dict[str, list[BySeed]]
    episodes: int
    task: str | None = None


# ----------------------------------------------------------------------------------------- outcomes


def outcomes_of(records: Sequence[Record]) -> list[Outcome]:
    """Return the results to compare, in the order of the tables.

    For each task of the comparison, these are the mean over the tasks of its suite, each task of
    the suite if it has several, and the same for held-out episodes; last comes the mean over all
    tasks of the comparison, if all of them report success.

    Args:
        records: the records of the finished runs.
    """
    found: list[Outcome] = []
    whole: list[Outcome] = []
    tasks = list(dict.fromkeys(record["task"] for record in records))
    for task in tasks:
        # with a single suite, its name is left out
        prefix = f"{task}: " if len(tasks) > 1 else ""
        of_task = [record for record in records if record["task"] == task]
        for subset, suffix in (("trained", ""), ("held_out", " (held out)")):
            outcomes = list(_outcomes_of_task(of_task, prefix, subset, suffix))
            found += outcomes
            if subset == "trained":
                whole.append(outcomes[0])
    if len(whole) > 1 and all(outcome.metric == "success" for outcome in whole):
        found.append(_joined(whole))
    return found


def _outcomes_of_task(
    records: Sequence[Record], prefix: str, subset: str, suffix: str
) -> Iterator[Outcome]:
    """Yield the outcome of a suite, and that of each of its tasks if it has several."""
    summaries = _summaries(records, subset)
    if not summaries:
        return
    reporting = [name for name, rows in summaries.items() if _reports_success(rows)]
    metric: Metric = "success" if reporting else "return"
    names = reporting or list(summaries)
    task = records[0]["task"]
    label = task + suffix
    if len(names) < len(summaries):
        label += f", {len(names)} of {len(summaries)} tasks"
    curve = task if subset == "trained" else None
    episodes = min(rows[0]["episodes"] for rows in summaries.values())
    values = _values(records, subset, names, metric)
    yield Outcome(label, metric, values, episodes * len(names), curve)
    if len(summaries) == 1:
        return
    for name, rows in summaries.items():
        metric = "success" if _reports_success(rows) else "return"
        values = _values(records, subset, [name], metric)
        yield Outcome(prefix + name + suffix, metric, values, episodes)


def _summaries(records: Sequence[Record], subset: str) -> dict[str, list[TaskSummary]]:
    """Return the summaries of each task of a suite, one per run."""
    found: dict[str, list[TaskSummary]] = {}
    for record in records:
        for summary in record["tasks"]:
            if summary["subset"] == subset:
                found.setdefault(summary["task"], []).append(summary)
    return found


def _reports_success(summaries: Sequence[TaskSummary]) -> bool:
    return all(summary["success_rate"] is not None for summary in summaries)


def _values(
    records: Sequence[Record], subset: str, names: Sequence[str], metric: Metric
) -> dict[str, list[BySeed]]:
    """Return the mean over some tasks of a suite, by setting and seed."""
    field: Literal["success_rate", "return_mean"] = "return_mean"
    if metric == "success":
        field = "success_rate"
    found: dict[str, BySeed] = {}
    for record in records:
        chosen = []
        for summary in record["tasks"]:
            value = summary[field]
            if summary["subset"] == subset and summary["task"] in names and value is not None:
                chosen.append(value)
        # the tasks of one run share weights, so together they give a single number
        found.setdefault(record["setting"], {})[record["seed"]] = float(np.mean(chosen))
    return {setting: [by_seed] for setting, by_seed in found.items()}


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome over separately trained tasks, of the settings that have all of them."""
    values: dict[str, list[BySeed]] = {}
    for setting in dict.fromkeys(name for outcome in outcomes for name in outcome.values):
        if all(setting in outcome.values for outcome in outcomes):
            values[setting] = [outcome.values[setting][0] for outcome in outcomes]
    episodes = min(outcome.episodes for outcome in outcomes)
    return Outcome(ALL_TASKS, outcomes[0].metric, values, episodes)


# --------------------------------------------------------------------------------------------- rows


def result_rows(records: Sequence[Record], outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row per outcome and setting.

    Args:
        records: the records of the finished runs.
        outcomes: their outcomes.
    """
    rows = []
    for outcome in outcomes:
        for setting, strata in outcome.values.items():
            arrays = [np.array(list(by_seed.values())) for by_seed in strata]
            row: Row = {
                "task": outcome.label,
                "setting": setting,
                "seeds": min(len(values) for values in arrays),
                "metric": outcome.metric,
                **asdict(_estimate(arrays, outcome)),
                "iqm": interquartile_mean(np.concatenate(arrays)),
                "worst_seed": float(min(values.min() for values in arrays)),
                **_of_training(records, outcome, setting),
            }
            rows.append(row)
    return rows


def _estimate(arrays: Sequence[np.ndarray], outcome: Outcome) -> Estimate:
    """Return the mean over tasks and seeds with the interval of its metric."""
    if outcome.metric == "return":
        return estimate(arrays, t_interval)
    n_values = sum(len(values) for values in arrays)
    return widen_by_episodes(estimate(arrays, rate_interval), outcome.episodes * n_values)


def _of_training(records: Sequence[Record], outcome: Outcome, setting: str) -> Row:
    """Return the columns about training; None if an outcome covers only part of a run's tasks."""
    runs = [
        record
        for record in records
        if record["task"] == outcome.task and record["setting"] == setting
    ]
    row: Row = dict.fromkeys(("parameters", "timesteps", "steps_to_95", "never", "first", "last"))
    if not runs:
        return row
    row["parameters"] = runs[0]["parameters"]
    row["timesteps"] = max(run["timesteps"] for run in runs)
    curves = [run["success_curve"] for run in runs]
    # a run without evaluations does not show when it reached the threshold
    if outcome.metric == "success" and all(curves):
        reached = time_to_threshold(curves, THRESHOLD)
        row["steps_to_95"] = reached.median
        row["never"] = reached.never
        row["first"] = reached.earliest
        row["last"] = reached.latest
    return row


def pair_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row per outcome and pair of settings: the later one minus the earlier one.

    Args:
        outcomes: the outcomes.
    """
    rows = []
    for outcome in outcomes:
        for base, setting in combinations(outcome.values, 2):
            row = _pair_row(outcome, setting, base)
            if row is not None:
                rows.append(row)
    return rows


def _pair_row(outcome: Outcome, setting: str, base: str) -> Row | None:
    """Return the difference of two settings; None if they have no seed in common."""
    firsts = []
    seconds = []
    for first, second in zip(outcome.values[setting], outcome.values[base], strict=True):
        seeds = [seed for seed in first if seed in second]
        if not seeds:
            return None
        firsts.append(np.array([first[seed] for seed in seeds]))
        seconds.append(np.array([second[seed] for seed in seeds]))
    differences = [first - second for first, second in zip(firsts, seconds, strict=True)]
    difference = estimate(differences)
    return {
        "task": outcome.label,
        "setting": setting,
        "base": base,
        "seeds": min(len(values) for values in differences),
        "metric": outcome.metric,
        **asdict(difference),
        "probability_of_improvement": probability_of_improvement(firsts, seconds),
        "verdict": verdict(difference),
    }


def verdict(difference: Estimate) -> str:
    """Return whether the first of two settings ``wins``, ``loses`` or ``ties``.

    Args:
        difference: the first minus the second.

    Returns:
        The word; a tie if the interval contains zero, and ``–`` without an interval.
    """
    if difference.low is None or difference.high is None:
        return "–"
    if difference.low > 0:
        return "wins"
    if difference.high < 0:
        return "loses"
    return "ties"


def one_line(record: Record) -> str:
    """Return one line about a finished run.

    Args:
        record: its record.
    """
    [outcome, *_] = outcomes_of([record])
    [[by_seed]] = outcome.values.values()
    [value] = by_seed.values()
    shown = f"{value:.1%}" if outcome.metric == "success" else f"{value:.3f}"
    return f"{outcome.metric} {shown} ({record['seconds']:,.0f} s)"
