"""Statistics over episodes, tasks and runs: rates come with 95 % intervals.

scipy.stats is not used, because it takes longer to load than the rest of MIRL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

from mirl.configs.tasks import Subset

SUBSETS: tuple[Subset, ...] = ("trained", "held_out")
UPPER = 0.975
"""Probability below the upper bound of a 95 % interval."""
NORMAL_QUANTILE = NormalDist().inv_cdf(UPPER)
"""Quantile of the standard normal distribution at the probability ``UPPER``."""


class Episode(NamedTuple):
    """Outcome of one episode."""

    success: bool | None
    """None if it is unknown."""
    episode_return: float
    length: int


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a success rate.

    Args:
        successes: successful episodes.
        episodes: all episodes, at least one.

    Returns:
        The lower and the upper bound.

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = NORMAL_QUANTILE
    rate = successes / episodes
    scale = 2 * (episodes + z**2)
    center = (2 * episodes * rate + z**2) / scale
    half = z / scale * math.sqrt(4 * episodes * rate * (1 - rate) + z**2)
    # exactly 0 and 1 at the ends, despite rounding
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == episodes else center + half
    return low, high


def rate_difference_interval(
    first: Bool[np.ndarray, " first"],
    second: Bool[np.ndarray, " second"],
) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two success rates, first − second.

    One success and one failure are added to each, so that a few equal outcomes do not pass for
    certainty.

    Args:
        first: success of each episode, at least one.
        second: success of each episode, at least one, independent of the first.

    Returns:
        The lower and the upper bound.

    References:
        Agresti and Caffo, "Simple and Effective Confidence Intervals for Proportions and
        Differences of Proportions", The American Statistician 2000.
    """
    variance = 0.0
    rates = []
    for success in (first, second):
        n = len(success) + 2
        rate = (int(success.sum()) + 1) / n
        variance += rate * (1 - rate) / n
        rates.append(rate)
    difference = rates[0] - rates[1]
    width = NORMAL_QUANTILE * math.sqrt(variance)
    return max(-1.0, difference - width), min(1.0, difference + width)


