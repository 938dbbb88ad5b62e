"""Statistics over seeds: means with intervals, paired differences, timesteps to a threshold.

A run, however many tasks it trains together, gives one number per seed. Only tasks that are trained
in runs of their own are strata, which are taken to be independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

CONFIDENCE = 0.95
"""Confidence of all intervals."""
RESAMPLES = 5000
"""Resamples of a bootstrap."""
Strata = Sequence[Float[np.ndarray, "*batch seeds"]]
"""One array per task; the last axis has a value per seed."""


def t_interval(
    strata: Strata, confidence: float = CONFIDENCE
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Return the interval of the mean over tasks and seeds, by Student's t stratified by task.

    With means m_k, variances v_k and n_k seeds of T tasks, the squared standard error of the mean
    over the tasks is Σ_k e_k / T² with e_k = v_k / n_k, and its degrees of freedom are
    (Σ_k e_k)² / Σ_k (e_k² / (n_k − 1)). For one task this is the usual t interval.

    Args:
        strata: an array (..., seeds) per task, each with two seeds or more.
        confidence: probability that the interval covers the true mean.

    Returns:
        The lower and the upper bound, of shape (...).

    References:
        Satterthwaite, "An Approximate Distribution of Estimates of Variance Components",
        Biometrics Bulletin 1946.
    """
    mean = np.mean([values.mean(-1) for values in strata], axis=0)
    errors = np.stack([values.var(-1, ddof=1) / values.shape[-1] for values in strata])
    degrees_of_each = np.array([values.shape[-1] - 1 for values in strata])
    # (tasks, ...) -> (..., tasks), so that the degrees of freedom of the tasks fit
    errors = np.moveaxis(errors, 0, -1)
    total = errors.sum(-1)
    # equal values have no error, and any number of degrees of freedom
    squares = np.maximum((errors**2 / degrees_of_each).sum(-1), np.finfo(float).tiny)
    degrees = np.maximum(total**2 / squares, 1.0)
    width = stats.t.ppf((1 + confidence) / 2, degrees) * np.sqrt(total) / len(strata)
    return mean - width, mean + width


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks and seeds with its interval.

    Args:
        mean: the mean; every task weighs the same.
        low: lower bound of the interval; None for a single seed.
        high: upper bound of the interval; None for a single seed.
    """

    mean: float
    low: float | None
    high: float | None


def estimate(strata: Strata) -> Estimate:
    """Estimate the mean over tasks and seeds.

    Args:
        strata: an array (seeds,) per task, none of them empty.

    Returns:
        The mean and its 95 % interval.
    """
    mean = float(np.mean([values.mean() for values in strata]))
    if min(len(values) for values in strata) < 2:
        return Estimate(mean, None, None)
    low, high = t_interval(strata)
    return Estimate(mean, float(low), float(high))


def probability_of_improvement(first: Strata, second: Strata) -> float:
    """Return the probability that a run of the first setting is better than one of the second.

    It is the share of pairs of runs of the same task in which the first is higher, ties counted
    half, averaged over the tasks (the statistic of Mann and Whitney).

    Args:
        first: an array (seeds,) per task.
        second: an array (seeds,) per task, in the same order.

    Returns:
        The probability, from 0 to 1.

    References:
        Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
        NeurIPS 2021.
    """
    shares = []
    for one, other in zip(first, second, strict=True):
        wins = stats.mannwhitneyu(one, other, method="asymptotic").statistic
        shares.append(wins / (len(one) * len(other)))
    return float(np.mean(shares))


@dataclass(frozen=True)
class TimeToThreshold:
    """Timesteps to a threshold over several seeds, some of which may never have reached it.

    Args:
        median: median over all seeds, those that never reached it counted as later than any other;
            None if half of the seeds or more never reached it.
        earliest: timesteps of the first seed; None if none reached it.
        latest: timesteps of the last seed that reached it; None if none reached it.
        never: number of seeds that never reached it.
        seeds: number of seeds.
    """

    median: int | None
    earliest: int | None
    latest: int | None
    never: int
    seeds: int


def time_to_threshold(
    curves: Sequence[Sequence[tuple[int, float]]], threshold: float
) -> TimeToThreshold:
    """Return when learning curves first reach a threshold.

    Args:
        curves: timesteps and value of each evaluation of each seed; at least one curve.
        threshold: the value to reach.

    Returns:
        The timesteps of the first evaluation at or above it, over the seeds.
    """
    reached = []
    for curve in curves:
        steps = [step for step, value in curve if value >= threshold]
        if steps:
            reached.append(min(steps))
    never = len(curves) - len(reached)
    middle = float(np.median([*reached, *[np.inf] * never]))
    return TimeToThreshold(
        median=int(middle) if np.isfinite(middle) else None,
        earliest=min(reached, default=None),
        latest=max(reached, default=None),
        never=never,
        seeds=len(curves),
    )


class McNemar(NamedTuple):
    """McNemar's exact test of two success rates on the same episodes."""

    only_first: int
    """Episodes in which only the first was successful."""
    only_second: int
    """Episodes in which only the second was successful."""
    p_value: float
    """Two-sided probability of a difference as large, if both were equally good."""


def mcnemar(first: Bool[np.ndarray, " episodes"], second: Bool[np.ndarray, " episodes"]) -> McNemar:
    """Test whether two success rates on the same episodes differ.

    Args:
        first: success of each episode.
        second: success of the same episodes.

    Returns:
        The numbers of episodes that differ, and the p-value.

    References:
        McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or
        Percentages", Psychometrika 1947.
    """
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    differing = only_first + only_second
    p_value = 1.0
    if differing:
        p_value = float(stats.binomtest(only_first, differing).pvalue)
    return McNemar(only_first, only_second, p_value)


def paired_bootstrap(differences: Float[np.ndarray, " episodes"]) -> Estimate:
    """Estimate the mean of paired differences by a percentile bootstrap over the pairs.

    Args:
        differences: the difference of each pair, e.g. of the returns of one episode.

    Returns:
        The mean and its 95 % interval, from a fixed seed.
    """
    mean = float(differences.mean())
    if len(differences) < 2:
        return Estimate(mean, None, None)
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=500,  # bounds the memory
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
