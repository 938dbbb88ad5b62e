"""Progress bar of a training run."""

import time

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback

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
        self.bar = self.progress.add_task("", total=total_timesteps, speed=0.0, success="–")

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
        # empty before the first episode has ended, and where no episode reports success
        episodes = self.model.ep_success_buffer
        # the speed of this process: a resumed run starts with timesteps of earlier ones
        timesteps = self.num_timesteps - self.model._num_timesteps_at_start
        self.progress.update(
            self.bar,
            completed=self.num_timesteps,
            speed=timesteps / (now - self.start),
            success=f"{np.mean(episodes):.0%}" if episodes else "–",
        )

    def _on_training_end(self) -> None:
        self.progress.update(self.bar, completed=self.num_timesteps)