def mean_difference_interval(
    first: Float[np.ndarray, " first"],
    second: Float[np.ndarray, " second"],
) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference of two means, first − second.

    Args:
        first: the values, at least one.
        second: the values, at least one, independent of the first.

    Returns:
        The lower and the upper bound; None if one of them has a single value.

    References:
        Welch, "The Generalization of Student's Problem when Several Different Population Variances
        are Involved", Biometrika 1947.
    """
    from scipy.special import stdtrit  # the quantile of Student's t; few runs need it

    if min(len(first), len(second)) < 2:
        return None
    difference = float(first.mean() - second.mean())
    # squared standard errors of the two means
    errors = np.array([values.var(ddof=1) / len(values) for values in (first, second)])
    if not errors.any():
        return difference, difference
    degrees = errors.sum() ** 2 / np.sum(errors**2 / [len(first) - 1, len(second) - 1])
    width = float(stdtrit(degrees, UPPER) * np.sqrt(errors.sum()))
    return difference - width, difference + width


def interquartile_mean(values: Float[np.ndarray, " *shape"]) -> float:
    """Return the mean of the middle half of the values (IQM), over all axes together.

    A quarter of the values, rounded down, is left out at either end; for fewer than four values it
    is the plain mean.

    Args:
        values: the values.

    Returns:
        The interquartile mean.

    References:
        Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
        NeurIPS 2021.
    """
    flat = np.ravel(values)
    left_out = len(flat) // 4
    kept = len(flat) - left_out
    parted = np.partition(flat, (left_out, kept - 1))
    return float(parted[left_out:kept].mean())


class TaskSummary(TypedDict):
    """The numbers of one task, as ``eval/*.json`` holds them; None where success is unknown."""

    task: str
    subset: Subset
    episodes: int
    successes: int | None
    success_rate: float | None
    success_interval: list[float] | None
    return_mean: float
    return_std: float
    score: float
    length_mean: float


@dataclass(frozen=True)
class TaskResult:
    """The episodes of one task.

    Args:
        task: name of the task.
        success: True for each successful episode; None if it is unknown for any of them.
        returns: return of each episode.
        lengths: timesteps of each episode.
        score_low: return that counts as score 0.
        score_high: return that counts as score 1.
        subset: subset of the run's holdout that the episodes belong to.
    """

    task: str
    success: Bool[np.ndarray, " episodes"] | None
    returns: Float[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    score_low: float = 0.0
    score_high: float = 1.0
    subset: Subset = "trained"

    @property
    def label(self) -> str:
        """Name in tables: ``goto_obj``, ``goto_obj (held out)``."""
        if self.subset == "trained":
            return self.task
        return f"{self.task} (held out)"

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def n_successes(self) -> int | None:
        """Number of successful episodes; None if it is unknown."""
        if self.success is None:
            return None
        return int(self.success.sum())

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes; None if it is unknown."""
        if self.success is None:
            return None
        return float(self.success.mean())

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the success rate; None if that is unknown."""
        if self.n_successes is None:
            return None
        return wilson_interval(self.n_successes, self.n_episodes)

    @property
    def mean_return(self) -> float:
        """Mean return of the episodes."""
        return float(self.returns.mean())

    @property
    def mean_length(self) -> float:
        """Mean length of the episodes, in timesteps."""
        return float(self.lengths.mean())

    @property
    def score(self) -> float:
        """Mean return, scaled so that ``score_low`` is 0 and ``score_high`` is 1."""
        return (self.mean_return - self.score_low) / (self.score_high - self.score_low)

    @property
    def scores(self) -> Float[np.ndarray, " episodes"]:
        """Return of each episode, scaled as ``score``."""
        return (self.returns - self.score_low) / (self.score_high - self.score_low)

    def summary(self) -> TaskSummary:
        """Return rates, means and deviations for tables and ``eval/*.json``.

        Returns:
            The numbers by name.
        """
        interval = self.success_interval
        return {
            "task": self.task,
            "subset": self.subset,
            "episodes": self.n_episodes,
            "successes": self.n_successes,
            "success_rate": self.success_rate,
            "success_interval": None if interval is None else list(interval),
            "return_mean": self.mean_return,
            "return_std": float(self.returns.std()),
            "score": self.score,
            "length_mean": self.mean_length,
        }


@dataclass(frozen=True)
class Aggregate:
    """One quantity over the tasks of a suite.

    Args:
        mean: mean over the tasks.
        iqm: interquartile mean, which is robust to a few solved or hopeless tasks.
        worst: value of the worst task.
    """

    mean: float
    iqm: float
    worst: float


def aggregate(values: Sequence[float]) -> Aggregate:
    """Aggregate a quantity over tasks, each task weighing the same.

    Args:
        values: one value per task.

    Returns:
        Mean, interquartile mean and minimum.
    """
    over_tasks = np.asarray(values, dtype=np.float64)
    return Aggregate(
        mean=float(over_tasks.mean()),
        iqm=interquartile_mean(over_tasks),
        worst=float(over_tasks.min()),
    )


@dataclass(frozen=True)
class SuiteResult:
    """The results of a suite's tasks, taken together.

    Args:
        success: the success rates of the tasks that have one; None if no task has one.
        score: the scores.
        tasks_with_success: number of tasks that have a success rate.
    """

    success: Aggregate | None
    score: Aggregate
    tasks_with_success: int


def suite_result(results: Sequence[TaskResult]) -> SuiteResult:
    """Aggregate the results of a suite's tasks.

    Args:
        results: one result per task.

    Returns:
        Success rates and scores over the tasks.
    """
    rates = [result.success_rate for result in results if result.success_rate is not None]
    return SuiteResult(
        success=aggregate(rates) if rates else None,
        score=aggregate([result.score for result in results]),
        tasks_with_success=len(rates),
    )


def by_subset(results: Sequence[TaskResult]) -> list[tuple[Subset, list[TaskResult]]]:
    """Group results by their subset.

    Args:
        results: the results.

    Returns:
        The results of each subset that has any, with the trained subset first.
    """
    groups: list[tuple[Subset, list[TaskResult]]] = []
    for subset in SUBSETS:
        in_subset = [result for result in results if result.subset == subset]
        if in_subset:
            groups.append((subset, in_subset))
    return groups
