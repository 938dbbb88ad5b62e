"""Which backend steps a suite, and the pools that it makes."""

from collections.abc import Mapping
from typing import Literal, get_args

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig
from mirl.envs.pools.backend import Backend, Restarts
from mirl.envs.pools.envpool import EnvPoolBackend, obstacle_to_envpool
from mirl.envs.pools.gymnasium import GymnasiumBackend
from mirl.envs.pools.workers import WorkerBackend, Workers, available_cpus


def choose_backend(suite: SuiteConfig, backend: BackendName) -> Literal["gymnasium", "envpool"]:
    """``auto`` is EnvPool where it is installed and can step every task, else Gymnasium.

    Raises:
        ConfigError: ``envpool`` was asked for and cannot step the suite.
    """
    if backend not in get_args(BackendName):
        raise ConfigError(f"unknown backend '{backend}'." + nearest(backend, get_args(BackendName)))
    if backend == "gymnasium":
        return "gymnasium"
    obstacle = obstacle_to_envpool(suite)
    if obstacle is None:
        return "envpool"
    if backend == "auto":
        return "gymnasium"
    raise ConfigError(f"backend=envpool cannot step suite '{suite.name}': {obstacle}")


def make_backends(
    suite: SuiteConfig,
    sizes: Mapping[int, int],
    backend: Literal["gymnasium", "envpool"],
    workers: Workers | None,
    restarts: Restarts,
) -> dict[int, Backend]:
    """By task, a pool of so many slots."""
    n_tasks = len(suite.tasks)
    pools: dict[int, Backend] = {}
    for index, n in sizes.items():
        task = suite.tasks[index]
        if backend == "envpool":
            pools[index] = EnvPoolBackend(
                task, n, index, threads=max(1, available_cpus() // len(sizes))
            )
        elif workers is not None:
            chunks = -(-len(workers) // len(sizes))
            pools[index] = WorkerBackend(
                task, n, index, n_tasks, suite.observation, workers=workers, chunks=chunks
            )
        else:
            pools[index] = GymnasiumBackend(
                task, n, index, n_tasks, suite.observation, restarts.count
            )
    return pools
