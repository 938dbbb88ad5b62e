"""Sampling of the task of the next episode."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError

SamplingStrategy = Literal["uniform", "lowest_success", "learning_progress"]
"""Strategy for choosing among the tasks; see ``TaskSampler``."""
SamplingState = Mapping[str, Any]
"""State that determines the next tasks, as JSON data."""

UNIFORM_SHARE = 0.2
"""Share u of the probability that is spread evenly, so that every task keeps being sampled."""
FAST_RATE = 1 / 50
"""Weight of one episode in the average of the recent success rate."""
SLOW_RATE = 1 / 500
"""Weight of one episode in the average of the long-term success rate."""


class TaskSampler:
    """Sampler of tasks with p = u/n + (1 − u) w/Σw, where u is ``UNIFORM_SHARE``.

    The weight w ≥ 0 of a task depends on the strategy:

    - ``uniform``: w = 1.
    - ``lowest_success``: w = 1 − s, where s is an exponential moving average of the task's
      successes with rate ``FAST_RATE`` per episode.
    - ``learning_progress``: w = |s − l|, where l is the same average with rate ``SLOW_RATE``. It
      prefers tasks whose success rate changes, because they are being learned or forgotten.

    Both averages start at 0. If all weights are 0, p is uniform.

    Args:
        strategy: the strategy.
        tasks: indices of the n tasks to sample from.
        seed: seed of the sampler's own generator.

    References:
        Portelas et al., "Teacher algorithms for curriculum learning of Deep RL in continuously
        parameterized environments", CoRL 2019, arXiv:1910.07224: absolute learning progress.
        Kanitscheider et al., "Multi-task curriculum learning in a complex, visual, hard-exploration
        domain: Minecraft", 2021, arXiv:2106.14876: learning progress as the difference of two
        averages of the success rate. Their reweighting of low rates is not implemented.
    """

    def __init__(self, strategy: SamplingStrategy, tasks: Sequence[int], seed: int) -> None:
        self.strategy: SamplingStrategy = strategy
        """The strategy."""
        self._tasks = np.array(tasks, dtype=np.int64)  # (n,)
        self._row_of = {task_index: row for row, task_index in enumerate(tasks)}
        self._recent = np.zeros(len(tasks))
        self._long_term = np.zeros(len(tasks))
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restart the generator; the success rates are kept.

        Args:
            seed: the new seed.
        """
        # PCG64 by name, because its state is saved and default_rng() may change its generator.
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def draw(self, n: int) -> NDArray[np.int64]:
        """Sample the tasks of the next episodes.

        Args:
            n: number of episodes.

        Returns:
            Indices of tasks, (n,).
        """
        return self._generator.choice(self._tasks, size=n, p=self.probabilities)

    def record(self, task_index: int, success: bool) -> None:
        """Update the success rates with an episode.

        Args:
            task_index: the task of the episode.
            success: whether it succeeded.
        """
        row = self._row_of[task_index]
        # Exponential moving averages with two rates.
        self._recent[row] += FAST_RATE * (success - self._recent[row])
        self._long_term[row] += SLOW_RATE * (success - self._long_term[row])

    @property
    def needs_success(self) -> bool:
        """True if the samples depend on the success of earlier episodes."""
        return self.strategy != "uniform"

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of each task to be sampled next, (n,)."""
        weights = self._weights()  # (n,)
        n = len(weights)
        total = weights.sum()
        # Before the first success (or failure), all weights may be 0.
        shares = np.full(n, 1 / n)
        if total > 0:
            shares = weights / total
        # u/n + (1 − u) w/Σw
        return UNIFORM_SHARE / n + (1 - UNIFORM_SHARE) * shares

    def state(self) -> SamplingState:
        """Return the state that determines the next samples, as JSON data."""
        # The keys are part of every checkpoint, so they keep their names.
        return {
            "sampling": self.strategy,
            "tasks": self._tasks.tolist(),
            "recent_success": self._recent.tolist(),
            "long_ago_success": self._long_term.tolist(),
            "generator": self._generator.bit_generator.state,
        }

    def load(self, state: SamplingState) -> None:
        """Restore a state that ``state()`` returned.

        Args:
            state: the state of a sampler with the same strategy and tasks.

        Raises:
            ConfigError: if the state does not fit; the sampler is then unchanged.
        """
        expected = {"sampling": self.strategy, "tasks": self._tasks.tolist()}
        for key, value in expected.items():
            if state.get(key) != value:
                raise ConfigError(
                    f"the sampling state must have {key}={value}, got {state.get(key)}; continue "
                    "with the sampling and the tasks of the checkpoint"
                )
        recent = self._parse_rates("recent_success", state.get("recent_success"))
        long_term = self._parse_rates("long_ago_success", state.get("long_ago_success"))
        generator = np.random.PCG64()
        try:
            generator.state = state["generator"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"the sampling state must hold a PCG64 state as 'generator', got {error!r}; "
                "continue from another checkpoint"
            ) from error
        # Nothing has been changed before this point, so an error leaves the sampler as it was.
        self._recent = recent
        self._long_term = long_term
        self._generator = np.random.Generator(generator)

    def _weights(self) -> NDArray[np.float64]:
        match self.strategy:
            case "uniform":
                return np.ones(len(self._tasks))
            case "lowest_success":
                return 1 - self._recent
            case "learning_progress":
                return np.abs(self._recent - self._long_term)
            case _:
                assert_never(self.strategy)

    def _parse_rates(self, key: str, values: object) -> NDArray[np.float64]:
        """Return the success rates in a state, (n,)."""
        n = len(self._tasks)
        try:
            rates = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            rates = np.array([])
        # NaN fails both comparisons.
        if rates.shape != (n,) or not ((rates >= 0) & (rates <= 1)).all():
            raise ConfigError(
                f"the sampling state must hold {n} rates of 0 to 1 as '{key}', got {values}; "
                "continue from another checkpoint"
            )
        return rates
