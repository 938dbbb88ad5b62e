"""Evaluation during training, which selects the best checkpoint."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np

from mirl.agents.callbacks.schedule import BetweenIterations, Interval
from mirl.agents.callbacks.selection import (
    SuccessNotice,
    criterion_value,
    criterion_without_success,
)
from mirl.agents.context_use import EpisodeContexts, RecordedContexts
from mirl.agents.evaluation import evaluate, evaluate_swapped
from mirl.agents.result_tables import NO_SUCCESS
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.checkpoint import Criterion
from mirl.agents.runs.metric_names import task_metric
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult, suite_result
from mirl.configs.tasks import Subset
from mirl.envs import SuiteVecEnv

NO_SCORE = float("-inf")
"""Score that is lower than that of any evaluation."""


class Evaluation(BetweenIterations):
    """Evaluation on the validation seeds; its results are logged and select the best checkpoint.

    The selection is by success rate or, once a trained task has reported no success, by score or
    return. The held-out subset is only logged, because selecting a checkpoint on it would bias it.

    Args:
        run: the run.
        env: validation environments of the trained subset.
        held_out: validation environments of the held-out subset, if the run holds anything out.
        notice: logs the tasks that report no success; None to log nothing.
        log: called with one line per evaluation; None for no such lines.
        report: called with the timesteps and the score of each evaluation; returns True to stop
            the run.
    """

    def __init__(
        self,
        run: RunDirectory,
        env: SuiteVecEnv,
        held_out: SuiteVecEnv | None = None,
        notice: SuccessNotice | None = None,
        log: Callable[[str], None] | None = None,
        report: Callable[[int, float], bool] = lambda _timesteps, _score: False,
    ) -> None:
        super().__init__()
        self.log = log
        self.report = report
        self.asks_to_stop = False
        """True once ``report`` has returned True."""
        self.start = time.perf_counter()
        self.notice = notice
        self.run = run
        self.env = env
        self.held_out = held_out
        self.config = run.config.evaluation
        self.interval = Interval(self.config.every)
        self.new_best: float | None = None
        """Score, by ``criterion``, of a new best evaluation until its checkpoint is saved."""
        self.reset_best()

    def reset_best(self) -> None:
        """Take the best score and its criterion from the checkpoints that were saved."""
        score = self.run.checkpoints.best_score
        self.best = NO_SCORE
        if score is not None:
            self.best = score
        self.criterion: Criterion = self.run.checkpoints.best_criterion

    def _on_training_start(self) -> None:
        self.start = time.perf_counter()
        # a resumed run would otherwise be due at once
        self.interval.last = self.num_timesteps

    def on_iteration(self) -> None:
        """Evaluate if an interval is over."""
        if self.interval.due(self.num_timesteps):
            self.evaluate_now()

    def _on_training_end(self) -> None:
        # not after a stop signal, which should be obeyed quickly
        if self.model.num_timesteps >= self.run.config.total_timesteps:
            self.evaluate_now()

    def evaluate_now(self) -> None:
        """Evaluate and write a row of the log."""
        contexts = None
        if self.config.context_use:
            contexts = RecordedContexts(self.run.config.context.keys)
        results = self._evaluate(self.env, "trained", contexts)
        for result in results:
            if result.success_rate is not None:
                self._record_task("success_rate", result, result.success_rate)
            self._record_task("return", result, result.mean_return)
            self._record_task("length", result, result.mean_length)
        suite = suite_result(results)
        mean_return = float(np.mean([result.mean_return for result in results]))
        if suite.success is not None:
            self.logger.record(metrics.EVAL_SUCCESS, suite.success.mean)
            self.logger.record(metrics.EVAL_IQM, suite.success.iqm)
            self.logger.record(metrics.EVAL_WORST, suite.success.worst)
        self.logger.record(metrics.EVAL_SCORE, suite.score.mean)
        self.logger.record(metrics.EVAL_RETURN, mean_return)
        if self.held_out is not None:
            held_out = suite_result(self._evaluate(self.held_out, "held_out"))
            if held_out.success is not None:
                self.logger.record(metrics.HELD_OUT_SUCCESS, held_out.success.mean)
        if contexts is not None:
            self._record_context_use(results, contexts)
        # a separate row: the table needs its timesteps, TensorBoard has them as the step
        self.logger.record(metrics.TIMESTEPS, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self._log_line(None if suite.success is None else suite.success.mean, mean_return)
        if self.criterion == "success" and suite.tasks_with_success < len(results):
            # earlier scores were success rates, which cannot be compared with the new criterion
            self.criterion = criterion_without_success(self.run.config)
            self.best = NO_SCORE
        score = criterion_value(results, self.criterion, self.config.best_by)
        if score >= self.best:  # on a tie, prefer the later one, which has trained longer
            self.best = score
            self.new_best = score
        self.asks_to_stop = self.report(self.num_timesteps, score)

    def _log_line(self, success: float | None, mean_return: float) -> None:
        """Log one line about the trained tasks, whose success may be unknown."""
        if self.log is None:
            return
        rate = NO_SUCCESS if success is None else f"{success:.1%}"
        elapsed = timedelta(seconds=round(time.perf_counter() - self.start))
        self.log(
            f"{self.num_timesteps:,} timesteps: success {rate}, return {mean_return:.3f}, {elapsed}"
        )

    def _record_task(self, metric: str, result: TaskResult, value: float) -> None:
        self.logger.record(task_metric("eval", result.task, metric), value)

    def _record_context_use(
        self, results: Sequence[TaskResult], contexts: RecordedContexts
    ) -> None:
        """Log the results with contexts swapped between episodes, if the contexts differ."""
        use = evaluate_swapped(
            self.model.policy,
            self.env,
            results,
            contexts,
            episodes=self.config.context_use_episodes,
            seed=self.run.config.seed,
            deterministic=self.config.deterministic,
        )
        if use is None:
            return
        self.logger.record(metrics.CONTEXT_USE, use.value)
        self.logger.record(metrics.SWAPPED_RETURN, use.swapped_return)
        if use.swapped_success is not None:
            self.logger.record(metrics.SWAPPED_SUCCESS, use.swapped_success)

    def _evaluate(
        self, env: SuiteVecEnv, subset: Subset, contexts: EpisodeContexts | None = None
    ) -> list[TaskResult]:
        results = evaluate(
            self.model.policy,
            env,
            episodes=self.config.episodes,
            seed=self.run.config.seed,
            deterministic=self.config.deterministic,
            subset=subset,
            contexts=contexts,
        )
        if self.notice is not None:
            self.notice.tell([result.task for result in results if result.success_rate is None])
        return results
