"""TODO docstring."""

import numpy as np

from mirl.agents.callbacks.schedule import BetweenIterations, Interval
from mirl.agents.evaluation import evaluate
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.checkpoint import load_index
from mirl.agents.runs.metric_names import task_metric
from mirl.agents.statistics import TaskResult, suite_result
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import Subset
from mirl.envs import SuiteVecEnv


class Evaluation(BetweenIterations):
    """Evaluates on the validation seeds, logs the results at their own step and says what is the best checkpoint.

    ``held_out`` plays what the run's split withholds from training, and is only logged. It never chooses: a checkpoint
    that was selected on withheld episodes would have been fitted to them.
    """

    def __init__(
        self, config: TrainConfig, env: SuiteVecEnv, held_out: SuiteVecEnv | None = None
    ) -> None:
        super().__init__()
        self.config, self.seed, self.env, self.held_out = (
            config.evaluation,
            config.seed,
            env,
            held_out,
        )
        self.checkpoints, self.total_timesteps = (
            config.run_dir / "checkpoints",
            config.total_timesteps,
        )
        self.every = Interval(config.evaluation.every)
        self.best = load_index(self.checkpoints).get("best_score", -1.0)
        self.improved: float | None = None
        """The rate of an evaluation that was the best so far, until its checkpoint is saved."""

    def _on_training_start(self) -> None:
        self.every.last = self.num_timesteps

    def act(self) -> None:
        if self.every.due(self.num_timesteps):
            self.evaluate_now()

    def _on_training_end(self) -> None:
        if (
            self.model.num_timesteps >= self.total_timesteps
        ):  # and not when asked to stop, which should be quick
            self.evaluate_now()

    def evaluate_now(self) -> None:
        """One evaluation, one row of the log."""
        results = self._results(self.env, "trained")
        for result in results:
            self.logger.record(
                task_metric("eval", result.task, "success_rate"), result.success_rate
            )
            self.logger.record(
                task_metric("eval", result.task, "return"), float(result.returns.mean())
            )
            self.logger.record(
                task_metric("eval", result.task, "length"), float(result.lengths.mean())
            )
        together = suite_result(results)
        self.logger.record(metrics.EVAL_SUCCESS, together.success.mean)
        self.logger.record(metrics.EVAL_IQM, together.success.iqm)
        self.logger.record(metrics.EVAL_WORST, together.success.worst)
        self.logger.record(metrics.EVAL_SCORE, together.score.mean)
        self.logger.record(
            metrics.EVAL_RETURN, float(np.mean([result.returns.mean() for result in results]))
        )
        if self.held_out is not None:
            withheld = suite_result(self._results(self.held_out, "held_out"))
            self.logger.record(metrics.HELD_OUT_SUCCESS, withheld.success.mean)
        self.logger.record(metrics.TIMESTEPS, self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        rate = together.success.mean if self.config.best_by == "mean" else together.success.worst
        if rate >= self.best:  # of equals the later, which has practiced longer
            self.best = self.improved = rate

    def _results(self, env: SuiteVecEnv, subset: Subset) -> list[TaskResult]:
        return evaluate(
            self.model.policy,
            env,
            episodes=self.config.episodes,
            seed=self.seed,
            deterministic=self.config.deterministic,
            subset=subset,
        )
