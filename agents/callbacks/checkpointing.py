"""Checkpoints and videos during training, and stopping on a signal."""

import time
import warnings
from collections.abc import Callable

from mirl.agents.callbacks.evaluation import Evaluation
from mirl.agents.callbacks.schedule import BetweenIterations, Interval
from mirl.agents.callbacks.statistics import TaskStatistics
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.atomic_files import make_folder, write_bytes
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.logger import RunLogger, WarnOnWriteError
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.runs.synchronization import reseed_all
from mirl.agents.video import Gif, encode_gif, record_episode
from mirl.configs.errors import RunError
from mirl.configs.tasks import file_name
from mirl.envs import env_seeds

SLOW_VIDEOS = 20.0
"""Seconds spent on the first videos, or on all of them, above which a line is logged."""
NOTICEABLE_SHARE = 0.1
"""Share of a run's time spent on all videos above which a line is logged."""
CHEAPER_VIDEOS = "videos=false records none, videos=500_000 one per 500,000 timesteps."


class Checkpointing(BetweenIterations):
    """Checkpoints at intervals, after a new best evaluation and at the end, with videos.

    It comes after ``evaluation``, so that a checkpoint includes everything before it. With several
    ranks, only the first one writes; all of them restart their episodes at a checkpoint.

    Args:
        run: the run.
        run_logger: the logger of the run, for the videos; None on ranks that do not write.
        statistics: the statistics whose episodes are saved.
        evaluation: the evaluation that selects the best checkpoint; None on ranks that do not
            evaluate.
        stop_requested: returns True once the run should stop.
        log: called with one line if the videos take a noticeable part of the time.
        ranks: the processes that train the agent; they stop and save at the same time.
    """

    def __init__(
        self,
        run: RunDirectory,
        run_logger: RunLogger | None,
        statistics: TaskStatistics,
        evaluation: Evaluation | None,
        stop_requested: Callable[[], bool],
        log: Callable[[str], None] = lambda _: None,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.run = run
        self.run_logger = run_logger
        self.statistics = statistics
        self.evaluation = evaluation
        self.stop_requested = stop_requested
        self.log = log
        self.interval = Interval(run.config.checkpoint_every)
        # a number of timesteps is a separate interval; True, also an int in Python, is not one
        every = run.config.videos
        self.video_interval = self.interval
        if every is not True and every:
            self.video_interval = Interval(every)
        self.video_seconds = 0.0
        """Time spent on videos, in seconds."""
        self.is_stopping = False
        self.saved_at = 0
        """Timesteps of the last checkpoint that was saved."""
        self.last_saved: Checkpoint | None = None
        """The last checkpoint that this process saved."""
        self.can_render = bool(every) and run_logger is not None
        self.video_errors = WarnOnWriteError(str(run.path / "videos"))

    def _on_training_start(self) -> None:
        # a resumed run would otherwise be due at once
        self.interval.last = self.num_timesteps
        self.video_interval.last = self.num_timesteps
        self.saved_at = self.num_timesteps
        self.start = time.perf_counter()

    def on_iteration(self) -> None:
        """Save a checkpoint if one is due, then restart episodes and random generators."""
        is_best = False
        asks_to_stop = self.stop_requested()
        if self.evaluation is not None:
            is_best = self.evaluation.new_best is not None
            asks_to_stop = asks_to_stop or self.evaluation.asks_to_stop
        # asked once, so that saving and stopping agree, also among the ranks
        self.is_stopping, is_best = self.ranks.any_of(asks_to_stop, is_best)
        is_due = self.interval.due(self.num_timesteps)
        if self.video_interval is not self.interval:
            if self.video_interval.due(self.num_timesteps):
                self.record_videos()
        elif is_due:
            self.record_videos()
        if is_due or self.is_stopping or is_best:
            start = time.perf_counter()
            # in every run, stopped or not, so that a resumed run draws the same numbers
            self.save()
            reseed_all(self.model)
            self.logger.record(metrics.CHECKPOINT_SECONDS, time.perf_counter() - start)

    def _on_step(self) -> bool:
        if self.is_stopping:
            # SB3 drops the rollout that has just begun, but counts its first timestep
            self.model.num_timesteps = self.saved_at
        # False ends learning
        return not self.is_stopping

    def _on_training_end(self) -> None:
        # a run that is stopping has just saved
        if not self.is_stopping:
            self.record_videos()
            self.save()
        self._log_share_of_videos()

    def save(self) -> None:
        """Save a checkpoint; if that fails, warn, or raise if it would have been the last.

        Raises:
            RunError: the last checkpoint of the run cannot be written.
        """
        if self.evaluation is None:
            self.saved_at = self.num_timesteps  # the first rank saves it
            return
        try:
            self.last_saved = self.run.save_checkpoint(
                self.model,
                score=self.evaluation.new_best,
                criterion=self.evaluation.criterion,
                episodes=self.statistics.state(),
            )
        except OSError as error:
            self._handle_write_error(error)
            # only a saved checkpoint may set the best score
            self.evaluation.reset_best()
        else:
            self.saved_at = self.num_timesteps
        # a failed checkpoint is not retried: the weights will have changed
        self.evaluation.new_best = None

    def _handle_write_error(self, error: OSError) -> None:
        previous = "there is none yet"
        if self.saved_at:
            previous = f"that of {self.saved_at:,} timesteps is kept"
        message = (
            f"the checkpoint of {self.num_timesteps:,} timesteps cannot be written ({error}); "
            f"{previous}"
        )
        if self.is_stopping or self.num_timesteps >= self.run.config.total_timesteps:
            raise RunError(
                f"{message}. Free some disk space and run the same command again to resume"
            )
        warnings.warn(f"{message}; training continues until the next one", stacklevel=3)

    def record_videos(self) -> None:
        """Record a GIF per task, for ``videos/`` and the loggers, if this machine can render."""
        if not self.can_render:
            return
        start = time.perf_counter()
        self._record_tasks()
        seconds = time.perf_counter() - start
        if not self.video_seconds and seconds > SLOW_VIDEOS:
            # early, because the videos are recorded again at every checkpoint
            self.log(f"The videos took {seconds:.0f} s. {CHEAPER_VIDEOS}")
        self.video_seconds += seconds
        self.logger.record(metrics.VIDEO_SECONDS, seconds)

    def _log_share_of_videos(self) -> None:
        share = self.video_seconds / max(time.perf_counter() - self.start, 1e-9)
        if share >= NOTICEABLE_SHARE and self.video_seconds > SLOW_VIDEOS:
            self.log(
                f"Videos: {self.video_seconds:.0f} s, {share:.0%} of the time. {CHEAPER_VIDEOS}"
            )

    def _record_tasks(self) -> None:
        suite = self.run.config.task
        for index, task in enumerate(suite.tasks):
            # the same episode in every video of a task, so that they can be compared
            [seed] = env_seeds(self.run.config.seed, "validation", index, 1)
            try:
                recording = record_episode(self.model.policy, suite, index, seed=seed)
                gif = None if recording is None else encode_gif(recording)
            except Exception as error:
                # renderers can raise or return anything, and a video is not worth ending a run for
                self.can_render = False
                warnings.warn(
                    f"no videos, because task '{task.name}' cannot be rendered here: {error}",
                    stacklevel=2,
                )
                return
            if gif is not None:
                self._write_video(task.name, gif)

    def _write_video(self, task: str, gif: Gif) -> None:
        path = self.run.path / "videos" / f"{file_name(task)}_{self.num_timesteps:09d}.gif"
        with self.video_errors:
            make_folder(path.parent)
            write_bytes(path, gif.data)
        assert self.run_logger is not None
        self.run_logger.write_gif(f"video/{task}", gif, self.num_timesteps)
