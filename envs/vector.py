"""A whole suite as one SB3 ``VecEnv``: several slots per task, every task in every rollout."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import BackendName, SuiteConfig, TaskConfig
from mirl.envs.actions import checked_actions
from mirl.envs.envpool_pool import EnvPoolPool, obstacle_to_envpool
from mirl.envs.gymnasium_pool import GymnasiumPool
from mirl.envs.pool import Observations, Pool, Step, join_observations, join_steps
from mirl.envs.seeds import Split, slot_seeds
from mirl.envs.suite_spaces import suite_spaces
from mirl.envs.workers import WorkerPool, available_cpus

IN_PROCESS_SLOTS = 4
"""Up to so many slots, worker processes cost more than they bring."""


class SuiteVecEnv(VecEnv):
    """Steps all tasks of a suite together, with same-step autoreset.

    Slots are spread over the tasks as evenly as possible, those of one task side by side. The ``infos`` of a slot whose
    episode ended hold ``terminal_observation``, ``TimeLimit.truncated``, ``is_success``, ``task`` (its name) and
    ``episode`` (as SB3's Monitor has it: ``r`` return, ``l`` length, ``t`` seconds since the start); others are empty.

    Args:
        suite: the tasks.
        n_envs: slots over all tasks, at least one per task.
        backend: what steps the environments.
        seed: of the environments; each slot gets its own, derived from it.
        split: training and evaluation never share an environment's seed.
        workers: processes per task of the ``gymnasium`` backend, 0 for none; None chooses.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        n_envs: int,
        *,
        backend: BackendName = "auto",
        seed: int = 0,
        split: Split = "train",
        workers: int | None = None,
    ) -> None:
        n_tasks = len(suite.tasks)
        if n_envs < n_tasks:
            raise ConfigError(f"n_envs must be at least one per task of suite '{suite.name}', {n_tasks}, got {n_envs}")
        self.backend = choose_backend(suite, backend)
        observation_space, self._actions_in = suite_spaces(suite, self.backend)
        self.suite = suite
        self.split: Split = split
        chunks = np.array_split(np.arange(n_envs), n_tasks)
        self._slices = [slice(int(chunk[0]), int(chunk[-1]) + 1) for chunk in chunks]
        self.task_index: NDArray[np.int64] = np.repeat(np.arange(n_tasks), [len(chunk) for chunk in chunks])
        """(n_envs,), the task of each slot."""
        self._returns = np.zeros(n_envs, dtype=np.float64)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._start = time.perf_counter()
        self._state: Literal["new", "ready", "stepping", "closed"] = "new"
        super().__init__(n_envs, observation_space, self._actions_in)
        self.seed(seed)
        self._pools = _make_pools(suite, [len(chunk) for chunk in chunks], self.backend, workers)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the random streams at the next ``reset()``; None leaves them. Returns the seeds of the slots."""
        if seed is not None:
            per_task = [rows.stop - rows.start for rows in self._slices]
            self._slot_seeds = [slot_seeds(seed, self.split, task, n) for task, n in enumerate(per_task)]
            self._reseed = True
        return [slot_seed for task_seeds in self._slot_seeds for slot_seed in task_seeds]

    def reset(self) -> Observations:
        """Start an episode in every slot, drop those under way."""
        if self._state == "closed":
            raise RuntimeError("this SuiteVecEnv is closed; make a new one")
        if self._state == "stepping":
            self.step_wait()
        reseed, self._reseed = self._reseed, False
        with self._closed_on_failure():
            obs = [
                pool.reset(seeds if reseed else None) for pool, seeds in zip(self._pools, self._slot_seeds, strict=True)
            ]
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._state = "ready"
        return join_observations(obs)

    def step_async(self, actions: Any) -> None:
        """Start a timestep with actions (n_envs, …) in every pool, so that all work at the same time.

        Raises:
            ValueError: an action is not of the action space; nothing has been stepped.
        """
        if self._state != "ready":
            expected = {"new": "reset()", "stepping": "step_wait()", "closed": "a new SuiteVecEnv"}[self._state]
            raise RuntimeError(f"step_async() needs {expected} first")
        checked = checked_actions(actions, self._actions_in, self.num_envs)
        with self._closed_on_failure():
            for pool, rows in zip(self._pools, self._slices, strict=True):
                pool.send(checked[rows])
        self._state = "stepping"

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Finish the timestep: observations, rewards (n_envs,), dones (n_envs,), infos."""
        if self._state != "stepping":
            raise RuntimeError("step_wait() needs step_async() first")
        with self._closed_on_failure():
            step = join_steps([pool.recv() for pool in self._pools])
            self._returns += step.rewards
            self._lengths += 1
            infos = self._infos(step)
        done = step.done
        self._returns[done] = 0.0
        self._lengths[done] = 0
        self._state = "ready"
        return step.obs, step.rewards, done, infos

    def close(self) -> None:
        """End processes and threads; a second call does nothing."""
        self._state = "closed"
        for pool in self._pools:
            pool.close()

    def _infos(self, step: Step) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        elapsed = round(time.perf_counter() - self._start, 6)
        for row, slot in enumerate(np.flatnonzero(step.done).tolist()):
            task = self.suite.tasks[self.task_index[slot]]
            infos[slot] = {
                "terminal_observation": {key: values[row] for key, values in step.final_obs.items()},
                "TimeLimit.truncated": bool(step.truncated[slot] and not step.terminated[slot]),
                "is_success": _is_success(task, float(step.rewards[slot]), step.final_success[row]),
                "episode": {"r": float(self._returns[slot]), "l": int(self._lengths[slot]), "t": elapsed},
                "task": task.name,
            }
        return infos

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        # After a failure in one pool the others hold answers that nobody fetched: no later step could be right.
        try:
            yield
        except BaseException:
            self.close()
            raise

    # SB3 asks for single environments' attributes; here the environments may live in C++ or in other processes.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """``render_mode`` is None; there is nothing else."""
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        raise AttributeError(f"SuiteVecEnv gives no access to single environments, so not to their '{attr_name}'")

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible."""
        raise AttributeError(f"SuiteVecEnv gives no access to single environments, so not to their '{attr_name}'")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Not possible."""
        raise AttributeError(f"SuiteVecEnv gives no access to single environments, so not to their '{method_name}'")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for SB3's Monitor, whose ``episode`` statistics are written here too; False for all others."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


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


