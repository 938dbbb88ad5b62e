"""Returns, lengths and success of episodes, and the infos of the episodes that ended."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mirl.configs.tasks import TaskConfig
from mirl.envs.pools.backend import Step
from mirl.envs.success import SuccessTracker
from mirl.envs.type_aliases import EnvIndices, Info


class EpisodeStatistics:
    """Returns, lengths and success reports of the running episodes.

    Args:
        tasks: the tasks of the suite.
        n_envs: number of environments.
    """

    def __init__(self, tasks: Sequence[TaskConfig], n_envs: int) -> None:
        self._tasks = tasks
        self._success = SuccessTracker(tasks, n_envs)
        self._start_time = time.perf_counter()
        self._returns = np.zeros(n_envs, dtype=np.float64)
        self.lengths: NDArray[np.int64] = np.zeros(n_envs, dtype=np.int64)
        """Timesteps of each running episode, (n_envs,)."""

    def start_episodes(self, env_indices: EnvIndices) -> None:
        """Reset the statistics of new episodes.

        Args:
            env_indices: environments whose episode starts, (k,).
        """
        self._returns[env_indices] = 0.0
        self.lengths[env_indices] = 0
        self._success.start_episodes(env_indices)

    def add_timestep(self) -> None:
        """Count one more timestep of every environment."""
        self.lengths += 1

    def update(self, step: Step) -> None:
        """Add the rewards and success reports of a timestep.

        Args:
            step: the timestep, of all n_envs environments.
        """
        self._returns += step.rewards
        self._success.update(step)

    def infos(self, step: Step, ended: EnvIndices, task_ids: NDArray[np.int64]) -> list[Info]:
        """Return the infos of a timestep.

        Args:
            step: the timestep, of all n_envs environments.
            ended: environments whose episode ended, (k,).
            task_ids: task of each environment, (n_envs,).

        Returns:
            One info per environment, n_envs of them. If an episode ended, its info also holds
            ``terminal_observation``, ``TimeLimit.truncated``, ``episode``, ``task``,
            ``is_success`` unless it is unknown, and, after a failure of the environment,
            ``failed``.

        Raises:
            ConfigError: if a success rule needs a report that the environment does not give.
        """
        successes = self._success.evaluate(step, ended, task_ids, self._returns)
        infos: list[Info] = [step.infos.get(row, {}) for row in range(len(step.rewards))]
        # (n_envs, …) -> (k, …), a copy: the first observations of the next episodes replace these.
        final_obs = {key: values[ended] for key, values in step.obs.items()}
        elapsed = round(time.perf_counter() - self._start_time, 6)
        for row, env_index in enumerate(ended.tolist()):
            # Python numbers, as SB3's Monitor returns them and JSON requires them.
            terminated = bool(step.terminated[env_index])
            truncated = bool(step.truncated[env_index])
            info: Info = {
                "terminal_observation": {key: values[row] for key, values in final_obs.items()},
                # SB3 bootstraps the value where this is True, so a termination takes precedence.
                "TimeLimit.truncated": truncated and not terminated,
                "episode": {
                    "r": float(self._returns[env_index]),
                    "l": int(self.lengths[env_index]),
                    "t": elapsed,
                },
                "task": self._tasks[task_ids[env_index]].name,
            }
            # Removed, not None: SB3 and its wrappers take the presence of the key for a report.
            infos[env_index].pop("is_success", None)
            if successes[row] is not None:
                info["is_success"] = successes[row]
            if step.failed[env_index]:
                info["failed"] = True
            infos[env_index].update(info)
        return infos
