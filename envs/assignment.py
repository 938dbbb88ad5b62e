"""Assignment of environments to tasks: fixed, or sampled anew for every episode."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mirl.configs.aliases import RENAMED_VALUES
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import SamplingName
from mirl.configs.tasks import SuiteConfig
from mirl.envs.sampling import SamplingState, TaskSampler
from mirl.envs.seeds import SeedSplit, env_seeds
from mirl.envs.success import NO_REPORT
from mirl.envs.type_aliases import EnvIndices


class TaskAssignment:
    """Assignment of each environment to the task of its running episode.

    With ``sampling="fixed"`` the environments are split evenly over the active tasks, and those of
    one task are contiguous. Otherwise each episode's task is sampled, and the backend of each task
    has to hold n_envs environments.

    Args:
        suite: the tasks.
        active_tasks: indices of the tasks that are played.
        n_envs: number of environments, at least one per active task.
        sampling: ``fixed``, or a strategy of ``TaskSampler``.
        seed: seed of the sampler.

    Raises:
        ConfigError: if an argument is unknown or out of range.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        active_tasks: Sequence[int],
        n_envs: int,
        sampling: SamplingName,
        seed: int,
    ) -> None:
        if sampling not in get_args(SamplingName):
            raise ConfigError(
                f"unknown sampling '{sampling}'." + nearest(sampling, get_args(SamplingName))
            )
        if seed < 0:
            raise ConfigError(f"seed must be at least 0, got {seed}")
        if n_envs < len(active_tasks):
            raise ConfigError(
                f"n_envs must be at least one per task of suite '{suite.name}', "
                f"{len(active_tasks)}, got {n_envs}"
            )
        self._active_tasks = list(active_tasks)
        self._task_names = [task.name for task in suite.tasks]
        self._n_envs = n_envs
        # The first shares are larger by one if the division leaves a remainder.
        shares = np.array_split(np.arange(n_envs), len(active_tasks))
        share_sizes = [len(share) for share in shares]
        self.task_ids: NDArray[np.int64] = np.repeat(self._active_tasks, share_sizes)
        """Task of each environment, (n_envs,); changed in place when an episode starts."""
        self.backend_sizes: dict[int, int] = {}
        """Number of environments that the backend of each task has to hold."""
        self.first_env_indices: dict[int, int] = {}
        """For each task, the environment that has index 0 in the task's backend."""
        self._sampler: TaskSampler | None = None
        if sampling != "fixed":
            self._sampler = TaskSampler(sampling, active_tasks, seed)
        for task_index, share in zip(active_tasks, shares, strict=True):
            if self._sampler is None:
                self.backend_sizes[task_index] = len(share)
                self.first_env_indices[task_index] = int(share[0])
            else:
                # All environments may play the same task at once.
                self.backend_sizes[task_index] = n_envs
                self.first_env_indices[task_index] = 0

    def seed_sampler(self, seed: int) -> None:
        """Restart the random stream of the sampler, if there is one.

        Args:
            seed: the new seed.
        """
        if self._sampler is not None:
            self._sampler.seed(seed)

    def backend_seeds(self, seed: int, seed_split: SeedSplit) -> dict[int, list[int]]:
        """Return the seeds of the environments of each task's backend.

        Args:
            seed: seed from which they are derived.
            seed_split: split whose range they come from.
        """
        seeds = {}
        for task_index, size in self.backend_sizes.items():
            seeds[task_index] = env_seeds(seed, seed_split, task_index, size)
        return seeds

    def current_seeds(self, backend_seeds: Mapping[int, Sequence[int]]) -> list[int]:
        """Return the seed of each environment in the task that it plays now.

        Args:
            backend_seeds: the seeds of each task's backend.

        Returns:
            n_envs seeds.
        """
        seeds = []
        for env_index, task_index in enumerate(self.task_ids.tolist()):
            # Environments of one task are contiguous, so a backend's index is an offset.
            backend_index = env_index - self.first_env_indices[task_index]
            seeds.append(backend_seeds[task_index][backend_index])
        return seeds

    def start_episodes(self, env_indices: EnvIndices) -> NDArray[np.int64]:
        """Sample the tasks of new episodes, unless the assignment is fixed.

        Args:
            env_indices: environments whose episode starts, (k,).

        Returns:
            Their tasks, (k,).
        """
        # In place, because other parts hold a reference to the array.
        if self._sampler is not None:
            self.task_ids[env_indices] = self._sampler.draw(len(env_indices))
        return self.task_ids[env_indices]

    def record(self, ended: EnvIndices, successes: Sequence[bool | None]) -> None:
        """Update the success rates of the sampler.

        Args:
            ended: environments whose episode ended, (k,).
            successes: success of each of these k episodes; None where it is unknown.

        Raises:
            ConfigError: if the sampling depends on a success that is unknown.
        """
        if self._sampler is None:
            return
        for env_index, success in zip(ended.tolist(), successes, strict=True):
            task_index = int(self.task_ids[env_index])
            if success is not None:
                self._sampler.record(task_index, success)
            elif self._sampler.needs_success:
                raise ConfigError(
                    f"sampling={self._sampler.strategy} needs the success of every episode, and "
                    f"task '{self._task_names[task_index]}' reports none ({NO_REPORT}); use "
                    "sampling=fixed or sampling=uniform, or set 'success=return>=X' with a number X"
                )

    @property
    def depends_on_success(self) -> bool:
        """True if the tasks of the next episodes depend on the success of earlier ones."""
        return self._sampler is not None and self._sampler.needs_success

    def record_elsewhere(self, task: str, success: bool) -> None:
        """Update the success rates of the sampler with an episode that ran in another process.

        Args:
            task: name of its task.
            success: whether it succeeded.
        """
        assert self._sampler is not None
        self._sampler.record(self._task_names.index(task), success)

    @property
    def task_probabilities(self) -> NDArray[np.float64]:
        """Probability of drawing each task for the next episode, (n_tasks,).

        With a fixed assignment, the share of the environments that play the task.
        """
        if self._sampler is None:
            return np.bincount(self.task_ids, minlength=len(self._task_names)) / self._n_envs
        probabilities = np.zeros(len(self._task_names))
        probabilities[self._active_tasks] = self._sampler.probabilities
        return probabilities

    def state(self) -> SamplingState:
        """Return the state that determines the next tasks, as JSON data."""
        if self._sampler is None:
            return {"sampling": "fixed"}
        return self._sampler.state()

    def load_state(self, state: SamplingState) -> None:
        """Restore a state that ``state()`` returned.

        Args:
            state: the state of an assignment with the same tasks and sampling.

        Raises:
            ConfigError: if the state does not fit; the assignment is then unchanged.
        """
        name = state.get("sampling")
        # Checkpoints written before 0.2 use the old names.
        if isinstance(name, str):
            name = RENAMED_VALUES["sampling"].get(name, name)
        if self._sampler is not None:
            self._sampler.load({**state, "sampling": name})
        elif name != "fixed":
            raise ConfigError(
                f"the sampling state must have sampling=fixed, got {name}; continue with the "
                "sampling of the checkpoint"
            )
