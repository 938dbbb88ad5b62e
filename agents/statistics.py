"""Statistics of episodes: counts become rates with intervals, never rates alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson, 1927)."""
    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class TaskResult:
    """The episodes of one task."""

    task: str
    success: Bool[np.ndarray, " episodes"]
    returns: Float[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    score_low: float = 0.0
    score_high: float = 1.0

    @property
    def success_rate(self) -> float:
        """Share of successful episodes."""
        return float(self.success.mean())

    def summary(self) -> dict[str, float | int | str | list[float]]:
        """What tables and ``eval/*.json`` hold: the rate with its 95 % Wilson interval, means and deviations."""
        return {
            "task": self.task,
            "episodes": len(self.success),
            "successes": int(self.success.sum()),
            "success_rate": self.success_rate,
            "success_interval": list(wilson_interval(int(self.success.sum()), len(self.success))),
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "score": (float(self.returns.mean()) - self.score_low) / (self.score_high - self.score_low),
            "length_mean": float(self.lengths.mean()),
        }
