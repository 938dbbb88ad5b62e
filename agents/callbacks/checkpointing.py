"""TODO docstring."""

import time
import warnings
from collections.abc import Callable

from mirl.agents.callbacks.evaluation import Evaluation
from mirl.agents.callbacks.schedule import BetweenIterations, Interval
from mirl.agents.callbacks.statistics import TaskStatistics
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.checkpoint import load_index, save_checkpoint
from mirl.agents.runs.logger import TensorBoard, WarnOnWriteError
from mirl.agents.runs.synchronization import reseed_all
from mirl.agents.video import record_episode
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import file_name
from mirl.envs import env_seeds


class Checkpointing(BetweenIterations):
    """Saves every so many timesteps and at the end, with a GIF per task, and what was the best; stops when asked to.

    It comes after ``evaluation``: a checkpoint holds all that went before, so that nothing is lost behind it.
    """

    def __init__(
        self,
        config: TrainConfig,
        board: TensorBoard,
        statistics: TaskStatistics,
        evaluation: Evaluation,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.run_dir, self.seed, self.suite, self.board = (
            config.run_dir,
            config.seed,
            config.task,
            board,
        )
        self.total_timesteps = config.total_timesteps
        self.every = Interval(config.checkpoint_every)
        self.statistics, self.evaluation = statistics, evaluation
        self.asked_to_stop, self.stopping, self.saved_at = asked_to_stop, False, 0
        self.films, self.tolerant = True, WarnOnWriteError(str(config.run_dir / "videos"))

    def _on_training_start(self) -> None:
        self.every.last = self.saved_at = self.num_timesteps

    def act(self) -> None:
        self.stopping = self.asked_to_stop()
        due = self.every.due(self.num_timesteps)
        if due:
            self.film()
        if due or self.stopping or self.evaluation.improved is not None:
            start = time.perf_counter()
            self.save()
            reseed_all(self.model)
            self.logger.record(metrics.CHECKPOINT_SECONDS, time.perf_counter() - start)

    def _on_step(self) -> bool:
        return not self.stopping

    def _on_training_end(self) -> None:
        if not self.stopping:
            self.film()
            self.save()

    def save(self) -> None:
        """The last checkpoint is now."""
        best, folder, episodes = (
            self.evaluation.improved,
            self.run_dir / "checkpoints",
            self.statistics.state(),
        )
        try:
            save_checkpoint(folder, self.model, best=best, episodes=episodes)
        except OSError as error:
            self.fail(error)
            self.evaluation.best = load_index(folder).get("best_score", -1.0)
        else:
            self.saved_at = self.num_timesteps
        self.evaluation.improved = None

    def fail(self, error: OSError) -> None:
        """Go on without this checkpoint, unless it was to be the last."""
        stands = (
            f"the one of {self.saved_at:,} timesteps stands"
            if self.saved_at
            else "there is none yet"
        )
        message = f"the checkpoint of {self.num_timesteps:,} timesteps cannot be written ({error}); {stands}"
        if self.stopping or self.num_timesteps >= self.total_timesteps:
            raise RunError(f"{message}. Make room, and the same command again goes on from there")
        warnings.warn(f"{message}; training goes on and tries again at the next", stacklevel=2)

    def film(self) -> None:
        """A GIF per task, in ``videos/`` and in TensorBoard; none where this machine cannot render."""
        for i, task in enumerate(self.suite.tasks if self.films else ()):
            seed = env_seeds(self.seed, "validation", i, 1)[0]
            try:
                gif = record_episode(self.model.policy, self.suite, i, seed=seed)
            except (
                Exception
            ) as error:  # renderers raise what they like, and training should not end for a picture
                self.films = False
                warnings.warn(
                    f"no videos, since task '{task.name}' cannot be rendered here: {error}",
                    stacklevel=2,
                )
                return
            if gif is not None:
                path = (
                    self.run_dir / "videos" / f"{file_name(task.name)}_{self.num_timesteps:09d}.gif"
                )
                with self.tolerant:
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(gif.data)
                self.board.write_gif(f"video/{task.name}", gif, self.num_timesteps)
