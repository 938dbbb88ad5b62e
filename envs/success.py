"""Success of episodes, decided by the rule of their task; it is reported, never guessed."""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.imports import import_object
from mirl.configs.tasks import TaskConfig, return_threshold
from mirl.envs.make import defining_module, find_spec
from mirl.envs.pools.backend import NOT_REPORTED, Step
from mirl.envs.type_aliases import EnvIndices

RETURN_TOLERANCE = 1e-6
"""Relative tolerance of the threshold of a return, because rewards are rounded to float32."""
NO_REPORT = "no 'is_success' or 'success' in the last info of an episode"
"""Reason why the success of an episode is unknown."""
_REWARD_KEEPERS = (
    gym.Wrapper.step,
    gym.ObservationWrapper.step,
    gym.ActionWrapper.step,
    TimeLimit.step,
)
"""Methods ``step`` of wrappers that return the reward of the environment unchanged."""


class SuccessTracker:
    """Success reports of the running episodes.

    Args:
        tasks: the tasks of the suite, each with its success rule.
        n_envs: number of environments.
    """

    def __init__(self, tasks: Sequence[TaskConfig], n_envs: int) -> None:
        self._tasks = tasks
        self._has_minigrid_reward = [pays_as_minigrid(task) for task in tasks]
        self._is_reported = [False] * len(tasks)
        """True for each task whose last infos have reported success or failure before."""
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

    def evaluate(
        self,
        step: Step,
        ended: EnvIndices,
        task_ids: NDArray[np.int64],
        returns: NDArray[np.float64],
    ) -> list[bool | None]:
        """Return the success of episodes that ended.

        Args:
            step: the last timestep, of all n_envs environments.
            ended: environments whose episode ended, (k,).
            task_ids: task of each environment, (n_envs,).
            returns: return of each environment's episode, (n_envs,).

        Returns:
            True, False or None (unknown) for each of the k episodes; False if the environment
            failed, unless its task may not report success.

        Raises:
            ConfigError: if the success rule needs a report that the environment does not give.
        """
        successes: list[bool | None] = []
        # Few episodes end in a timestep, so this loop is short.
        for env_index in ended.tolist():
            task_index = int(task_ids[env_index])
            task = self._tasks[task_index]
            last_report = int(step.success[env_index])
            if step.failed[env_index]:
                successes.append(self._success_of_failed(task_index))
                continue
            self._is_reported[task_index] |= last_report != NOT_REPORTED
            success = is_success(
                task,
                float(step.rewards[env_index]),
                float(returns[env_index]),
                last_report,
                int(self._best_reports[env_index]),
                has_minigrid_reward=self._has_minigrid_reward[task_index],
            )
            successes.append(success)
        return successes

    def _success_of_failed(self, task_index: int) -> bool | None:
        """Return False for a failed environment, or None if its task may not report success."""
        is_known = (
            self._tasks[task_index].success != "auto"
            or self._has_minigrid_reward[task_index]
            or self._is_reported[task_index]
        )
        return False if is_known else None


def is_success(
    task: TaskConfig,
    last_reward: float,
    episode_return: float,
    last_report: int,
    best_report: int,
    *,
    has_minigrid_reward: bool = False,
) -> bool | None:
    """Return True if an episode succeeded by the rule of its task.

    Args:
        task: the task of the episode.
        last_reward: reward of the last timestep.
        episode_return: undiscounted sum of the rewards.
        last_report: success in the info of the last timestep: 1, 0 or ``NOT_REPORTED``.
        best_report: highest success in the infos of all timesteps.
        has_minigrid_reward: whether the last reward is positive if and only if the episode
            succeeded.

    Returns:
        True or False; None if the success is unknown.

    Raises:
        ConfigError: if the rule needs a report and there is none.
    """
    match task.success:
        case "reward":
            return last_reward > 0
        case "auto":
            if last_report != NOT_REPORTED:
                return last_report == 1
            if has_minigrid_reward:
                return last_reward > 0
            return None
        case "info":
            return _require_report(task, last_report, "the last info")
        case "any_step":
            return _require_report(task, best_report, "every info")
        case rule:
            return _passes_threshold(rule, episode_return)


def _require_report(task: TaskConfig, report: int, infos: str) -> bool:
    if report == NOT_REPORTED:
        raise ConfigError(
            f"task '{task.name}' has success={task.success}, but {infos} of {task.env_id} has "
            "neither 'is_success' nor 'success'; use 'success=return>=X' with a number X, or "
            "success=auto"
        )
    return report == 1


def _passes_threshold(rule: str, episode_return: float) -> bool:
    threshold = return_threshold(rule)
    assert threshold is not None, "TaskConfig accepts no other rules"
    bound = threshold.bound
    # Rewards are float32: one of 0.7 would not reach 0.7, and ten of 0.1 would exceed 1.
    tolerance = RETURN_TOLERANCE * max(1.0, abs(bound))
    if threshold.is_strict:
        return episode_return > bound + tolerance
    return episode_return >= bound - tolerance


def pays_as_minigrid(task: TaskConfig) -> bool:
    """Return True if a task rewards success as MiniGrid and BabyAI do.

    Their infos report no success, but an episode of their own environments succeeded if and only
    if its last reward is positive. Subclasses, and wrappers that change a timestep, may reward
    otherwise.

    Args:
        task: the task.
    """
    try:
        module = defining_module(find_spec(task))
        wrappers = [import_object(wrapper.wrapper, "") for wrapper in task.wrappers]
    except ConfigError:  # making the environment raises a better error
        return False
    keeps_rewards = all(getattr(wrapper, "step", None) in _REWARD_KEEPERS for wrapper in wrappers)
    return module.partition(".")[0] == "minigrid" and keeps_rewards
