"""Statistics over seeds: means with intervals, paired differences, timesteps to a threshold.

A run gives one number per seed, however many tasks it trains together. Only tasks that are trained
in separate runs are strata, which are assumed to be independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from scipy.special import expit, logit

from mirl.agents.statistics import wilson_interval

CONFIDENCE = 0.95
"""Confidence of all intervals."""
RESAMPLES = 5000
"""Resamples of a bootstrap."""
TINY = 1e-300
"""Tiny positive number that replaces zero to avoid division by zero."""
Strata = Sequence[Float[np.ndarray, "*batch seeds"]]
"""One array per task; the last axis has a value per seed."""
Interval = tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]
"""Lower and upper bounds."""


def t_interval(strata: Strata) -> Interval:
    """Return the 95 % interval of the mean over tasks and seeds, by Student's t.

    Args:
        strata: an array (..., seeds) per task, each with two seeds or more.

    Returns:
        The lower and the upper bound, of shape (...).
    """
    mean, width = _mean_and_width(strata)
    return mean - width, mean + width


def rate_interval(strata: Strata) -> Interval:
    """Return the 95 % interval of the mean of rates, by Student's t on the scale of the logit.

    Near 1 the rates of seeds are skewed: most are high and a few are low. With the mean m and the
    half width w of ``t_interval``, the interval is logit⁻¹(logit m ± w / (m (1 − m))), which
    reaches further towards the few, and stays between 0 and 1.

    Args:
        strata: an array (..., seeds) of rates from 0 to 1 per task, each with two seeds or more.

    Returns:
        The lower and the upper bound, of shape (...).
    """
    mean, width = _mean_and_width(strata)
    # if all rates are equal, which includes means of 0 and 1, the width is zero
    varies = width > 0
    inside = np.where(varies, mean, 0.5)
    scaled = width / (inside * (1 - inside))
    low = expit(logit(inside) - scaled)
    high = expit(logit(inside) + scaled)
    return np.where(varies, low, mean), np.where(varies, high, mean)


def _mean_and_width(strata: Strata) -> Interval:
    """Return the mean over tasks and seeds, and the half width of its interval, both (...).

    With the variance v_k of the n_k seeds of each of T tasks and e_k = v_k / n_k, the squared
    standard error of the mean over the tasks is Σ_k e_k / T², and its degrees of freedom are
    (Σ_k e_k)² / Σ_k (e_k² / (n_k − 1)) (Satterthwaite, "An Approximate Distribution of Estimates
    of Variance Components", Biometrics Bulletin 1946). For one task they are n − 1.
    """
    mean = np.mean([values.mean(-1) for values in strata], axis=0)
    errors = np.stack([values.var(-1, ddof=1) / values.shape[-1] for values in strata], axis=-1)
    degrees_of_each = np.array([values.shape[-1] - 1 for values in strata])
    total = errors.sum(-1)
    # equal values have no error, so their degrees of freedom do not matter
    squares = np.maximum((errors**2 / degrees_of_each).sum(-1), TINY)
    degrees = np.maximum(total**2 / squares, 1.0)
    width = stats.t.ppf((1 + CONFIDENCE) / 2, degrees) * np.sqrt(total) / len(strata)
    return mean, width


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


def estimate(strata: Strata, interval: Callable[[Strata], Interval] = t_interval) -> Estimate:
    """Estimate the mean over tasks and seeds.

    Args:
        strata: an array (seeds,) per task, none of them empty.
        interval: ``t_interval``, or ``rate_interval`` for rates.

    Returns:
        The mean and its 95 % interval.
    """
    mean = float(np.mean([values.mean() for values in strata]))
    if min(len(values) for values in strata) < 2:
        return Estimate(mean, None, None)
    low, high = interval(strata)
    return Estimate(mean, float(low), float(high))


def widen_by_episodes(rate: Estimate, episodes: int) -> Estimate:
    """Give seeds with equal success rates, such as 1, an interval based on their episodes.

    Equal values have no variance, but a finite number of episodes is also likely under a slightly
    different rate.

    Args:
        rate: the mean success rate and its interval over seeds.
        episodes: number of episodes of all seeds and tasks together.

    Returns:
        Wilson's interval if the interval over seeds has no width, else the same estimate.
    """
    if rate.low is None or rate.low != rate.high:
        return rate
    low, high = wilson_interval(round(rate.mean * episodes), episodes)
    return Estimate(rate.mean, low, high)


def probability_of_improvement(first: Strata, second: Strata) -> float:
    """Return the probability that a run of the first setting is better than one of the second.

    It is the share of pairs of runs of the same task in which the first is higher, with ties
    counted as half, averaged over the tasks (the Mann–Whitney statistic).

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
        median: median over all seeds, with those that never reached it counted as latest; None if
            half of the seeds or more never reached it.
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
        The timesteps of the first evaluation at or above the threshold, over the seeds.
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
    """Two-sided probability of a difference at least as large if both were equally good."""


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
        batch=500,  # limits the memory use
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
