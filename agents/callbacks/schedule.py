"""Timing of callbacks: intervals, work between iterations, and stop signals."""

import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback


class Interval:
    """A condition that is due once per interval of timesteps.

    Args:
        interval: timesteps of an interval.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.last = 0

    def due(self, timesteps: int) -> bool:
        """Return True once in each interval.

        Args:
            timesteps: timesteps of training so far.

        Returns:
            True if another interval has begun since the last time.
        """
        # compare intervals, because rollouts may not divide the interval
        if timesteps // self.interval == self.last // self.interval:
            return False
        self.last = timesteps
        return True


class IterationTimer(BaseCallback):
    """A timer that restarts whenever an iteration begins, after the callbacks before it."""

    def start(self) -> None:
        """Restart the timer."""
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the time since the last start.

        Returns:
            The time in seconds.
        """
        return time.perf_counter() - self._start

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.start()


class BetweenIterations(BaseCallback):
    """Base class of callbacks that run between two iterations, when no rollout is in progress.

    An off-policy algorithm begins a rollout every few timesteps, so ``on_iteration`` must be fast
    when nothing is due.
    """

    model: BaseAlgorithm

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # SB3 has no event after an update, so use the start of the next rollout
        self.on_iteration()

    @abstractmethod
    def on_iteration(self) -> None:
        """Do the work between two iterations."""


@contextmanager
def stop_signals(notify: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Defer the first Ctrl-C or SIGTERM inside the context; a second one takes effect at once.

    Args:
        notify: called when the first signal arrives.

    Yields:
        A function that returns True once a signal has arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        # only the main thread can handle signals
        yield lambda: False
        return

    received: list[int] = []

    def defer(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        notify()
        restore()  # the second signal then takes effect at once

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, defer) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        restore()
