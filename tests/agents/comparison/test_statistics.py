"""Intervals cover the truth of synthetic comparisons; tests agree with scipy and by hand."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from mirl.agents.comparison.statistics import (
    TimeToThreshold,
    estimate,
    mcnemar,
    paired_bootstrap,
    probability_of_improvement,
    rate_interval,
    t_interval,
    time_to_threshold,
    widen_by_episodes,
)

COMPARISONS = 2000
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def of_episodes(rates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the success rates of 1,000 episodes each."""
    return generator.binomial(1000, rates) / 1000


def logistic_normal(center: float) -> Draw:
    """Return rates that vary between seeds, and are skewed where their center is high."""

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return of_episodes(expit(generator.normal(center, 1, shape)), generator)

    return draw


RETURNS: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.normal(3, 2, shape),
    "heavy tails": lambda generator, shape: generator.standard_t(3, shape),
    "laplace": lambda generator, shape: generator.laplace(0, 1, shape),
}
RATES: dict[str, Draw] = {
    "around .7": logistic_normal(0.85),
    "around .9": logistic_normal(2.2),
    ".5 to 1": lambda generator, shape: of_episodes(generator.uniform(0.5, 1, shape), generator),
    "beta": lambda generator, shape: of_episodes(generator.beta(30, 1, shape), generator),
    "equal": lambda generator, shape: of_episodes(np.full(shape, 0.99), generator),
}
SKEWED: dict[str, Draw] = {"exponential": lambda generator, shape: generator.exponential(1, shape)}
ALL = RETURNS | RATES | SKEWED
SEEDS = pytest.mark.parametrize("seeds", [3, 5, 10])
TASKS = pytest.mark.parametrize("tasks", [1, 10])


@cache
def true_mean(name: str) -> float:
    """Return the mean that the intervals should hold, from many values."""
    return float(ALL[name](np.random.default_rng(1), (2_000_000,)).mean())


def coverage(interval: tuple[np.ndarray, np.ndarray], truth: float) -> float:
    """Return the share of intervals (comparisons,) that hold the truth."""
    low, high = interval
    return float(np.mean((low <= truth) & (truth <= high)))


@TASKS
@SEEDS
@pytest.mark.parametrize("name", RETURNS)
def test_interval_covers_true_return(name: str, seeds: int, tasks: int) -> None:
    generator = np.random.default_rng([seeds, tasks])
    truth = true_mean(name)
    # tasks differ in scale, so that their variances do
    scales = np.linspace(1, 2, tasks)
    strata = [scale * RETURNS[name](generator, (COMPARISONS, seeds)) for scale in scales]
    assert 0.92 <= coverage(t_interval(strata), truth * float(scales.mean())) <= 0.98


@TASKS
@SEEDS
@pytest.mark.parametrize("name", RATES)
def test_interval_covers_true_rate(name: str, seeds: int, tasks: int) -> None:
    generator = np.random.default_rng([seeds, tasks])
    truth = true_mean(name)
    strata = [RATES[name](generator, (COMPARISONS, seeds)) for _ in range(tasks)]
    assert 0.92 <= coverage(rate_interval(strata), truth) <= 0.98


@TASKS
@SEEDS
@pytest.mark.parametrize("name", ALL)
def test_interval_covers_true_difference(name: str, seeds: int, tasks: int) -> None:
    generator = np.random.default_rng([seeds, tasks])
    differences = []
    for _ in range(tasks):
        first = ALL[name](generator, (COMPARISONS, seeds))
        second = ALL[name](generator, (COMPARISONS, seeds))
        differences.append(first + 0.1 - second)
    assert 0.92 <= coverage(t_interval(differences), 0.1) <= 0.98


@SEEDS
def test_rates_near_one_need_logit(seeds: int) -> None:
    """The plain interval of rates near 1 is too narrow, which is why they have another one."""
    generator = np.random.default_rng(seeds)
    truth = true_mean("beta")
    rates = [RATES["beta"](generator, (COMPARISONS, seeds))]
    assert coverage(t_interval(rates), truth) < 0.92 < coverage(rate_interval(rates), truth)


