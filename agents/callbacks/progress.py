"""TODO docstring."""

import time

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback


class ProgressBar(BaseCallback):
    """Timesteps done, speed and rolling success rate."""

    def __init__(self, total_timesteps: int) -> None:
        super().__init__()
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:>6.0f} steps/s  success {task.fields[success]:>4.0%}"),
            TimeRemainingColumn(),
        )
        self.bar = self.progress.add_task("", total=total_timesteps, speed=0.0, success=0.0)

    def _on_training_start(self) -> None:
        self.start = self.shown_at = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if (
            time.perf_counter() - self.shown_at < 0.1
        ):  # the eye is slower than an off-policy iteration
            return
        self.shown_at = time.perf_counter()
        episodes = self.model.ep_success_buffer
        elapsed = time.perf_counter() - self.start
        speed = (self.num_timesteps - self.model._num_timesteps_at_start) / elapsed
        self.progress.update(
            self.bar,
            completed=self.num_timesteps,
            speed=speed,
            success=float(np.mean(episodes)) if episodes else 0.0,
        )

    def _on_training_end(self) -> None:
        self.progress.update(self.bar, completed=self.num_timesteps)
