"""Choice and construction of the backends and worker processes of a suite."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig
from mirl.envs.assignment import TaskAssignment
from mirl.envs.pools.backend import Backend, Restarts
from mirl.envs.pools.envpool import EnvPoolBackend, envpool_obstacle, has_other_family
from mirl.envs.pools.game import has_game, make_game_backends
from mirl.envs.pools.gymnasium import GymnasiumBackend
from mirl.envs.pools.suite import SuiteBackend
from mirl.envs.pools.workers import WorkerBackend, Workers, available_cpus
from mirl.envs.texts.codec import suite_codec

MAX_IN_PROCESS_ENVS = 4
"""Largest number of environments for which worker processes cost more time than they save."""


def choose_backend(suite: SuiteConfig, backend: BackendName) -> Literal["gymnasium", "envpool"]:
    """Return the backend that steps a suite.

    Args:
        suite: the tasks.
        backend: the requested backend. ``auto`` is EnvPool if it is installed and can step every
            task, otherwise Gymnasium.

    Raises:
        ConfigError: if the backend is unknown, or is ``envpool`` and cannot step the suite.
    """
    if backend not in get_args(BackendName):
        raise ConfigError(f"unknown backend '{backend}'." + nearest(backend, get_args(BackendName)))
    if backend == "gymnasium":
        return "gymnasium"
    if backend == "auto" and has_other_family(suite):
        return "gymnasium"
    obstacle = envpool_obstacle(suite)
    if obstacle is None:
        return "envpool"
    if backend == "auto":
        return "gymnasium"
    raise ConfigError(f"backend=envpool cannot step suite '{suite.name}': {obstacle}")


def make_suite_backend(
    suite: SuiteConfig,
    backend: Literal["gymnasium", "envpool"],
    assignment: TaskAssignment,
    n_actions: NDArray[np.int64] | None,
    n_workers: int | None,
    restarts: Restarts,
    timeout: float,
) -> SuiteBackend:
    """Return the backend of a whole suite, with its worker processes.

    Args:
        suite: the tasks.
        backend: kind of the backends.
        assignment: assignment of the environments to the tasks.
        n_actions: number of actions of each task, (n_tasks,), if they differ.
        n_workers: number of worker processes; None chooses it by the number of environments.
        restarts: counter of the tolerated failures.
        timeout: seconds without a reply after which a worker process counts as hung.

    Raises:
        ConfigError: if the number of workers is negative.
    """
    n_envs = len(assignment.task_ids)
    if has_game(suite):
        game_backends = make_game_backends(suite, assignment.backend_sizes, n_envs)
        return SuiteBackend(game_backends, assignment.first_env_indices, n_envs)
    workers = make_workers(backend, n_envs, n_workers, restarts, timeout)
    backends = make_backends(suite, assignment.backend_sizes, backend, workers, restarts)
    return SuiteBackend(backends, assignment.first_env_indices, n_envs, n_actions, workers)


def make_workers(
    backend: Literal["gymnasium", "envpool"],
    n_envs: int,
    n_workers: int | None,
    restarts: Restarts,
    timeout: float,
) -> Workers | None:
    """Return the worker processes of a suite, or None if there are none.

    Args:
        backend: backend of the suite; only ``gymnasium`` uses worker processes.
        n_envs: number of environments.
        n_workers: number of worker processes; None chooses it by the number of environments.
        restarts: counter of the tolerated failures.
        timeout: seconds without a reply after which a worker process counts as hung.

    Raises:
        ConfigError: if the number of workers is negative.
    """
    if n_workers is None:
        n_workers = 0
        if n_envs > MAX_IN_PROCESS_ENVS:
            n_workers = available_cpus()
    if n_workers < 0:
        raise ConfigError(f"workers must be at least 0, got {n_workers}")
    if n_workers == 0 or backend == "envpool":
        return None
    return Workers(n_workers, restarts, timeout)


def make_backends(
    suite: SuiteConfig,
    sizes: Mapping[int, int],
    backend: Literal["gymnasium", "envpool"],
    workers: Workers | None,
    restarts: Restarts,
) -> dict[int, Backend]:
    """Return one backend per task.

    Args:
        suite: the tasks.
        sizes: number of environments of each active task, by task index.
        backend: kind of the backends.
        workers: worker processes that step the environments; None for the calling process.
        restarts: counter of the tolerated failures.
    """
    n_tasks = len(suite.tasks)
    # The backends of all tasks work at the same time, so they share the CPUs.
    threads = max(1, available_cpus() // len(sizes))
    texts = suite_codec(suite)
    backends: dict[int, Backend] = {}
    for task_index, n in sizes.items():
        task = suite.tasks[task_index]
        if backend == "envpool":
            backends[task_index] = EnvPoolBackend(task, n, task_index, threads=threads, texts=texts)
        elif workers is not None:
            # Rounded up, so that every worker has environments.
            n_shards = -(-len(workers) // len(sizes))
            backends[task_index] = WorkerBackend(
                task,
                n,
                task_index,
                n_tasks,
                suite.observation,
                workers=workers,
                n_shards=n_shards,
                texts=texts,
                unknown_codes=suite.unknown_codes,
            )
        else:
            backends[task_index] = GymnasiumBackend(
                task,
                n,
                task_index,
                n_tasks,
                suite.observation,
                restarts.count,
                texts,
                unknown_codes=suite.unknown_codes,
            )
    return backends
