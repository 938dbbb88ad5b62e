"""Progress of a training run: a bar in a terminal, lines elsewhere."""

import time
from collections.abc import Callable

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from mirl.agents.callbacks.schedule import BetweenIterations, Interval
from mirl.agents.result_tables import NO_SUCCESS

SECONDS_PER_LINE = 1.0
"""Minimum time between two lines; the iterations of A2C are shorter."""
REFRESH_SECONDS = 0.1
"""Time between two updates of the bar; an off-policy iteration is shorter."""


class ProgressBar(BaseCallback):
    """A progress bar with timesteps, speed and rolling success rate.

    Args:
        total_timesteps: timesteps of the run.
    """

    def __init__(self, total_timesteps: int) -> None:
        super().__init__()
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:>6.0f} steps/s  success {task.fields[success]:>4}"),
            TimeRemainingColumn(),
        )
        self.bar = self.progress.add_task("", total=total_timesteps, speed=0.0, success=NO_SUCCESS)

    def _on_training_start(self) -> None:
        self.start = time.perf_counter()
        self.updated_at = self.start

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        if now - self.updated_at < REFRESH_SECONDS:
            return
        self.updated_at = now
        self.progress.update(
            self.bar,
            completed=self.num_timesteps,
            speed=_new_timesteps(self) / (now - self.start),
            success=_success_rate(self.model),
        )

    def _on_training_end(self) -> None:
        self.progress.update(self.bar, completed=self.num_timesteps)


class ProgressLines(BetweenIterations):
    """A line per row of the log, at most one a second, for use without a terminal.

    Args:
        total_timesteps: timesteps of the run.
        interval: timesteps between two rows of the log.
        log: called with each line.
    """

    def __init__(self, total_timesteps: int, interval: int, log: Callable[[str], None]) -> None:
        super().__init__()
        self.total_timesteps = total_timesteps
        self.interval = Interval(interval)
        self.log = log

    def _on_training_start(self) -> None:
        self.interval.last = self.num_timesteps
        self.start = time.perf_counter()
        self.logged_at = self.start - SECONDS_PER_LINE

    def on_iteration(self) -> None:
        """Log a line if a row of the log was written since the last one."""
        if not self.interval.due(self.num_timesteps):
            return
        now = time.perf_counter()
        if now - self.logged_at < SECONDS_PER_LINE:
            return
        self.logged_at = now
        speed = _new_timesteps(self) / (now - self.start)
        self.log(
            f"{self.num_timesteps:,} of {self.total_timesteps:,} timesteps, {speed:,.0f} steps/s, "
            f"success {_success_rate(self.model)}"
        )


def _new_timesteps(callback: BaseCallback) -> int:
    """Return the timesteps since the start of this process; a resumed run has earlier ones too."""
    return callback.num_timesteps - int(callback.model._num_timesteps_at_start)


def _success_rate(model: BaseAlgorithm) -> str:
    """Return the success rate of the last training episodes that report success, if any do."""
    episodes = model.ep_success_buffer
    return f"{np.mean(episodes):.0%}" if episodes else NO_SUCCESS
