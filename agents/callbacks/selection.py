"""Selection of the best checkpoint: by success or, if that is unknown, by score or return."""

from collections.abc import Callable, Sequence

import numpy as np

from mirl.agents.result_tables import describe_missing_success
from mirl.agents.runs.checkpoint import Criterion
from mirl.agents.statistics import TaskResult
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import has_score_bounds


def criterion_without_success(config: TrainConfig) -> Criterion:
    """Return the criterion for the best checkpoint if a trained task reports no success.

    Args:
        config: the configuration of the run.

    Returns:
        ``score`` if every trained task has score bounds, which make tasks comparable; otherwise
        ``return``.
    """
    trained = config.trained_tasks
    for task in config.task.tasks:
        if task.name in trained and not has_score_bounds(task):
            return "return"
    return "score"


def criterion_value(results: Sequence[TaskResult], criterion: Criterion, best_by: str) -> float:
    """Return the value by which evaluations are compared.

    Args:
        results: the results of the trained tasks.
        criterion: the quantity; ``success`` needs a success rate of every task.
        best_by: ``mean`` or ``worst`` over the tasks.

    Returns:
        The value; higher is better.
    """
    values = []
    for result in results:
        match criterion:
            case "success":
                assert result.success_rate is not None
                values.append(result.success_rate)
            case "score":
                values.append(result.score)
            case "return":
                values.append(result.mean_return)
    if best_by == "worst":
        return float(np.min(values))
    return float(np.mean(values))


class SuccessNotice:
    """Log line, once per task, about tasks that report no success, and the consequences.

    Args:
        config: the configuration of the run.
        log: called with the line.
    """

    def __init__(self, config: TrainConfig, log: Callable[[str], None]) -> None:
        self._config = config
        self._log = log
        self._told: set[str] = set()

    def tell(self, tasks: Sequence[str]) -> None:
        """Log the line about those tasks that it has not mentioned yet.

        Args:
            tasks: names of tasks that report no success.
        """
        new = [task for task in tasks if task not in self._told]
        if not new:
            return
        self._told.update(new)
        effects = ["tables show –"]
        if any(task in self._config.trained_tasks for task in new):
            effects.append(f"the best checkpoint is that of the highest {self._criterion()}")
        advice = "to define it, start a run with 'success=return>=X' and another name=…"
        self._log(f"{describe_missing_success(new)}: {', '.join(effects)}; {advice}")

    def _criterion(self) -> str:
        criterion = criterion_without_success(self._config)
        if len(self._config.trained_tasks) == 1:
            return criterion
        if self._config.evaluation.best_by == "worst":
            return f"{criterion} of the worst task"
        return f"mean {criterion}"