def test_percentile_bootstrap_is_too_narrow() -> None:
    """A bootstrap over three seeds misses the true mean five times as often as it should."""
    generator = np.random.default_rng(3)
    values = generator.normal(0, 1, (COMPARISONS, 3))
    means = values[:, generator.integers(3, size=(500, 3))].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert coverage((low, high), 0.0) < 0.8


def test_perfect_seeds_have_some_width() -> None:
    found = widen_by_episodes(estimate([np.ones(3)], rate_interval), 3000)
    assert found.high == 1.0
    assert found.low == pytest.approx(0.9987, abs=1e-4)


def test_rate_interval_stays_inside() -> None:
    low, high = rate_interval([np.array([[0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.1]])])
    assert np.all(low >= 0)
    assert np.all(high <= 1)
    assert (low[1], high[1]) == (1.0, 1.0)


def test_run_of_many_tasks_counts_once() -> None:
    """Tasks that share their weights vary together: strata of them would be too narrow."""
    generator = np.random.default_rng(0)
    of_run = generator.normal(0, 1, (COMPARISONS, 3, 1))
    tasks = of_run + generator.normal(0, 0.1, (COMPARISONS, 3, 10))
    assert 0.92 <= coverage(t_interval([tasks.mean(-1)]), 0.0) <= 0.98
    assert coverage(t_interval(list(np.moveaxis(tasks, -1, 0))), 0.0) < 0.7


def test_one_task_is_students_t() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = estimate([values])
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_equal_variances_pool_freedom() -> None:
    """Four tasks of three seeds with equal variances have 4 · 2 degrees of freedom."""
    values = np.array([0.0, 1.0, 2.0])
    low, high = t_interval([values] * 4)
    width = stats.t.ppf(0.975, 8) * np.sqrt(4 * values.var(ddof=1) / 3) / 4
    assert (float(low), float(high)) == pytest.approx((1 - width, 1 + width))


def test_single_seed_has_no_interval() -> None:
    found = estimate([np.array([0.5]), np.array([0.7, 0.9])])
    assert (found.low, found.high) == (None, None)
    assert found.mean == pytest.approx(0.65)


def test_equal_values_have_no_width() -> None:
    found = estimate([np.ones(3)])
    assert (found.low, found.high) == (1.0, 1.0)


def test_probability_counts_pairs_by_hand() -> None:
    first = [np.array([1.0, 2.0]), np.array([5.0])]
    second = [np.array([1.0, 0.0, 3.0]), np.array([5.0])]
    # 1 > 0 and 2 > 1, 0 are wins, 1 = 1 is half a win: 3.5 of 6; the second task is a tie
    assert probability_of_improvement(first, second) == pytest.approx((3.5 / 6 + 0.5) / 2)


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ([10, 30, 20], TimeToThreshold(20, 10, 30, 0, 3)),
        ([10, None, 20], TimeToThreshold(20, 10, 20, 1, 3)),
        ([10, None, None], TimeToThreshold(None, 10, 10, 2, 3)),
        ([10, None], TimeToThreshold(None, 10, 10, 1, 2)),
        ([None], TimeToThreshold(None, None, None, 1, 1)),
    ],
)
def test_seeds_that_never_reach_count(reached: list[int | None], expected: TimeToThreshold) -> None:
    curves = []
    for step in reached:
        curve = [(5, 0.2), (100, 0.1)]
        if step is not None:
            curve = [(5, 0.2), (step, 0.95), (100, 0.1)]
        curves.append(curve)
    assert time_to_threshold(curves, 0.95) == expected


def test_mcnemar_counts_differing_episodes() -> None:
    first = np.array([True] * 9 + [False] * 3)
    second = np.array([True] * 2 + [False] * 9 + [True])
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (7, 1)
    # 2 · P(at least 7 of 8 heads)
    assert found.p_value == pytest.approx(2 * 9 / 256)
    assert mcnemar(first, first).p_value == 1.0


def test_bootstrap_agrees_with_normal_theory() -> None:
    differences = np.random.default_rng(1).normal(0.2, 1, 2000)
    found = paired_bootstrap(differences)
    assert found.low is not None
    assert found.high is not None
    half_width = 1.96 * differences.std() / np.sqrt(2000)
    assert found.mean - found.low == pytest.approx(half_width, rel=0.1)
    assert found.high - found.mean == pytest.approx(half_width, rel=0.1)
    assert paired_bootstrap(differences[:1]).low is None
