"""What happens beside learning, as SB3 callbacks: statistics per task, evaluation, checkpoints, a clean stop."""

import signal
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from mirl.agents import metrics
from mirl.agents.checkpoint import read_index, save_checkpoint
from mirl.agents.evaluation import evaluate, mean_success
from mirl.agents.metrics import TensorBoard, task_metric
from mirl.agents.video import record_episode
from mirl.configs.schema import SuiteConfig, TrainConfig, file_name
from mirl.envs import SuiteVecEnv, slot_seeds

WINDOW = 256
"""Episodes per task behind each rolling mean."""


class TaskStatistics(BaseCallback):
    """Rolling success rate, return and length of each task's last episodes."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self._episodes: dict[str, deque[tuple[bool, float, int]]] = {task: deque(maxlen=WINDOW) for task in tasks}

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for slot in np.flatnonzero(self.locals["dones"]):
            episode = infos[slot]["episode"]
            self._episodes[infos[slot]["task"]].append((infos[slot]["is_success"], episode["r"], episode["l"]))
        return True

    def _on_rollout_end(self) -> None:
        for task, episodes in self._episodes.items():
            if episodes:
                for name, value in zip(
                    ("success_rate", "return", "length"), np.mean(list(episodes), axis=0), strict=True
                ):
                    self.logger.record(task_metric("task", task, name), float(value))


class Every:
    """Says when another ``interval`` timesteps are over."""

    def __init__(self, interval: int) -> None:
        self.interval, self.last = interval, 0

    def due(self, timesteps: int) -> bool:
        """True once per interval."""
        if timesteps // self.interval == self.last // self.interval:
            return False
        self.last = timesteps
        return True


class BetweenIterations(BaseCallback):
    """A callback that acts on the state between two iterations, which is complete: no rollout is half-way."""

    model: OnPolicyAlgorithm

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.act()

    @abstractmethod
    def act(self) -> None:
        """What to do between two iterations."""


class Evaluation(BetweenIterations):
    """Evaluates on the validation seeds, logs the results at their own step and keeps the best checkpoint."""

    def __init__(self, config: TrainConfig, env: SuiteVecEnv) -> None:
        super().__init__()
        self.config, self.seed, self.env = config.evaluation, config.seed, env
        self.checkpoints, self.total_timesteps = config.run_dir / "checkpoints", config.total_timesteps
        self.every = Every(config.evaluation.every)
        self.best = read_index(self.checkpoints).get("best_score", -1.0)

    def _on_training_start(self) -> None:
        self.every.last = self.num_timesteps

    def act(self) -> None:
        if self.every.due(self.num_timesteps):
            self.evaluate_now()

    def _on_training_end(self) -> None:
        if self.model.num_timesteps >= self.total_timesteps:  # and not when asked to stop, which should be quick
            self.evaluate_now()

    def evaluate_now(self) -> None:
        """One evaluation, one row of the log."""
        results = evaluate(
            self.model.policy,
            self.env,
            episodes=self.config.episodes,
            seed=self.seed,
            deterministic=self.config.deterministic,
        )
        for result in results:
            self.logger.record(task_metric("eval", result.task, "success_rate"), result.success_rate)
            self.logger.record(task_metric("eval", result.task, "return"), float(result.returns.mean()))
            self.logger.record(task_metric("eval", result.task, "length"), float(result.lengths.mean()))
        score = mean_success(results)
        self.logger.record(metrics.EVAL_SUCCESS, score)
        self.logger.record(metrics.EVAL_RETURN, float(np.mean([result.returns.mean() for result in results])))
        self.logger.record(metrics.TIMESTEPS, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if score >= self.best:  # of equals the later, which has practised longer
            self.best = score
            save_checkpoint(self.checkpoints, self.model, best=score)


class Checkpointing(BetweenIterations):
    """Saves every so many timesteps and at the end, with a GIF per task; saves and stops when asked to."""

    def __init__(
        self, config: TrainConfig, suite: SuiteConfig, board: TensorBoard, asked_to_stop: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.run_dir, self.seed, self.suite, self.board = config.run_dir, config.seed, suite, board
        self.every = Every(config.checkpoint_every)
        self.asked_to_stop, self.stopping, self.saved_at = asked_to_stop, False, 0

    def _on_training_start(self) -> None:
        self.every.last = self.num_timesteps

    def act(self) -> None:
        self.stopping = self.asked_to_stop()
        if self.every.due(self.num_timesteps):
            self.save()
            self.film()
        elif self.stopping:
            self.save()

    def _on_step(self) -> bool:
        return not self.stopping

    def _on_training_end(self) -> None:
        if not self.stopping:
            self.save()
            self.film()

    def save(self) -> None:
        """The last checkpoint is now."""
        save_checkpoint(self.run_dir / "checkpoints", self.model)
        self.saved_at = self.num_timesteps

    def film(self) -> None:
        """A GIF per task, in ``videos/`` and in TensorBoard."""
        (self.run_dir / "videos").mkdir(exist_ok=True)
        for i, task in enumerate(self.suite.tasks):
            gif = record_episode(self.model.policy, self.suite, i, seed=slot_seeds(self.seed, "validation", i, 1)[0])
            if gif is not None:
                path = self.run_dir / "videos" / f"{file_name(task.name)}_{self.num_timesteps:09d}.gif"
                path.write_bytes(gif.data)
                self.board.write_gif(f"video/{task.name}", gif, self.num_timesteps)


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
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        episodes = self.model.ep_success_buffer
        elapsed = time.perf_counter() - self.start
        speed = (self.num_timesteps - self.model._num_timesteps_at_start) / elapsed
        self.progress.update(
            self.bar, completed=self.num_timesteps, speed=speed, success=float(np.mean(episodes)) if episodes else 0.0
        )

    def _on_training_end(self) -> None:
        self.progress.update(self.bar, completed=self.num_timesteps)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, Ctrl-C and SIGTERM only make a note, which the function given tells; a second one acts at once."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
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
