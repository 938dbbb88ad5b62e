"""One backend for a whole suite, made of the backends of its tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mirl.envs.actions import with_action_mask
from mirl.envs.pools.backend import (
    Backend,
    RowMask,
    Step,
    join_observations,
    join_steps,
    scatter_rows,
)
from mirl.envs.pools.workers import Workers
from mirl.envs.type_aliases import Array, EnvIndices, Info, Observations

NO_TASK = -1
"""Task of an environment before its first reset."""


class SuiteBackend:
    """Backend of n environments, each of which is stepped by the backend of its task.

    All backends work at the same time. Between two episodes, an environment can change its task.

    Args:
        backends: the backend of each task, by the index of the task.
        first_env_indices: for each task, the environment that has index 0 in the task's backend.
        n: number of environments.
        n_actions: number of actions of each task, (n_tasks,), if they differ; observations then
            gain ``action_mask``.
        workers: worker processes of the backends, closed with them; None if there are none.
    """

    def __init__(
        self,
        backends: Mapping[int, Backend],
        first_env_indices: Mapping[int, int],
        n: int,
        n_actions: NDArray[np.int64] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._backends = dict(backends)
        self._workers = workers
        self._first_env_indices = dict(first_env_indices)
        self._n_actions = n_actions
        self._task_ids = np.full(n, NO_TASK, dtype=np.int64)
        self._inactive = np.zeros(n, dtype=np.bool_)
        self._groups = _TaskGroups(self._task_ids)
        self.reset_infos: list[Info] = [{} for _ in range(n)]
        """Info of the last reset of each environment."""

    def seed(self, seeds: Mapping[int, Sequence[int]]) -> None:
        """Restart the random streams; a reset of all environments has to follow.

        Args:
            seeds: for each task, one seed per environment of its backend.
        """
        for task_index, backend in self._backends.items():
            backend.seed(seeds[task_index])

    def reset(
        self,
        env_indices: EnvIndices,
        task_ids: NDArray[np.int64],
        options: Sequence[Info] | None = None,
    ) -> Observations:
        """Start an episode in each of the given environments.

        Args:
            env_indices: the environments, (k,).
            task_ids: task of each of them, (k,).
            options: the options of each reset, k of them; None for no options.

        Returns:
            The first observations, (k, …).
        """
        groups = _TaskGroups(task_ids)
        # All backends start before the first is waited for, so that they work at the same time.
        for task_index, rows in groups.rows_by_task:
            backend_indices = env_indices[rows] - self._first_env_indices[task_index]
            own_options = None
            if options is not None:
                own_options = [options[row] for row in rows.tolist()]
            self._backends[task_index].send_reset(backend_indices, own_options)
        batches = []
        for task_index, rows in groups.rows_by_task:
            backend = self._backends[task_index]
            obs = backend.recv_reset()
            batches.append(self._add_action_mask(obs, task_index))
            for row, env_index in enumerate(env_indices[rows].tolist()):
                self.reset_infos[env_index] = backend.reset_infos.get(row, {})
        # The groups for stepping change only if an environment changes its task or becomes active.
        any_inactive = self._inactive[env_indices].any()
        if any_inactive or not np.array_equal(self._task_ids[env_indices], task_ids):
            self._task_ids[env_indices] = task_ids
            self._inactive[env_indices] = False
            self._groups = _TaskGroups(self._task_ids, self._inactive)
        return groups.restore_order(join_observations(batches))

    def deactivate(self, env_indices: EnvIndices) -> None:
        """Stop stepping environments until their next reset; their rows are zeros.

        Args:
            env_indices: the environments, (k,).
        """
        self._inactive[env_indices] = True
        self._groups = _TaskGroups(self._task_ids, self._inactive)

    @property
    def all_inactive(self) -> bool:
        """True if every environment is inactive."""
        return bool(self._inactive.all())

    @property
    def inactive(self) -> RowMask:
        """True for each environment that is not stepped, (n,)."""
        return self._inactive

    def send(self, actions: Array) -> None:
        """Start a timestep of all active environments, of which there is at least one.

        Args:
            actions: one valid action per environment, (n, …).
        """
        for task_index, rows in self._groups.rows_by_task:
            backend_indices = rows - self._first_env_indices[task_index]
            self._backends[task_index].send(backend_indices, actions[rows])  # (n, …) -> (k, …)

    def recv(self) -> Step:
        """Finish the timestep and return it."""
        steps = []
        # In the order of send(), as backends that share workers require.
        for task_index, _ in self._groups.rows_by_task:
            step = self._backends[task_index].recv()
            steps.append(replace(step, obs=self._add_action_mask(step.obs, task_index)))
        return self._groups.restore_step_order(join_steps(steps))

    def close(self) -> None:
        """End processes and threads; a second call does nothing."""
        for backend in self._backends.values():
            backend.close()
        # The workers belong to the suite, not to any one backend.
        if self._workers is not None:
            self._workers.close()

    def _add_action_mask(self, obs: Observations, task_index: int) -> Observations:
        """Return the observations of a task, with an action mask if the tasks need one."""
        if self._n_actions is None:
            return obs
        n_actions = int(self._n_actions[task_index])
        return with_action_mask(obs, n_actions, int(self._n_actions.max()))


class _TaskGroups:
    """Rows grouped by task, and the way back to their original order.

    Args:
        task_ids: task of each row, (n,).
        excluded: True for each row that belongs to no group, (n,); None if every row has one.
    """

    def __init__(self, task_ids: NDArray[np.int64], excluded: RowMask | None = None) -> None:
        self._n = len(task_ids)
        # A stable sort keeps the rows of each task in ascending order.
        order = np.argsort(task_ids, kind="stable")
        if excluded is not None:
            order = order[~excluded[order]]
        self._order: EnvIndices = order
        sorted_ids = task_ids[order]
        is_complete = len(sorted_ids) == self._n
        self._is_in_order = is_complete and bool((task_ids == sorted_ids).all())
        # A group starts wherever the task changes.
        starts = np.flatnonzero(sorted_ids[1:] != sorted_ids[:-1]) + 1
        bounds = [0, *starts.tolist(), len(sorted_ids)]
        self.rows_by_task: list[tuple[int, EnvIndices]] = []
        """Each task and its rows in ascending order."""
        for start, end in pairwise(bounds):
            if start < end:
                self.rows_by_task.append((int(sorted_ids[start]), order[start:end]))

    def restore_order(self, joined: Observations) -> Observations:
        """Return the observations of all groups in the order of the rows.

        Args:
            joined: the observations, group after group.

        Returns:
            Observations, (n, …); excluded rows are zeros.
        """
        if self._is_in_order:
            return joined
        restored = {}
        # (rows in order of their task, …) -> (n, …)
        for key, values in joined.items():
            restored[key] = scatter_rows(values, self._order, self._n)
        return restored

    def restore_step_order(self, joined: Step) -> Step:
        """Return the timestep of all groups in the order of the rows.

        Args:
            joined: the timestep, group after group.
        """
        if self._is_in_order:
            return joined
        return joined.scatter(self._order, self._n)
