"""Shares of an iteration's wall time: environment, forward pass, update and the rest."""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from stable_baselines3.common.logger import Logger

from mirl.agents.runs import metric_names as metrics

Section = Literal["environment", "forward", "update"]

WARM_UP = 4
"""Number of first iterations that are ignored, because they also load and compile."""
PATIENCE = 30.0
"""Seconds of iterations before a warning; other processes can make a single iteration look bad."""
MAX_IDLE_PERCENT = 50
"""Maximum share of the time that the network may wait without a warning."""


class IterationProfiler:
    """A timer that splits each iteration into environment, forward, update and the rest.

    The rest is bookkeeping and the callbacks' steps. Work that callbacks do between two iterations,
    such as evaluation, is not counted.
    """

    def __init__(self) -> None:
        self.percent: dict[str, float] = {}
        """Shares of the last iteration, by section."""
        self._n_iterations = 0
        self._has_warned = False
        self._total = 0.0
        """Seconds of the iterations since the last check."""
        self._totals: dict[str, float] = {}
        """The same by section."""
        self.start()

    def start(self) -> None:
        """Begin an iteration."""
        self._start = time.perf_counter()
        self._seconds: dict[Section, float] = {"environment": 0.0, "forward": 0.0, "update": 0.0}

    @contextmanager
    def section(self, section: Section) -> Iterator[None]:
        """Count the time spent inside the context.

        Args:
            section: the section that the time counts towards.
        """
        begin = time.perf_counter()
        yield
        self._seconds[section] += time.perf_counter() - begin

    def record(self, logger: Logger, timesteps: int) -> None:
        """Log speed and shares of the iteration; warn once if the network mostly waits.

        Args:
            logger: SB3's logger.
            timesteps: timesteps of the iteration, all environments together.
        """
        # SB3 logs the speed over the whole training, not over the last iteration
        total = time.perf_counter() - self._start
        logger.record(metrics.SPEED, timesteps / total)
        self.percent = {}
        for section, seconds in self._seconds.items():
            self.percent[section] = 100 * seconds / total
        # the network is idle while environments step and in the rest: callbacks, log, files
        self.percent["rest"] = _idle_percent(self.percent) - self.percent["environment"]
        for name, share in self.percent.items():
            logger.record(metrics.time_metric(name), share)
        self._n_iterations += 1
        if self._n_iterations > WARM_UP and not self._has_warned:
            self._check_idle(total)

    def _check_idle(self, total: float) -> None:
        """Warn if the network waited for most of at least ``PATIENCE`` seconds."""
        self._total += total
        for section, seconds in self._seconds.items():
            self._totals[section] = self._totals.get(section, 0.0) + seconds
        if self._total < PATIENCE:
            return
        percent: dict[str, float] = {}
        for name, seconds in self._totals.items():
            percent[name] = 100 * seconds / self._total
        self._total = 0.0
        self._totals = {}
        idle = _idle_percent(percent)
        if idle > MAX_IDLE_PERCENT:
            self._has_warned = True
            warnings.warn(
                f"the network is idle {idle:.0f} % of the time; {percent['environment']:.0f} % are "
                "spent on stepping environments; backend=envpool or more of them "
                "(agent.n_envs) would use it better",
                stacklevel=3,
            )


def _idle_percent(percent: Mapping[str, float]) -> float:
    return 100 - percent["forward"] - percent["update"]
