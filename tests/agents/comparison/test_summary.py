"""The numbers of a comparison agree with hand-computed ones."""

import pytest
from comparison_records import record, summary, two_settings

from mirl.agents.comparison.statistics import Estimate
from mirl.agents.comparison.summary import (
    ALL_TASKS,
    one_line,
    outcomes_of,
    pair_rows,
    result_rows,
    verdict,
)


def test_rows_have_means_by_setting() -> None:
    records = two_settings("door", [0.5, 0.7], [0.96, 1.0])
    rows = result_rows(records, outcomes_of(records))
    assert [(row["task"], row["setting"]) for row in rows] == [("door", "concat"), ("door", "film")]
    assert [row["mean"] for row in rows] == pytest.approx([0.6, 0.98])
    assert [row["worst_seed"] for row in rows] == [0.5, 0.96]
    assert [row["steps_to_95"] for row in rows] == [None, 200]
    assert [row["never"] for row in rows] == [2, 0]
    assert {row["parameters"] for row in rows} == {1234}


def test_empty_curve_says_nothing() -> None:
    records = two_settings("door", [0.5], [1.0])
    records[0]["success_curve"] = []
    rows = result_rows(records, outcomes_of(records))
    assert [row["never"] for row in rows] == [None, 0]


def test_pairs_are_at_equal_seeds() -> None:
    records = two_settings("door", [0.5, 0.7, 0.9], [0.6, 0.8, 1.0])
    [row] = pair_rows(outcomes_of(records))
    assert (row["setting"], row["base"], row["seeds"]) == ("film", "concat", 3)
    # every seed gains .1, however much the seeds differ
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert row["probability_of_improvement"] == pytest.approx(6 / 9)
    assert row["verdict"] == "wins"


def test_missing_seed_is_left_out() -> None:
    records = two_settings("door", [0.5, 0.7, 0.1], [0.6, 0.8, 0.2])
    [row] = pair_rows(outcomes_of(records[:-1]))
    assert (row["seeds"], row["mean"]) == (2, pytest.approx(0.1))
    assert pair_rows(outcomes_of([records[0], records[3]])) == []


def test_tasks_of_suite_are_one_number() -> None:
    """A suite is one value per seed; its tasks have rows of their own without training columns."""
    records = []
    for seed, (first, second) in enumerate([(0.2, 0.4), (0.6, 1.0)]):
        tasks = (summary("a", first), summary("b", second))
        records.append(record("film", "suite", seed, *tasks))
    outcomes = outcomes_of(records)
    assert [outcome.label for outcome in outcomes] == ["suite", "a", "b"]
    assert outcomes[0].values == {"film": [{0: pytest.approx(0.3), 1: pytest.approx(0.8)}]}
    rows = result_rows(records, outcomes)
    assert [row["parameters"] for row in rows] == [1234, None, None]
    records += two_settings("door", [0.5], [0.6])
    labels = [outcome.label for outcome in outcomes_of(records)]
    assert labels == ["suite", "suite: a", "suite: b", "door", ALL_TASKS]


def test_separate_tasks_are_strata() -> None:
    records = two_settings("a", [0.2, 0.4], [0.4, 0.6])
    records += two_settings("b", [0.6, 0.8], [1.0, 1.0])
    [*_, joined] = outcomes_of(records)
    assert joined.label == ALL_TASKS
    assert joined.values["concat"] == [{0: 0.2, 1: 0.4}, {0: 0.6, 1: 0.8}]
    *_, row = pair_rows([joined])
    assert row["mean"] == pytest.approx((0.2 + 0.3) / 2)


def test_return_replaces_unknown_success() -> None:
    records = [record("film", "a", 0, summary("a", None, 7.0))]
    records += two_settings("b", [0.5], [0.5])
    outcomes = outcomes_of(records)
    # returns and success rates have no common mean
    assert [(each.label, each.metric) for each in outcomes] == [("a", "return"), ("b", "success")]
    assert outcomes[0].values == {"film": [{0: 7.0}]}
    assert result_rows(records, outcomes)[0]["never"] is None
    assert one_line(records[0]) == "return 7.000 (2 s)"


def test_suite_counts_reporting_tasks() -> None:
    tasks = (summary("a", 0.4), summary("b", None, 3.0))
    outcomes = outcomes_of([record("film", "suite", 0, *tasks)])
    assert [each.label for each in outcomes] == ["suite, 1 of 2 tasks", "a", "b"]
    assert [each.metric for each in outcomes] == ["success", "success", "return"]


def test_held_out_has_its_rows() -> None:
    tasks = (summary("a", 0.9), summary("a", 0.4, subset="held_out"))
    records = [record("film", "a", 0, *tasks)]
    rows = result_rows(records, outcomes_of(records))
    assert [(row["task"], row["mean"]) for row in rows] == [("a", 0.9), ("a (held out)", 0.4)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, "wins"), (-0.2, -0.1, "loses"), (-0.1, 0.1, "ties"), (0.0, 0.1, "ties")],
)
def test_verdict_reads_the_interval(low: float, high: float, expected: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high)) == expected
    assert verdict(Estimate(0.1, None, None)) == "–"
