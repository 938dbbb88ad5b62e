"""Evaluation while training, which selects the best checkpoint."""

import numpy as np

from mirl.agents.callbacks.schedule import BetweenIterations, Interval
from mirl.agents.evaluation import evaluate
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.metric_names import task_metric
from mirl.agents.runs.run import Run
from mirl.agents.statistics import TaskResult, suite_result
from mirl.configs.tasks import Subset
from mirl.envs import SuiteVecEnv

NO_SCORE = -1.0
"""Score below that of every evaluation."""


class Evaluation(BetweenIterations):
    """Evaluation on the validation seeds; its results are logged and select the best checkpoint.

    The held-out subset is logged only. A checkpoint that was selected on it would be fitted to it.

    Args:
        run: the run.
        env: validation environments of the trained subset.
        held_out: validation environments of the held-out subset, if the run holds anything out.
    """

    def __init__(self, run: Run, env: SuiteVecEnv, held_out: SuiteVecEnv | None = None) -> None:
        super().__init__()
        self.run = run
        self.env = env
        self.held_out = held_out
        self.config = run.config.evaluation
        self.interval = Interval(self.config.every)
        self.new_best: float | None = None
        """Score of an evaluation that is the best so far, until its checkpoint is saved."""
        self.reset_best()

    def reset_best(self) -> None:
        """Take the best score from the checkpoints that were saved."""
        score = self.run.checkpoints.best_score
        self.best = NO_SCORE
        if score is not None:
            self.best = score

    def _on_training_start(self) -> None:
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
        results = self._evaluate(self.env, "trained")
        for result in results:
            self._record_task("success_rate", result, result.success_rate)
            self._record_task("return", result, result.mean_return)
            self._record_task("length", result, result.mean_length)
        suite = suite_result(results)
        mean_return = float(np.mean([result.mean_return for result in results]))
        self.logger.record(metrics.EVAL_SUCCESS, suite.success.mean)
        self.logger.record(metrics.EVAL_IQM, suite.success.iqm)
        self.logger.record(metrics.EVAL_WORST, suite.success.worst)
        self.logger.record(metrics.EVAL_SCORE, suite.score.mean)
        self.logger.record(metrics.EVAL_RETURN, mean_return)
        if self.held_out is not None:
            held_out = suite_result(self._evaluate(self.held_out, "held_out"))
            self.logger.record(metrics.HELD_OUT_SUCCESS, held_out.success.mean)
        # a row of its own: the table needs its timesteps, TensorBoard has them as the step
        self.logger.record(metrics.TIMESTEPS, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        score = suite.success.mean
        if self.config.best_by == "worst":
            score = suite.success.worst
        if score >= self.best:  # of equal scores the later one, which has trained longer
            self.best = score
            self.new_best = score

    def _record_task(self, metric: str, result: TaskResult, value: float) -> None:
        self.logger.record(task_metric("eval", result.task, metric), value)

    def _evaluate(self, env: SuiteVecEnv, subset: Subset) -> list[TaskResult]:
        return evaluate(
            self.model.policy,
            env,
            episodes=self.config.episodes,
            seed=self.run.config.seed,
            deterministic=self.config.deterministic,
            subset=subset,
        )
