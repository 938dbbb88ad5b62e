"""Where the wall time of an iteration goes."""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from stable_baselines3.common.logger import Logger

from mirl.agents.runs import metric_names as metrics

Part = Literal["environment", "forward", "update"]

WARM_UP = 4
"""Iterations that are not judged: they also load and compile."""
PATIENCE = 30.0
"""Seconds of iterations behind a judgement: a neighbor on the processor makes any single one look bad."""


class IterationProfiler:
    """Splits each iteration into environment, forward, update and the rest (bookkeeping and callbacks' steps).

    What callbacks do between two iterations, such as evaluation, belongs to neither.
    """

    def __init__(self) -> None:
        self._iterations, self._warned = 0, False
        self._check_idled: dict[str, float] = {}
        self.percent: dict[str, float] = {}
        """Of the last iteration, by part."""
        self.start()

    def start(self) -> None:
        """Begin an iteration."""
        self._start = time.perf_counter()
        self._seconds: dict[Part, float] = {"environment": 0.0, "forward": 0.0, "update": 0.0}

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Count the time within it to ``part``."""
        begin = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - begin

    def record(self, logger: Logger, timesteps: int) -> None:
        """Log the speed of the iteration and its parts in percent; warn once when the network mostly waits."""
        total = time.perf_counter() - self._start
        logger.record(metrics.SPEED, timesteps / total)
        percent: dict[str, float] = {
            part: 100 * seconds / total for part, seconds in self._seconds.items()
        }
        waiting = 100 - percent["forward"] - percent["update"]
        self.percent = {**percent, "rest": waiting - percent["environment"]}
        for part, share in self.percent.items():
            logger.record(metrics.time_metric(part), share)
        self._iterations += 1
        if self._iterations > WARM_UP and not self._warned:
            self._check_idle({"total": total} | dict(self._seconds.items()))

    def _check_idle(self, seconds: Mapping[str, float]) -> None:
        """Warn once if the network waited for most of a long enough time."""
        self._check_idled = {
            name: self._check_idled.get(name, 0.0) + value for name, value in seconds.items()
        }
        total = self._check_idled["total"]
        if total < PATIENCE:
            return
        percent = {name: 100 * value / total for name, value in self._check_idled.items()}
        self._check_idled = {}
        waiting = 100 - percent["forward"] - percent["update"]
        if waiting > 50:
            self._warned = True
            warnings.warn(
                f"the network is idle {waiting:.0f} % of the time, of which {percent['environment']:.0f} % go to "
                "stepping environments; backend=envpool or more of them (agent.n_envs) would use it better",
                stacklevel=3,
            )
