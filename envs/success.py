"""Success of episodes, decided by the rule of their task."""

from collections.abc import Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import TaskConfig
from mirl.envs.pools.backend import NOT_REPORTED, Step
from mirl.envs.type_aliases import EnvIndices


class SuccessTracker:
    """Success reports of the running episodes.

    Args:
        tasks: the tasks of the suite, each with its success rule.
        n_envs: number of environments.
    """

    def __init__(self, tasks: Sequence[TaskConfig], n_envs: int) -> None:
        self._tasks = tasks
        self._best_reports = np.full(n_envs, NOT_REPORTED, dtype=np.int8)

    def start_episodes(self, env_indices: EnvIndices) -> None:
        """Forget the reports of earlier episodes.

        Args:
            env_indices: environments whose episode starts, (k,).
        """
        self._best_reports[env_indices] = NOT_REPORTED

    def update(self, step: Step) -> None:
        """Add the reports of a timestep.

        Args:
            step: the timestep of all n_envs environments.
        """
        # NOT_REPORTED < 0 < 1, so the maximum is the best report.
        np.maximum(self._best_reports, step.success, out=self._best_reports)

    def evaluate(self, step: Step, ended: EnvIndices, task_ids: NDArray[np.int64]) -> list[bool]:
        """Return the success of episodes that ended.

        Args:
            step: the last timestep, of all n_envs environments.
            ended: environments whose episode ended, (k,).
            task_ids: task of each environment, (n_envs,).

        Returns:
            k booleans; False where the environment failed.

        Raises:
            ConfigError: if the success rule needs a report that the environment does not give.
        """
        successes = []
        # Few episodes end in a timestep, so this loop is short.
        for env_index in ended.tolist():
            success = False
            if not step.failed[env_index]:
                success = is_success(
                    self._tasks[task_ids[env_index]],
                    float(step.rewards[env_index]),
                    int(step.success[env_index]),
                    int(self._best_reports[env_index]),
                )
            successes.append(success)
        return successes


def is_success(task: TaskConfig, last_reward: float, last_report: int, best_report: int) -> bool:
    """Return True if an episode succeeded by the rule of its task.

    Args:
        task: the task of the episode.
        last_reward: reward of the last timestep.
        last_report: success in the info of the last timestep: 1, 0 or ``NOT_REPORTED``.
        best_report: highest success in the infos of all timesteps.

    Raises:
        ConfigError: if the rule needs a report and there is none.
    """
    match task.success:
        case "reward":
            return last_reward > 0
        case "auto":
            if last_report == NOT_REPORTED:
                return last_reward > 0
            return last_report == 1
        case "info":
            return _require_report(task, last_report, "the last info")
        case "any_step":
            return _require_report(task, best_report, "every info")
        case _:
            assert_never(task.success)


def _require_report(task: TaskConfig, report: int, infos: str) -> bool:
    if report == NOT_REPORTED:
        raise ConfigError(
            f"task '{task.name}' has success={task.success}, but {infos} of {task.env_id} has "
            "neither 'is_success' nor 'success'; use success=reward"
        )
    return report == 1
