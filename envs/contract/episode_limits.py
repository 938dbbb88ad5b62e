"""Limits on the length of episodes: those of the environments, and those set by an evaluation."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from mirl.configs.tasks import TaskConfig
from mirl.envs.contract.descriptions import name_task
from mirl.envs.pools.backend import RowMask, Step
from mirl.envs.type_aliases import AnyEnv

DEFAULT_LIMIT = 1_000
"""Timesteps of an evaluated episode after which it is truncated, if its environment has no limit.

Without one, an evaluation of an environment that never ends would never end either.
"""
NO_LIMIT = np.iinfo(np.int64).max
"""Limit that no episode reaches."""

MaxSteps = int | Literal["auto"] | None
"""Timesteps after which an episode is truncated; "auto" for ``DEFAULT_LIMIT`` if the environment
has no limit of its own, None for no limit."""


def episode_limit(env: AnyEnv) -> int | None:
    """Return the number of timesteps after which an environment truncates its episodes.

    Args:
        env: the environment.

    Returns:
        The limit of ``gym.make`` or of MiniGrid; None if there is none, or none is known.
    """
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return int(env.spec.max_episode_steps)
    if isinstance(env.unwrapped, MiniGridEnv):
        return int(env.unwrapped.max_steps)
    return None


class EpisodeLimits:
    """Truncation of the episodes that reach a limit.

    Args:
        tasks: the tasks of the suite.
        known_limits: limit of each task's environments; None if none is known.
        max_steps: limit of every task's episodes, see ``MaxSteps``.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        known_limits: Sequence[int | None],
        max_steps: MaxSteps,
    ) -> None:
        self._tasks = tasks
        self._warns = max_steps == "auto"
        self._warned: set[int] = set()
        self._limits = np.full(len(tasks), NO_LIMIT, dtype=np.int64)
        for task_index, known in enumerate(known_limits):
            if isinstance(max_steps, int):
                self._limits[task_index] = max_steps
            elif max_steps == "auto" and known is None:
                self._limits[task_index] = DEFAULT_LIMIT

    def truncate(
        self,
        step: Step,
        task_ids: NDArray[np.int64],
        timesteps: NDArray[np.int64],
        inactive: RowMask,
    ) -> None:
        """Truncate the episodes that have reached their limit.

        Args:
            step: the timestep of all environments; its arrays are changed in place.
            task_ids: task of each environment, (n_envs,).
            timesteps: timesteps of each environment's running episode, (n_envs,).
            inactive: True where no episode is running, (n_envs,).
        """
        is_over = (timesteps >= self._limits[task_ids]) & ~step.done & ~inactive
        if not is_over.any():
            return
        step.truncated[is_over] = True
        if self._warns:
            self._warn(task_ids[is_over])

    def _warn(self, task_ids: NDArray[np.int64]) -> None:
        """Warn once about each task whose episodes do not end on their own."""
        for task_index in np.unique(task_ids).tolist():
            if task_index in self._warned:
                continue
            self._warned.add(task_index)
            task = self._tasks[task_index]
            warnings.warn(
                f"{name_task(task)}: an evaluated episode did not end within "
                f"{DEFAULT_LIMIT:,} timesteps and was truncated, because the environment has no "
                "time limit; set evaluation.max_steps=… (in eval.py, max_steps=…), or give the "
                "environment a limit by task.kwargs.max_episode_steps=…",
                RuntimeWarning,
                stacklevel=2,
            )
