"""The interface of the backends, each of which steps the environments of one task."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import PlainWarning, RunError
from mirl.envs.type_aliases import Array, EnvIndices, Info, Observations

NOT_REPORTED = -1
"""Success of a timestep whose info says nothing about it; otherwise it is 0 or 1."""

RowMask = NDArray[np.bool_]
"""Boolean mask of rows, (n,)."""


class EnvironmentFailedError(RunError):
    """Failure of an environment that raised, or of the worker process that stepped it.

    Args:
        message: the failure, with task, id and seed.
        env_index: index of the environment within its backend; -1 if it is unknown.

    Examples:
        >>> from mirl.envs import EnvironmentFailedError
        >>> try:
        ...     raise EnvironmentFailedError("goto_door: the environment raised", env_index=3)
        ... except EnvironmentFailedError as failure:
        ...     print(failure.env_index, failure)
        3 goto_door: the environment raised
    """

    def __init__(self, message: str, env_index: int = -1) -> None:
        super().__init__(message)
        self.env_index = env_index


class RestartWarning(PlainWarning, RuntimeWarning):
    """An environment failed and is restarted."""


class Restarts:
    """Counter of the tolerated failures, which warns about each of them.

    Args:
        max_restarts: number of tolerated failures; the next one is raised.
    """

    def __init__(self, max_restarts: int = 0) -> None:
        self.max_restarts = max_restarts
        self._n_used = 0

    def count(self, failure: EnvironmentFailedError) -> None:
        """Count a failure and warn about it.

        Args:
            failure: the failure.

        Raises:
            EnvironmentFailedError: if all restarts are used up.
        """
        if self.max_restarts == 0:
            raise failure
        if self._n_used == self.max_restarts:
            message = (
                f"{failure}. It was not restarted, because all {self.max_restarts} restarts are "
                "used up; correct the environment, or allow more by a larger max_restarts"
            )
            raise EnvironmentFailedError(message, failure.env_index) from failure.__cause__
        self._n_used += 1
        warnings.warn(
            f"{failure}. Its episode is truncated and the environment is restarted: restart "
            f"{self._n_used} of {self.max_restarts}",
            RestartWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class Step:
    """One timestep of k environments. Those whose episode ended wait for their reset.

    Args:
        obs: observations, (k, …); the last one if the episode ended. The caller owns the arrays.
        rewards: rewards, (k,).
        terminated: True where the episode terminated, (k,).
        truncated: True where the episode was truncated, (k,); also where it terminated on its
            last allowed timestep.
        success: success in the infos, (k,): 1, 0 or ``NOT_REPORTED``.
        failed: True where the environment failed, (k,); the rest of its row is zeros.
        infos: the infos of the environments, by row; those that are empty are left out.
    """

    obs: Observations
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.int8]
    failed: NDArray[np.bool_]
    infos: dict[int, Info] = field(default_factory=dict)

    @property
    def done(self) -> NDArray[np.bool_]:
        """True where the episode ended, (k,)."""
        return self.terminated | self.truncated

    def scatter(self, rows: EnvIndices | RowMask, n: int) -> "Step":
        """Return a step of n environments, with the rows of this step placed at the given rows.

        Args:
            rows: the rows, as k indices or as a mask (n,).
            n: number of rows; the others are zeros.
        """
        step = map_step(lambda values: scatter_rows(values, rows, n), self)
        if not self.infos:
            return step
        row_indices = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        infos = {int(row_indices[row]): info for row, info in self.infos.items()}
        return replace(step, infos=infos)


class Backend(Protocol):
    """Backend of the environments of one task, all or some of which are stepped.

    Each ``send`` is followed by its ``recv``; calls of other backends may come in between.
    Indices of environments count from 0 within the backend.
    """

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams; every environment has to be reset before its next timestep.

        Args:
            seeds: one seed per environment.
        """

    reset_infos: dict[int, Info]
    """The infos of the last ``recv_reset``, by row; those that are empty are left out."""

    def send_reset(self, env_indices: EnvIndices, options: Sequence[Info] | None = None) -> None:
        """Start an episode; ``seed`` has to be called before the first reset.

        Args:
            env_indices: the environments, (k,).
            options: the options of each reset, k of them; None for no options.
        """

    def recv_reset(self) -> Observations:
        """Return the first observations of these episodes, (k, …)."""

    def send(self, env_indices: EnvIndices, actions: Array) -> None:
        """Start a timestep.

        Args:
            env_indices: the environments, (k,).
            actions: their valid actions, (k, …).
        """

    def recv(self) -> Step:
        """Finish the timestep and return it."""

    def close(self) -> None:
        """End processes and threads; a second call does nothing."""


def join_observations(batches: Sequence[Observations]) -> Observations:
    """Return the observations of several groups of environments as one batch.

    Args:
        batches: observations, (k_i, …) each.
    """
    if len(batches) == 1:
        return batches[0]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def join_steps(steps: Sequence[Step]) -> Step:
    """Return the timestep of several groups of environments as one.

    Args:
        steps: timesteps of k_i environments each.
    """
    if len(steps) == 1:
        return steps[0]
    joined = map_step(lambda *arrays: np.concatenate(arrays), *steps)
    first_row = 0
    for step in steps:
        for row, info in step.infos.items():
            joined.infos[first_row + row] = info
        first_row += len(step.rewards)
    return joined


def map_step(function: Callable[..., Array], *steps: Step) -> Step:
    """Apply a function to each array of other steps, and return the results without infos.

    Args:
        function: takes one array per step.
        *steps: the steps.
    """
    obs = {}
    for key in steps[0].obs:
        obs[key] = function(*(step.obs[key] for step in steps))
    arrays: dict[str, Any] = {}
    for name in _ARRAY_FIELDS:
        arrays[name] = function(*(getattr(step, name) for step in steps))
    return Step(obs=obs, **arrays)


def scatter_rows(values: Array, rows: EnvIndices | RowMask, n: int) -> Array:
    """Return n rows of which some are given and the others are zeros.

    Args:
        values: the given rows, (k, …).
        rows: where they go, as k indices or as a mask (n,).
        n: number of rows.

    Returns:
        The rows, (n, …).
    """
    # (k, …) -> (n, …)
    out = np.zeros((n, *values.shape[1:]), values.dtype)
    out[rows] = values
    return out


_ARRAY_FIELDS = tuple(each.name for each in fields(Step) if each.name not in ("obs", "infos"))
