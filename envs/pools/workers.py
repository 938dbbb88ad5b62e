"""The ``gymnasium`` backend in worker processes, each of which steps a shard of environments."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from joblib import cpu_count
from numpy.typing import NDArray

from mirl.configs.tasks import TaskConfig
from mirl.envs.contract.codes import (
    Tables,
    UnknownCodes,
    add_to_minigrid_tables,
    minigrid_tables,
)
from mirl.envs.make import ObservationKind, find_spec
from mirl.envs.pools.backend import (
    EnvironmentFailedError,
    Restarts,
    Step,
    join_observations,
    join_steps,
)
from mirl.envs.pools.gymnasium import GymnasiumBackend
from mirl.envs.pools.worker_process import (
    Command,
    FirstObservations,
    Worker,
    WorkerLostError,
    WorkerTimeoutError,
)
from mirl.envs.seeds import replacement_seed
from mirl.envs.texts.codec import TextCodec, TextWarning, warn_once
from mirl.envs.type_aliases import Array, EnvIndices, Info, Observations

MAX_SEEDS_IN_MESSAGE = 3
"""Maximum number of seeds named in a message if any of several environments may be the cause."""
DEFAULT_TIMEOUT = 300.0
"""Seconds without a reply after which a worker process counts as hung, by default."""


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, or its share of them in a comparison."""
    return int(cpu_count())


