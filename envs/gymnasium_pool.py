"""The ``gymnasium`` backend: any registered id, stepped in this process, or by a few worker processes (workers.py)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from mirl.configs.schema import TaskConfig
from mirl.envs.making import ObservationKind, make_env
from mirl.envs.pool import EnvironmentFailedError, Observations, Step


class GymnasiumPool:
    """n environments of one task, stepped one after the other in the calling process.

    ``gymnasium.vector.SyncVectorEnv`` does this too, but cannot say which environment raised and stacks all infos.
    """

    def __init__(
        self,
        task: TaskConfig,
        n: int,
        task_index: int = 0,
        n_tasks: int = 1,
        observation: ObservationKind = "grid",
    ) -> None:
        self._task = task
        self._envs = [make_env(task, task_index, n_tasks, observation) for _ in range(n)]
        self._seeds: list[int | None] = [None] * n
        self._actions: NDArray[Any] | None = None

    def reset(self, seeds: Sequence[int] | None = None) -> Observations:
        """Start an episode in each slot; with seeds, one per slot, also restart the random streams."""
        self._actions = None
        if seeds is not None:
            self._seeds = [int(seed) for seed in seeds]
        given = self._seeds if seeds is not None else [None] * len(self._envs)
        return self._stack([self._reset_slot(slot, seed) for slot, seed in enumerate(given)])

    def send(self, actions: NDArray[Any]) -> None:
        """Keep the actions (n, …) for ``recv``."""
        self._actions = actions

    def recv(self) -> Step:
        """Step each environment, and reset those whose episode ended."""
        assert self._actions is not None, "recv() follows send()"
        actions, self._actions = self._actions, None
        n = len(self._envs)
        rewards, terminated, truncated = np.zeros(n, np.float32), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        rows: list[Any] = []
        final_rows: list[Any] = []
        final_success: list[bool | None] = []
        for slot in range(n):
            row, rewards[slot], terminated[slot], truncated[slot], info = self._step_slot(slot, actions[slot])
            if terminated[slot] or truncated[slot]:
                final_rows.append(row)
                final_success.append(_reported_success(info))
                row = self._reset_slot(slot)
            rows.append(row)
        return Step(self._stack(rows), rewards, terminated, truncated, self._stack(final_rows), tuple(final_success))

    def close(self) -> None:
        """Close the environments; a second call does nothing."""
        envs, self._envs = self._envs, []
        for env in envs:
            env.close()

    def _reset_slot(self, slot: int, seed: int | None = None) -> Any:
        try:
            observation, _ = self._envs[slot].reset(seed=seed)
        except Exception as error:
            raise self._failure(slot, "reset", error) from error
        return observation

    def _step_slot(self, slot: int, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            return self._envs[slot].step(action)
        except Exception as error:
            raise self._failure(slot, "step", error) from error

    def _failure(self, slot: int, method: str, error: Exception) -> EnvironmentFailedError:
        return EnvironmentFailedError(
            f"task '{self._task.name}' ({self._task.env_id}, seed {self._seeds[slot]}) failed in {method}(): "
            f"{type(error).__name__}: {error}"
        )

    def _stack(self, rows: Sequence[Any]) -> Observations:
        # (…) per slot -> (n, …); with no rows, empty arrays of the right dtype
        space: gym.Space[Any] = self._envs[0].observation_space
        out: Any = create_empty_array(space, n=len(rows), fn=np.zeros)
        return cast(Observations, concatenate(space, rows, out) if rows else out)


def _reported_success(info: Mapping[str, Any]) -> bool | None:
    success = info.get("is_success", info.get("success"))  # gymnasium-robotics' name, Meta-World's name
    return None if success is None else bool(success)
