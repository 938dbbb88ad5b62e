"""Faults of environments: non-finite values, and episodes truncated because of a failure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import TaskConfig
from mirl.envs.pools.backend import EnvironmentFailedError, Restarts, Step
from mirl.envs.pools.workers import DEFAULT_TIMEOUT
from mirl.envs.type_aliases import Array, EnvIndices, Observations


@dataclass(frozen=True)
class FaultPolicy:
    """Limits within which faults of environments are tolerated.

    Args:
        max_restarts: number of failures that are tolerated by restarting the environments; the
            next one is raised.
        timeout: seconds without a reply after which a worker process counts as hung.
        restart_non_finite: whether non-finite observations and rewards count as failures that
            lead to a restart; otherwise they raise an error.

    Raises:
        ConfigError: if a number is out of range.
    """

    max_restarts: int = 0
    timeout: float = DEFAULT_TIMEOUT
    restart_non_finite: bool = False

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ConfigError(f"max_restarts must be at least 0, got {self.max_restarts}")
        if self.timeout <= 0:
            raise ConfigError(f"timeout must be more than 0 seconds, got {self.timeout}")


class FaultHandler:
    """Check for non-finite values, and truncation of the episodes of failed environments.

    Args:
        tasks: the tasks of the suite.
        policy: limits within which faults are tolerated.
    """

    def __init__(self, tasks: Sequence[TaskConfig], policy: FaultPolicy) -> None:
        self._tasks = tasks
        self._restart_non_finite = policy.restart_non_finite
        self.restarts = Restarts(policy.max_restarts)
        """Counter of the tolerated failures, shared with the backends."""
        self._last_obs: Observations = {}

    def check_step(
        self, step: Step, task_ids: NDArray[np.int64], timesteps: NDArray[np.int64]
    ) -> None:
        """Mark environments with non-finite values as failed, and truncate all failed episodes.

        Args:
            step: the timestep of all environments; its arrays are changed in place.
            task_ids: task of each environment, (n_envs,).
            timesteps: timestep of each environment's running episode, (n_envs,).

        Raises:
            EnvironmentFailedError: as in ``find_non_finite``.
        """
        env_indices = np.arange(len(task_ids))  # a step has a row for every environment
        is_bad = self.find_non_finite(step.obs, env_indices, task_ids, timesteps, step.rewards)
        step.failed[is_bad] = True
        if step.failed.any():
            self._truncate_failed(step)

    def find_non_finite(
        self,
        obs: Observations,
        env_indices: EnvIndices,
        task_ids: NDArray[np.int64],
        timesteps: NDArray[np.int64] | None = None,
        rewards: NDArray[np.float32] | None = None,
    ) -> NDArray[np.bool_]:
        """Raise on non-finite observations or rewards, or count them as failures.

        Args:
            obs: observations, (k, …).
            env_indices: the environments that the rows belong to, (k,).
            task_ids: task of each of them, (k,).
            timesteps: timestep of the running episode of each of them, (k,); None after a reset.
            rewards: rewards, (k,); None after a reset.

        Returns:
            True for each row with a non-finite value, (k,).

        Raises:
            EnvironmentFailedError: if non-finite values lead to no restart, or all restarts are
                used up.
        """
        named_arrays: list[tuple[str, Array]] = []
        if rewards is not None:
            named_arrays.append(("reward", rewards))
        for key, values in obs.items():
            named_arrays.append((f"observation '{key}'", values))
        is_bad = np.zeros(len(env_indices), dtype=np.bool_)
        for name, values in named_arrays:
            # One check of the whole array first: almost always everything is finite.
            if values.dtype.kind != "f" or np.isfinite(values).all():
                continue
            # (k, …) -> the distinct rows with a non-finite entry
            bad_rows = np.unique(np.argwhere(~np.isfinite(values))[:, 0])
            for row in bad_rows.tolist():
                task = self._tasks[task_ids[row]]
                timestep = 0 if timesteps is None else timesteps[row]
                failure = EnvironmentFailedError(
                    f"task '{task.name}' ({task.env_id}, environment {env_indices[row]}) gave a "
                    f"non-finite {name} in timestep {timestep} of its episode"
                )
                if not self._restart_non_finite:
                    raise failure
                # A row with several non-finite arrays is one failure.
                if not is_bad[row]:
                    self.restarts.count(failure)
                is_bad[row] = True
        return is_bad

    def store_last_obs(self, obs: Observations) -> None:
        """Store the observations at which an episode is truncated if its environment fails next.

        Args:
            obs: the observations of all environments, (n_envs, …).
        """
        # A copy, because the caller owns the arrays; none is needed if failures are raised.
        if self.restarts.max_restarts:
            self._last_obs = {key: values.copy() for key, values in obs.items()}

    def _truncate_failed(self, step: Step) -> None:
        """Truncate the episodes of failed environments at their last valid observation."""
        failed = step.failed
        for key, values in step.obs.items():
            values[failed] = self._last_obs[key][failed]
        step.rewards[failed] = 0.0
        # Truncated, not terminated: the value of the last state is bootstrapped, not set to 0.
        step.terminated[failed] = False
        step.truncated[failed] = True


@contextmanager
def close_on_error(close: Callable[[], None]) -> Iterator[None]:
    """Close the environments if the block raises.

    After a failure in one backend the others still hold replies that were not received, so every
    later step would be wrong.

    Args:
        close: function that closes all environments.
    """
    try:
        yield
    except BaseException:  # also Ctrl+C
        close()
        raise