class Workers:
    """Worker processes that the backends of all tasks share.

    A suite of fifty tasks does not need fifty processes.

    Args:
        n_workers: number of processes.
        restarts: counter of the tolerated failures; by default no failure is tolerated.
        timeout: seconds without a reply after which a process counts as hung.
    """

    def __init__(
        self,
        n_workers: int,
        restarts: Restarts | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.restarts = restarts or Restarts()
        max_restarts = self.restarts.max_restarts
        self._workers = [Worker(max_restarts, timeout) for _ in range(n_workers)]
        self._next = 0

    def __len__(self) -> int:
        """Return the number of processes."""
        return len(self._workers)

    def assign(self, n: int) -> list[Worker]:
        """Return the next workers in round-robin order, so that all are assigned equally often.

        Args:
            n: number of workers.
        """
        assigned = [self._workers[(self._next + i) % len(self)] for i in range(n)]
        self._next = (self._next + n) % len(self)
        return assigned

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        workers = self._workers
        self._workers = []
        # All are asked before the first is waited for, so that they end at the same time.
        for worker in workers:
            worker.ask_to_close()
        for worker in workers:
            worker.join()


class WorkerBackend:
    """Backend of one task whose environments are split into shards, one per worker process.

    Each worker replies in the order of its commands, so backends that share workers have to be
    received in the order in which they were sent.

    Args:
        task: the task.
        n: number of environments.
        task_index: index of the task in its suite.
        n_tasks: number of tasks in the suite.
        observation: kind of observation, see ``make_env``.
        workers: the worker processes.
        n_shards: largest number of shards.
        texts: conversion of the texts, see ``make_env``.
        unknown_codes: handling of unknown codes, see ``make_env``.
    """

    def __init__(
        self,
        task: TaskConfig,
        n: int,
        task_index: int = 0,
        n_tasks: int = 1,
        observation: ObservationKind = "grid",
        *,
        workers: Workers,
        n_shards: int,
        texts: TextCodec | None = None,
        unknown_codes: UnknownCodes = "error",
    ) -> None:
        shares = np.array_split(np.arange(n), min(n_shards, len(workers), n))
        self._first_env_indices = [int(share[0]) for share in shares]
        # The registration and the codes are sent along: a worker has not imported the user's script
        # or notebook.
        build = partial(
            _build,
            find_spec(task),
            minigrid_tables(),
            task,
            task_index,
            n_tasks,
            observation,
            texts,
            unknown_codes=unknown_codes,
        )
        self._shards = []
        for worker, share in zip(workers.assign(len(shares)), shares, strict=True):
            self._shards.append(_Shard(worker, task, build, len(share), workers.restarts))
        self._pending: list[_Shard] = []
        self.reset_infos: dict[int, Info] = {}
        """The infos of the last ``recv_reset``, by row; those that are empty are left out."""

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart each random stream at the next reset of its environment.

        Args:
            seeds: one seed per environment.
        """
        ends = [*self._first_env_indices[1:], len(seeds)]
        for shard, start, end in zip(self._shards, self._first_env_indices, ends, strict=True):
            shard.seed([int(seed) for seed in seeds[start:end]])

    def send_reset(self, env_indices: EnvIndices, options: Sequence[Info] | None = None) -> None:
        """Start an episode.

        Args:
            env_indices: the environments, (k,).
            options: the options of each reset, k of them; None for no options.
        """
        self._pending = []
        for shard, rows, shard_indices in self._split(env_indices):
            shard.send_reset(shard_indices, options[rows] if options else None)
            self._pending.append(shard)

    def recv_reset(self) -> Observations:
        """Return the first observations of these episodes, (k, …)."""
        batches = []
        self.reset_infos = {}
        first_row = 0
        for shard in self._pending:
            obs, infos = shard.recv_reset()
            batches.append(obs)
            for row, info in infos.items():
                self.reset_infos[first_row + row] = info
            first_row += shard.n_pending
        return join_observations(batches)

    def send(self, env_indices: EnvIndices, actions: Array) -> None:
        """Start a timestep.

        Args:
            env_indices: the environments, (k,).
            actions: their valid actions, (k, …).
        """
        self._pending = []
        for shard, rows, shard_indices in self._split(env_indices):
            shard.send(shard_indices, actions[rows])
            self._pending.append(shard)

    def recv(self) -> Step:
        """Finish the timestep and return it."""
        return join_steps([shard.recv() for shard in self._pending])

    def close(self) -> None:
        """Do nothing: the owner of the workers closes them."""

    def _split(self, env_indices: EnvIndices) -> "Iterator[tuple[_Shard, slice, EnvIndices]]":
        """Yield each shard that holds any of the given environments.

        Args:
            env_indices: the environments, (k,), ascending.

        Yields:
            The shard, its rows among the k, and the indices of its environments in the shard.
        """
        # Both are ascending, so the environments of a shard are a slice of the k.
        starts = np.searchsorted(env_indices, self._first_env_indices).tolist()
        bounds = pairwise([*starts, len(env_indices)])
        for shard, first, (start, end) in zip(
            self._shards, self._first_env_indices, bounds, strict=True
        ):
            if end > start:
                yield shard, slice(start, end), env_indices[start:end] - first


class _Shard:
    """Environments of a task that are held by one worker process.

    If the process is lost, so are their episodes; the next ones start in another process.

    Args:
        worker: the worker.
        task: the task.
        build: function that makes, in the process, the backend of a given number of environments.
        n: number of environments.
        restarts: counter of the tolerated failures.
    """

    def __init__(
        self,
        worker: Worker,
        task: TaskConfig,
        build: Callable[..., GymnasiumBackend],
        n: int,
        restarts: Restarts,
    ) -> None:
        self._worker = worker
        self._task = task
        self._restarts = restarts
        self._shard = worker.add_envs(partial(build, n))
        self._generation = worker.generation
        self._seeds: list[int] = []
        self._seeds_are_new = False
        self._has_episode = np.zeros(n, dtype=np.bool_)
        self._pending: EnvIndices = np.arange(0)
        self._options: Sequence[Info] | None = None
        self._is_stepping: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._last_obs: Observations = {}

    def seed(self, seeds: list[int]) -> None:
        self._seeds = seeds
        self._seeds_are_new = True

    @property
    def n_pending(self) -> int:
        """Number of environments of the last command."""
        return len(self._pending)

    def send_reset(self, env_indices: EnvIndices, options: Sequence[Info] | None) -> None:
        self._sync_with_worker()
        # Seeds are sent once; the environments keep their streams after that.
        seeds = self._seeds if self._seeds_are_new else None
        self._seeds_are_new = False
        self._options = options
        self._send_command("reset", env_indices, (seeds, options))

    def recv_reset(self) -> FirstObservations:
        while True:
            try:
                reply = self._recv_reply()
            except WorkerLostError:
                # Another process gets the same command; all of its environments are new.
                self.send_reset(self._pending, self._options)
                continue
            assert isinstance(reply, tuple), "a reset replies with observations and infos"
            self._last_obs = reply[0]
            self._has_episode[self._pending] = True
            return reply

    def send(self, env_indices: EnvIndices, actions: Array) -> None:
        self._sync_with_worker()
        self._is_stepping = self._has_episode[env_indices]
        if self._is_stepping.any():
            stepping = env_indices[self._is_stepping]
            self._send_command("step", stepping, actions[self._is_stepping])

    def recv(self) -> Step:
        is_stepping = self._is_stepping
        k = len(is_stepping)
        step = None
        if is_stepping.any():
            with suppress(WorkerLostError):
                step = self._recv_reply()
        if step is None:
            return _all_failed(self._last_obs, k)
        assert isinstance(step, Step), "a step replies with a timestep"
        if is_stepping.all():
            return step
        # Environments whose episode was lost with an earlier process have failed.
        step = step.scatter(is_stepping, k)
        step.failed[~is_stepping] = True
        return step

    def _sync_with_worker(self) -> None:
        """Forget the episodes that were lost with an earlier process, and replace their seeds."""
        # The worker counts the processes that it lost, also while it served other shards.
        if self._generation != self._worker.generation:
            self._generation = self._worker.generation
            self._has_episode[:] = False
            if not self._seeds_are_new:
                self.seed([replacement_seed(seed) for seed in self._seeds])

    def _send_command(
        self,
        command: Command,
        env_indices: EnvIndices,
        argument: tuple[list[int] | None, Sequence[Info] | None] | Array,
    ) -> None:
        self._pending = env_indices
        # If the process has died, recv() reports it, in the order of the commands.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._worker.connection.send((self._shard, command, (env_indices, argument)))

    def _recv_reply(self) -> FirstObservations | Step | None:
        try:
            failure, result, tolerated, notices = self._worker.recv(self._generation)
        except WorkerLostError as lost:
            if lost.reason:
                self._count_loss(lost)
            raise
        # several workers may send the same warning
        for message, key, topic in notices:
            warn_once(TextWarning(message, key, topic))
        if failure is not None:
            raise EnvironmentFailedError(failure)
        for message, env_index in tolerated:
            self._restarts.count(EnvironmentFailedError(message))
            # The backend in the worker has replaced the seed in the same way.
            self._seeds[env_index] = replacement_seed(self._seeds[env_index])
        return result

    def _count_loss(self, lost: WorkerLostError) -> None:
        """Count the loss of the process as a failure of the environments of the last command."""
        seeds = [self._seeds[env_index] for env_index in self._pending.tolist()]
        if len(seeds) == 1:
            which = f"seed {seeds[0]}"
        else:
            which = f"one of the seeds {', '.join(map(str, seeds[:MAX_SEEDS_IN_MESSAGE]))}"
            if len(seeds) > MAX_SEEDS_IN_MESSAGE:
                which += ", …"
        failure = f"task '{self._task.name}' ({self._task.env_id}, {which}): {lost.reason}"
        # A process that dies before its first reply would die again and again.
        if not self._worker.has_replied and not isinstance(lost, WorkerTimeoutError):
            raise EnvironmentFailedError(
                f"{failure}, at its start. The script that creates the environments must do so "
                "under `if __name__ == '__main__':`, because each worker imports that script."
            )
        self._restarts.count(EnvironmentFailedError(failure))


def _all_failed(last_obs: Observations, k: int) -> Step:
    """Return a timestep in which all k environments failed."""
    obs = {}
    for key, values in last_obs.items():
        obs[key] = np.zeros((k, *values.shape[1:]), values.dtype)
    return Step(
        obs=obs,
        rewards=np.zeros(k, np.float32),
        terminated=np.zeros(k, np.bool_),
        truncated=np.zeros(k, np.bool_),
        success=np.zeros(k, np.int8),
        failed=np.ones(k, np.bool_),
    )


def _build(
    spec: EnvSpec,
    tables: Tables,
    task: TaskConfig,
    task_index: int,
    n_tasks: int,
    observation: ObservationKind,
    texts: TextCodec | None,
    n: int,
    *,
    unknown_codes: UnknownCodes,
    on_failure: Callable[[EnvironmentFailedError], None],
) -> GymnasiumBackend:
    """Return a shard's backend, in the worker process."""
    # setdefault, because a module that the worker imported may have registered the id already.
    gym.registry.setdefault(spec.id, spec)
    add_to_minigrid_tables(tables)
    return GymnasiumBackend(
        task, n, task_index, n_tasks, observation, on_failure, texts, unknown_codes
    )
