"""What happens beside learning, as SB3 callbacks: statistics per task, evaluation, checkpoints, a clean stop."""

import signal
import threading
import time
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from mirl.agents import metrics
from mirl.agents.checkpoint import read_index, save_checkpoint
from mirl.agents.evaluation import evaluate
from mirl.agents.metrics import TensorBoard, Tolerant, task_metric
from mirl.agents.statistics import TaskResult, suite_result
from mirl.agents.synchronising import synchronise
from mirl.agents.video import record_episode
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import Part, file_name
from mirl.envs import SuiteVecEnv, slot_seeds
from mirl.policies import FusionExtractor

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
        self.record()

    def state(self) -> dict[str, list[tuple[bool, float, int]]]:
        """The episodes that count, by task, for JSON."""
        return {task: list(episodes) for task, episodes in self._episodes.items()}

    def load(self, state: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Go on from a ``state()``."""
        for task, episodes in state.items():
            self._episodes[task].extend((bool(won), float(total), int(length)) for won, total, length in episodes)

    def record(self) -> None:
        """Put the means into the row of the log that is written next."""
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


class OffPolicyRows(TaskStatistics):
    """Writes a row of the log every so many timesteps: an iteration of an off-policy algorithm is a single one of them.

    It is the first of the callbacks, and its ``clock`` the last: the speed leaves out what others do between the two.
    """

    model: OffPolicyAlgorithm

    def __init__(self, tasks: tuple[str, ...], interval: int) -> None:
        super().__init__(tasks)
        self.every, self.clock, self.seconds, self.timesteps = Every(interval), Clock(), 0.0, 0

    def _on_training_start(self) -> None:
        self.every.last = self.timesteps = self.num_timesteps
        self.clock.start()

    def _on_rollout_end(self) -> None:
        pass

    def _on_rollout_start(self) -> None:
        self.seconds += self.clock.seconds()
        if self.every.due(self.num_timesteps):
            self.write()

    def _on_training_end(self) -> None:
        self.seconds += self.clock.seconds()
        if self.num_timesteps > self.timesteps:
            self.write()

    def write(self) -> None:
        """One row."""
        self.record()
        self.logger.record(metrics.SPEED, (self.num_timesteps - self.timesteps) / self.seconds)
        self.seconds, self.timesteps = 0.0, self.num_timesteps
        self.model.dump_logs()


class Clock(BaseCallback):
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


class ObservationStatistics(BaseCallback):
    """Shows the policy each rollout before the next begins, for the statistics by which it normalises, if it does.

    Within a rollout and its update they stay as they are: PPO compares probabilities of the same network.
    """

    def _on_training_start(self) -> None:
        modules = self.model.policy.modules()
        self.extractors = [each for each in modules if isinstance(each, FusionExtractor) and each.normalises]
        self.seen: list[dict[str, NDArray[Any]]] = []

    def _on_step(self) -> bool:
        if self.extractors:
            self.seen.append(dict(self.locals["new_obs"]))  # a replay buffer reshapes what is in SB3's own
        return True

    def _on_rollout_start(self) -> None:
        if not self.seen:
            return
        joined = {key: np.concatenate([each[key] for each in self.seen]) for key in self.seen[0]}
        self.seen.clear()
        policy = self.model.policy
        tensors = preprocess_obs(
            obs_as_tensor(joined, policy.device), policy.observation_space, policy.normalize_images
        )
        for extractor in self.extractors:
            extractor.observe(cast(dict[str, Tensor], tensors))


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


class Evaluation(BetweenIterations):
    """Evaluates on the validation seeds, logs the results at their own step and says what is the best checkpoint.

    ``held_out`` plays what the run's split withholds from training, and is only logged. It never chooses: a checkpoint
    that was selected on withheld episodes would have been fitted to them.
    """

    def __init__(self, config: TrainConfig, env: SuiteVecEnv, held_out: SuiteVecEnv | None = None) -> None:
        super().__init__()
        self.config, self.seed, self.env, self.held_out = config.evaluation, config.seed, env, held_out
        self.checkpoints, self.total_timesteps = config.run_dir / "checkpoints", config.total_timesteps
        self.every = Every(config.evaluation.every)
        self.best = read_index(self.checkpoints).get("best_score", -1.0)
        self.improved: float | None = None
        """The rate of an evaluation that was the best so far, until its checkpoint is saved."""

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
        results = self._results(self.env, "trained")
        for result in results:
            self.logger.record(task_metric("eval", result.task, "success_rate"), result.success_rate)
            self.logger.record(task_metric("eval", result.task, "return"), float(result.returns.mean()))
            self.logger.record(task_metric("eval", result.task, "length"), float(result.lengths.mean()))
        together = suite_result(results)
        self.logger.record(metrics.EVAL_SUCCESS, together.success.mean)
        self.logger.record(metrics.EVAL_IQM, together.success.iqm)
        self.logger.record(metrics.EVAL_WORST, together.success.worst)
        self.logger.record(metrics.EVAL_SCORE, together.score.mean)
        self.logger.record(metrics.EVAL_RETURN, float(np.mean([result.returns.mean() for result in results])))
        if self.held_out is not None:
            withheld = suite_result(self._results(self.held_out, "held_out"))
            self.logger.record(metrics.HELD_OUT_SUCCESS, withheld.success.mean)
        self.logger.record(metrics.TIMESTEPS, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        rate = together.success.mean if self.config.best_by == "mean" else together.success.worst
        if rate >= self.best:  # of equals the later, which has practised longer
            self.best = self.improved = rate

    def _results(self, env: SuiteVecEnv, part: Part) -> list[TaskResult]:
        return evaluate(
            self.model.policy,
            env,
            episodes=self.config.episodes,
            seed=self.seed,
            deterministic=self.config.deterministic,
            part=part,
        )


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
        self.run_dir, self.seed, self.suite, self.board = config.run_dir, config.seed, config.task, board
        self.total_timesteps = config.total_timesteps
        self.every = Every(config.checkpoint_every)
        self.statistics, self.evaluation = statistics, evaluation
        self.asked_to_stop, self.stopping, self.saved_at = asked_to_stop, False, 0
        self.films, self.tolerant = True, Tolerant(str(config.run_dir / "videos"))

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
            synchronise(self.model)
            self.logger.record(metrics.CHECKPOINT_SECONDS, time.perf_counter() - start)

    def _on_step(self) -> bool:
        return not self.stopping

    def _on_training_end(self) -> None:
        if not self.stopping:
            self.film()
            self.save()

    def save(self) -> None:
        """The last checkpoint is now."""
        best, folder, episodes = self.evaluation.improved, self.run_dir / "checkpoints", self.statistics.state()
        try:
            save_checkpoint(folder, self.model, best=best, episodes=episodes)
        except OSError as error:
            self.fail(error)
            self.evaluation.best = read_index(folder).get("best_score", -1.0)
        else:
            self.saved_at = self.num_timesteps
        self.evaluation.improved = None

    def fail(self, error: OSError) -> None:
        """Go on without this checkpoint, unless it was to be the last."""
        stands = f"the one of {self.saved_at:,} timesteps stands" if self.saved_at else "there is none yet"
        message = f"the checkpoint of {self.num_timesteps:,} timesteps cannot be written ({error}); {stands}"
        if self.stopping or self.num_timesteps >= self.total_timesteps:
            raise RunError(f"{message}. Make room, and the same command again goes on from there")
        warnings.warn(f"{message}; training goes on and tries again at the next", stacklevel=2)

    def film(self) -> None:
        """A GIF per task, in ``videos/`` and in TensorBoard; none where this machine cannot render."""
        for i, task in enumerate(self.suite.tasks if self.films else ()):
            seed = slot_seeds(self.seed, "validation", i, 1)[0]
            try:
                gif = record_episode(self.model.policy, self.suite, i, seed=seed)
            except Exception as error:  # renderers raise what they like, and training should not end for a picture
                self.films = False
                warnings.warn(f"no videos, since task '{task.name}' cannot be rendered here: {error}", stacklevel=2)
                return
            if gif is not None:
                path = self.run_dir / "videos" / f"{file_name(task.name)}_{self.num_timesteps:09d}.gif"
                with self.tolerant:
                    path.parent.mkdir(exist_ok=True)
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
        self.start = self.shown_at = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if time.perf_counter() - self.shown_at < 0.1:  # the eye is slower than an off-policy iteration
            return
        self.shown_at = time.perf_counter()
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
