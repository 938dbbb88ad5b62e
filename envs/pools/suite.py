"""The pools of a suite's tasks as one: between two episodes, a slot can go from one task to another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirl.envs.actions import with_action_mask
from mirl.envs.pools.backend import (
    Backend,
    EnvIndices,
    Observations,
    Step,
    join_observations,
    join_steps,
    scatter,
)


class SuiteBackend:
    """Steps n slots, each in the pool of the task that it plays, all pools at the same time.

    Args:
        pools: by task.
        first_env_indices: by task, the slot which is number 0 in the task's pool.
        n: number of slots.
        n_actions: of each task of the suite, if these differ; observations then gain ``action_mask``.
    """

    def __init__(
        self,
        pools: Mapping[int, Backend],
        first_env_indices: Mapping[int, int],
        n: int,
        n_actions: NDArray[np.int64] | None = None,
    ) -> None:
        self._pools = dict(pools)
        self._first_env_indices = dict(first_env_indices)
        self._n_actions = n_actions
        self._tasks = np.full(n, -1, dtype=np.int64)
        self._inactive = np.zeros(n, dtype=np.bool_)
        self._plan = _Plan(self._tasks)

    def seed(self, seeds: Mapping[int, Sequence[int]]) -> None:
        """Restart the random streams: by task, a seed for each slot of its pool. A reset of all slots must follow."""
        for task, pool in self._pools.items():
            pool.seed(seeds[task])

    def reset(self, slots: EnvIndices, tasks: NDArray[np.int64]) -> Observations:
        """Start an episode of tasks (k,) in slots (k,); its first observations (k, …)."""
        plan = _Plan(tasks)
        for task, rows in plan.groups:
            self._pools[task].send_reset(slots[rows] - self._first_env_indices[task])
        parts = [self._masked(self._pools[task].recv_reset(), task) for task, _ in plan.groups]
        if self._inactive[slots].any() or not np.array_equal(self._tasks[slots], tasks):
            self._tasks[slots], self._inactive[slots] = tasks, False
            self._plan = _Plan(self._tasks, self._inactive)
        return plan.put_back(join_observations(parts))

    def deactivate(self, slots: EnvIndices) -> None:
        """Step slots (k,) no more until their next reset: their rows are zeros."""
        self._inactive[slots] = True
        self._plan = _Plan(self._tasks, self._inactive)

    @property
    def all_inactive(self) -> bool:
        """Whether there is nothing to step."""
        return bool(self._inactive.all())

    def send(self, actions: NDArray[Any]) -> None:
        """Start a timestep of all slots that do not rest, of which there is one, with valid actions (n, …)."""
        for task, rows in self._plan.groups:
            self._pools[task].send(rows - self._first_env_indices[task], actions[rows])

    def recv(self) -> Step:
        """Finish it."""
        steps = [self._masked_step(self._pools[task].recv(), task) for task, _ in self._plan.groups]
        return self._plan.put_back_step(join_steps(steps))

    def close(self) -> None:
        """Give back processes and threads; a second call does nothing."""
        for pool in self._pools.values():
            pool.close()

    def _masked(self, obs: Observations, task: int) -> Observations:
        if self._n_actions is None:
            return obs
        return with_action_mask(obs, int(self._n_actions[task]), int(self._n_actions.max()))

    def _masked_step(self, step: Step, task: int) -> Step:
        return replace(step, obs=self._masked(step.obs, task))


class _Plan:
    """Which rows go to which task, and how to put back in order what comes task by task."""

    def __init__(self, tasks: NDArray[np.int64], left_out: NDArray[np.bool_] | None = None) -> None:
        order = np.argsort(tasks, kind="stable")
        self._n, self._order = len(tasks), order if left_out is None else order[~left_out[order]]
        ordered = tasks[self._order]
        self._is_ordered = len(ordered) == len(tasks) and bool((tasks == ordered).all())
        cuts = (np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()
        bounds = pairwise([0, *cuts, len(ordered)])
        self.groups = [
            (int(ordered[start]), self._order[start:end]) for start, end in bounds if start < end
        ]
        """Each task, and its rows, which ascend."""

    def put_back(self, joined: Observations) -> Observations:
        """Observations of all groups, one after the other, in the order of the rows; what was left out is zeros."""
        if self._is_ordered:
            return joined
        return {key: scatter(values, self._order, self._n) for key, values in joined.items()}

    def put_back_step(self, joined: Step) -> Step:
        """The same of a step."""
        return joined if self._is_ordered else joined.scattered(self._order, self._n)
