"""TODO docstring."""

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
    """Says when another ``interval`` timesteps are over."""

    def __init__(self, interval: int) -> None:
        self.interval, self.last = interval, 0

    def due(self, timesteps: int) -> bool:
        """True once per interval."""
        if timesteps // self.interval == self.last // self.interval:
            return False
        self.last = timesteps
        return True


class IterationTimer(BaseCallback):
    """The time since the last iteration began, once the callbacks before this one were through."""

    def start(self) -> None:
        """Begin now."""
        self.began = time.perf_counter()

    def seconds(self) -> float:
        """Since then."""
        return time.perf_counter() - self.began

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.start()


class BetweenIterations(BaseCallback):
    """A callback that acts on the state between two iterations, which is complete: no rollout is half-way.

    An off-policy algorithm begins a rollout every few timesteps: ``act`` must be quick where nothing is due.
    """

    model: BaseAlgorithm

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.act()

    @abstractmethod
    def act(self) -> None:
        """What to do between two iterations."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, Ctrl-C and SIGTERM only make a note, which the function given tells; a second one acts at once."""
    noted: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may handle signals
        yield lambda: False
        return

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
