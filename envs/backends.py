"""Which backend steps a suite, and the pools that it makes."""

from collections.abc import Mapping
from typing import Literal, get_args

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig
from mirl.envs.envpool_pool import EnvPoolPool, obstacle_to_envpool
from mirl.envs.gymnasium_pool import GymnasiumPool
from mirl.envs.pool import Pool, Restarts
from mirl.envs.workers import WorkerPool, Workers, available_cpus


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


def make_pools(
    suite: SuiteConfig,
    sizes: Mapping[int, int],
    backend: Literal["gymnasium", "envpool"],
    workers: Workers | None,
    restarts: Restarts,
) -> dict[int, Pool]:
    """By task, a pool of so many slots."""
    n_tasks = len(suite.tasks)
    pools: dict[int, Pool] = {}
    for index, n in sizes.items():
        task = suite.tasks[index]
        if backend == "envpool":
            pools[index] = EnvPoolPool(task, n, index, threads=max(1, available_cpus() // len(sizes)))
        elif workers is not None:
            chunks = -(-len(workers) // len(sizes))
            pools[index] = WorkerPool(task, n, index, n_tasks, suite.observation, workers=workers, chunks=chunks)
        else:
            pools[index] = GymnasiumPool(task, n, index, n_tasks, suite.observation, restarts.count)
    return pools
