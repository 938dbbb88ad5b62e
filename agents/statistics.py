"""Statistics of episodes, tasks and runs: counts become rates with intervals, never rates alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, trim_mean

from mirl.configs.tasks import Subset


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson, 1927)."""
    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def interquartile_mean(values: Float[np.ndarray, " *shape"]) -> float:
    """Mean of the middle half of the values, all axes together (IQM; Agarwal et al., 2021).

    A quarter of n values, rounded down, is left out at either end, so of fewer than four it is the plain mean.
    """
    return float(trim_mean(np.ravel(values), 0.25))


def bootstrap_interval(
    scores: Float[np.ndarray, "runs tasks"],
    statistic: Callable[[Float[np.ndarray, "runs tasks"]], float],
    generator: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile interval of a statistic of a score matrix, over the choice of seeds.

    The bootstrap is stratified: each resample draws as many runs as there are, with replacement and for each task by
    itself, so every task keeps its weight (Agarwal et al., 2021). The tasks are what they are: no interval over them.
    """
    runs, tasks = scores.shape
    drawn = generator.integers(runs, size=(resamples, runs, tasks))
    samples = [statistic(np.take_along_axis(scores, rows, axis=0)) for rows in drawn]
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class TaskResult:
    """The episodes of one task."""

    task: str
    success: Bool[np.ndarray, " episodes"]
    returns: Float[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    score_low: float = 0.0
    """Return that counts as score 0."""
    score_high: float = 1.0
    """Return that counts as score 1."""
    subset: Subset = "trained"
    """Whether the run's split left these episodes to training."""

    @property
    def label(self) -> str:
        """Its name in tables: ``goto_obj``, ``goto_obj (held out)``."""
        return self.task if self.subset == "trained" else f"{self.task} (held out)"

    @property
    def success_rate(self) -> float:
        """Share of successful episodes."""
        return float(self.success.mean())

    @property
    def score(self) -> float:
        """Mean return on the scale where ``score_low`` is 0 and ``score_high`` 1; it may lie outside."""
        return (float(self.returns.mean()) - self.score_low) / (self.score_high - self.score_low)

    def summary(self) -> dict[str, float | int | str | list[float]]:
        """What tables and ``eval/*.json`` hold: the rate with its 95 % Wilson interval, means and deviations."""
        return {
            "task": self.task,
            "subset": self.subset,
            "episodes": len(self.success),
            "successes": int(self.success.sum()),
            "success_rate": self.success_rate,
            "success_interval": list(wilson_interval(int(self.success.sum()), len(self.success))),
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "score": self.score,
            "length_mean": float(self.lengths.mean()),
        }


@dataclass(frozen=True)
class Aggregate:
    """One quantity over the tasks of a suite."""

    mean: float
    iqm: float
    """Interquartile mean: neither solved nor hopeless tasks decide it alone."""
    worst: float


def aggregate(values: Sequence[float]) -> Aggregate:
    """Mean, interquartile mean and minimum over tasks, each task weighing the same."""
    over_tasks = np.asarray(values, dtype=np.float64)
    return Aggregate(
        float(over_tasks.mean()), interquartile_mean(over_tasks), float(over_tasks.min())
    )


@dataclass(frozen=True)
class SuiteResult:
    """The tasks of a suite, taken together."""

    success: Aggregate
    score: Aggregate


def suite_result(results: Sequence[TaskResult]) -> SuiteResult:
    """What a suite's tasks reached together."""
    return SuiteResult(
        success=aggregate([result.success_rate for result in results]),
        score=aggregate([result.score for result in results]),
    )