def make_vec_env(
    env: str | Sequence[str] | SuiteConfig,
    n_envs: int,
    backend: BackendName = "auto",
    seed: int = 0,
    split: Split = "train",
) -> SuiteVecEnv:
    """A ``SuiteVecEnv`` of one id, of several ids (one task each, named by its id), or of a suite."""
    if not isinstance(env, SuiteConfig):
        ids = (env,) if isinstance(env, str) else tuple(env)
        tasks = [{"name": env_id, "env_id": env_id} for env_id in ids]
        env = validate(SuiteConfig, {"name": "+".join(ids), "tasks": tasks})
    return SuiteVecEnv(env, n_envs, backend=backend, seed=seed, split=split)


def _make_pools(
    suite: SuiteConfig, counts: Sequence[int], backend: Literal["gymnasium", "envpool"], workers: int | None
) -> list[Pool]:
    cpus, n_tasks = available_cpus(), len(suite.tasks)
    share = max(1, cpus // n_tasks)
    if backend == "envpool":
        return [
            EnvPoolPool(task, n, i, threads=share) for i, (task, n) in enumerate(zip(suite.tasks, counts, strict=True))
        ]
    if workers is None:
        workers = 0 if sum(counts) <= IN_PROCESS_SLOTS else share
    pools: list[Pool] = []
    for index, (task, n) in enumerate(zip(suite.tasks, counts, strict=True)):
        if workers:
            pools.append(WorkerPool(task, n, index, n_tasks, suite.observation, workers=workers))
        else:
            pools.append(GymnasiumPool(task, n, index, n_tasks, suite.observation))
    return pools


def _is_success(task: TaskConfig, last_reward: float, reported: bool | None) -> bool:
    if task.success == "reward":
        return last_reward > 0
    if reported is None:
        raise ConfigError(
            f"task '{task.name}' has success=info, but the last info of {task.env_id} has no 'is_success'; "
            "use success=reward"
        )
    return reported
