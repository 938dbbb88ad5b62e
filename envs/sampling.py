"""Which task comes next, when an environment is not bound to one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError

Preference = Literal["uniform", "lowest_success", "learning_progress"]

UNIFORM_SHARE = 0.2
"""Part of the probability that all tasks share equally, so that none is forgotten."""
FAST = 1 / 50
"""Weight of an episode in the recent success rate."""
SLOW = 1 / 500
"""Weight of an episode in the success rate of long ago."""


class TaskSampler:
    """Draws tasks with p = u/n + (1 − u) w/Σw, where u is ``UNIFORM_SHARE`` and w ≥ 0 depends on the preference.

    - ``uniform``: w = 1.
    - ``lowest_success``: w = 1 − s, with s an exponential moving average of a task's successes, ``FAST`` per episode.
    - ``learning_progress``: w = |s − l|, with l the same average but ``SLOW``: what changes is learned, or forgotten.
      Absolute learning progress (Portelas et al., 2019, arXiv:1910.07224), from two averages of the success rate
      (Kanitscheider et al., 2021, arXiv:2106.14876; without their reweighting of low rates).

    Both averages start at 0; where all w are 0, p is uniform.

    Args:
        preference: what w is.
        tasks: the tasks to draw from, as indices into the suite.
        seed: of the generator, which is the sampler's own.
    """

    def __init__(self, preference: Preference, tasks: Sequence[int], seed: int) -> None:
        self._preference: Preference = preference
        self._tasks = np.array(tasks, dtype=np.int64)
        self._row = {task: row for row, task in enumerate(tasks)}
        self._recent = np.zeros(len(tasks))
        self._long_ago = np.zeros(len(tasks))
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restart the generator; what is known of the tasks stays."""
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def draw(self, n: int) -> NDArray[np.int64]:
        """The tasks (n,) of the next n episodes."""
        return self._generator.choice(self._tasks, size=n, p=self.probabilities)

    def record(self, task: int, success: bool) -> None:
        """Take note of an episode."""
        row = self._row[task]
        self._recent[row] += FAST * (success - self._recent[row])
        self._long_ago[row] += SLOW * (success - self._long_ago[row])

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(number of tasks drawn from,), of each to come next."""
        weights = self._weights()
        total = weights.sum()
        shares = weights / total if total > 0 else np.full(len(weights), 1 / len(weights))
        return UNIFORM_SHARE / len(weights) + (1 - UNIFORM_SHARE) * shares

    def state(self) -> dict[str, Any]:
        """All that the next draws depend on, for JSON."""
        return {
            "sampling": self._preference,
            "tasks": self._tasks.tolist(),
            "recent_success": self._recent.tolist(),
            "long_ago_success": self._long_ago.tolist(),
            "generator": self._generator.bit_generator.state,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``; on an error nothing has changed.

        Raises:
            ConfigError: it is another preference's, of other tasks, or none at all.
        """
        for key, own in (("sampling", self._preference), ("tasks", self._tasks.tolist())):
            if state.get(key) != own:
                raise ConfigError(
                    f"the state of the sampling must have {key}={own}, got {state.get(key)}"
                )
        rates = {
            key: self._rates(key, state.get(key)) for key in ("recent_success", "long_ago_success")
        }
        generator = np.random.PCG64()
        try:
            generator.state = state["generator"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"the state of the sampling has no valid 'generator': {error!r}"
            ) from error
        self._recent, self._long_ago = rates["recent_success"], rates["long_ago_success"]
        self._generator = np.random.Generator(generator)

    def _weights(self) -> NDArray[np.float64]:
        match self._preference:
            case "uniform":
                return np.ones(len(self._tasks))
            case "lowest_success":
                return 1 - self._recent
            case "learning_progress":
                return np.abs(self._recent - self._long_ago)
            case _:
                assert_never(self._preference)

    def _rates(self, key: str, values: Any) -> NDArray[np.float64]:
        try:
            rates = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            rates = np.array([])
        if rates.shape != self._tasks.shape or not ((rates >= 0) & (rates <= 1)).all():
            raise ConfigError(
                f"the state of the sampling must have {len(self._tasks)} rates of 0 to 1 as '{key}', got {values}"
            )
        return rates
