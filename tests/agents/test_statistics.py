"""Statistics agree with published tables, formulas and plain numpy."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import binom, ttest_ind

from mirl.agents.statistics import (
    Aggregate,
    TaskResult,
    aggregate,
    interquartile_mean,
    mean_difference_interval,
    rate_difference_interval,
    suite_result,
    wilson_interval,
)

SCORES = st.floats(-100, 100, allow_subnormal=False)
LISTS = st.lists(SCORES, min_size=1, max_size=40)
MATRICES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=SCORES)


def result(successes: int, episodes: int, low: float = 0.0, high: float = 1.0) -> TaskResult:
    success = np.arange(episodes) < successes
    return TaskResult("task", success, success.astype(float), np.ones(episodes, int), low, high)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_table(
    successes: int, episodes: int, low: float, high: float
) -> None:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("rates", [(0.9, 0.8), (0.5, 0.5), (0.97, 0.1), (1.0, 0.99)])
def test_rate_difference_interval_covers_truth(rates: tuple[float, float]) -> None:
    """The exact probability that the interval covers the difference is about 95 % or higher."""
    sizes = (60, 12)
    covered = 0.0
    for first in range(sizes[0] + 1):
        for second in range(sizes[1] + 1):
            outcomes = (np.arange(sizes[0]) < first, np.arange(sizes[1]) < second)
            low, high = rate_difference_interval(*outcomes)
            if low <= rates[0] - rates[1] <= high:
                probabilities = binom.pmf((first, second), sizes, rates)
                covered += float(np.prod(probabilities))
    assert covered > 0.93


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, for one constant sample
@given(
    arrays(np.float64, st.integers(2, 9), elements=st.integers(-9, 9)),
    arrays(np.float64, st.integers(2, 9), elements=st.integers(-9, 9)),
)
def test_mean_difference_interval_equals_scipy(first: np.ndarray, second: np.ndarray) -> None:
    interval = mean_difference_interval(first, second)
    if np.ptp(first) == np.ptp(second) == 0:
        assert interval == (first[0] - second[0], first[0] - second[0])
        return
    expected = ttest_ind(first, second, equal_var=False).confidence_interval()
    assert interval == pytest.approx((expected.low, expected.high))


def test_single_value_has_no_interval() -> None:
    assert mean_difference_interval(np.ones(1), np.arange(3.0)) is None


@given(st.integers(1, 2000), st.data())
def test_wilson_interval_equals_formula(episodes: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, episodes))
    z, p = 1.959963984540054, successes / episodes
    center = (p + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    half = z * math.sqrt(p * (1 - p) / episodes + z**2 / (4 * episodes**2)) / (1 + z**2 / episodes)
    low, high = wilson_interval(successes, episodes)
    assert (low, high) == pytest.approx((center - half, center + half), abs=1e-9)
    assert low <= p + 1e-12
    assert high >= p - 1e-12


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([0.0, 6.0, 9.0], 5.0),  # too few to leave any out
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([100.0, 0.0, 1.0, 2.0, 3.0], 2.0),
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 50.0, 60.0], 2.5),
    ],
)
def test_iqm_drops_quarter_at_each_end(values: list[float], expected: float) -> None:
    """The interquartile mean leaves out a quarter of the values at either end."""
    assert interquartile_mean(np.array(values)) == expected


@given(LISTS)
def test_iqm_equals_plain_form(values: list[float]) -> None:
    cut = len(values) // 4
    expected = np.mean(np.sort(values)[cut : len(values) - cut])
    assert interquartile_mean(np.array(values)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(MATRICES)
def test_iqm_of_matrix_is_flat(scores: np.ndarray) -> None:
    """The interquartile mean of a matrix is that of all its values."""
    assert interquartile_mean(scores) == interquartile_mean(scores.ravel())


@given(LISTS)
def test_aggregate_lies_within_values(values: list[float]) -> None:
    """An aggregate lies between the worst and the best value."""
    over_tasks = aggregate(values)
    assert over_tasks.worst == min(values)
    assert over_tasks.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    for middle in (over_tasks.mean, over_tasks.iqm):
        assert over_tasks.worst - 1e-9 <= middle <= max(values) + 1e-9


@given(LISTS.flatmap(lambda values: st.tuples(st.just(values), st.permutations(values))))
def test_aggregate_ignores_task_order(both: tuple[list[float], list[float]]) -> None:
    one, other = (aggregate(values) for values in both)
    assert (one.mean, one.iqm, one.worst) == pytest.approx(
        (other.mean, other.iqm, other.worst), abs=1e-9
    )


def test_suite_weighs_tasks_equally() -> None:
    """A suite weighs its tasks equally, whatever their numbers of episodes."""
    together = suite_result([result(90, 90), result(0, 10), result(1, 2, low=-1.0, high=2.0)])
    assert together.success == Aggregate(mean=0.5, iqm=0.5, worst=0.0)
    assert together.score == Aggregate(mean=0.5, iqm=0.5, worst=0.0)


@pytest.mark.parametrize(
    ("low", "high", "score"), [(0, 1, 0.25), (0.25, 1, 0.0), (0, 0.25, 1.0), (0.5, 1, -0.5)]
)
def test_score_is_scaled_mean_return(low: float, high: float, score: float) -> None:
    """A score is the mean return on the scale of the task."""
    assert result(1, 4, low, high).score == pytest.approx(score)


def test_summary_is_computed_from_episodes() -> None:
    summary = TaskResult(
        "door",
        np.array([True, False, False, True]),
        np.array([1.0, 0, 0, 0.5]),
        np.array([2, 4, 6, 8]),
        -1.0,
        1.0,
    ).summary()
    assert (summary["task"], summary["subset"]) == ("door", "trained")
    assert (summary["episodes"], summary["successes"], summary["success_rate"]) == (4, 2, 0.5)
    assert (summary["return_mean"], summary["length_mean"], summary["score"]) == (
        0.375,
        5.0,
        0.6875,
    )
    assert summary["return_std"] == pytest.approx(np.sqrt(0.171875))
    assert summary["success_interval"] == pytest.approx(wilson_interval(2, 4))


# ---------------------------------------------------------------------------------- unknown success


def unknown(episode_return: float = -5.0) -> TaskResult:
    return TaskResult("unknown", None, np.full(3, episode_return), np.full(3, 4))


def test_unknown_success_is_none() -> None:
    """Nothing is computed from a success that is unknown; everything else is."""
    result = unknown()
    assert (result.n_successes, result.success_rate, result.success_interval) == (None, None, None)
    assert result.n_episodes == 3
    summary = result.summary()
    assert summary["successes"] is summary["success_rate"] is summary["success_interval"] is None
    assert (summary["episodes"], summary["return_mean"], summary["length_mean"]) == (3, -5.0, 4.0)


def test_unknown_summary_is_json_null() -> None:
    text = json.dumps(unknown().summary(), allow_nan=False)
    assert json.loads(text)["success_interval"] is None


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 8)), min_size=1, max_size=8),
)
def test_suite_aggregates_known_success(successes: list[int | None]) -> None:
    """The success of a suite is that of the tasks that have one; scores are of all tasks."""
    results = [unknown() if count is None else result(count, 8) for count in successes]
    suite = suite_result(results)
    rates = [count / 8 for count in successes if count is not None]
    assert suite.tasks_with_success == len(rates)
    assert suite.success == (aggregate(rates) if rates else None)
    assert suite.score == aggregate([each.score for each in results])
