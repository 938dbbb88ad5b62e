"""The ``envpool`` backend: MiniGrid and BabyAI in C++.

Every peculiarity of EnvPool 1.2.5 is handled here and nowhere else.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import nearest
from mirl.configs.keys import MISSION_KEY, TASK_KEY
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs.pools.backend import NOT_REPORTED, Step
from mirl.envs.texts.codec import TextCodec, text_codec
from mirl.envs.type_aliases import Array, EnvIndices, Info, Observations

_FAMILIES = ("MiniGrid-", "BabyAI-")


def envpool_ids() -> frozenset[str]:
    """Return the ids that EnvPool steps like their Python originals; empty if not installed."""
    try:
        envpool = importlib.import_module("envpool")
    except ImportError:
        return frozenset()
    return frozenset(name for name in envpool.list_all_envs() if name.startswith(_FAMILIES))


def has_other_family(suite: SuiteConfig) -> bool:
    """Return True if a task belongs to no family that EnvPool steps like the original.

    The check does not load EnvPool, which takes seconds.

    Args:
        suite: the tasks.
    """
    return any(not task.env_id.startswith(_FAMILIES) for task in suite.tasks)


def envpool_obstacle(suite: SuiteConfig) -> str | None:
    """Return the reason why EnvPool cannot step a suite, or None if it can.

    Args:
        suite: the tasks.
    """
    known = envpool_ids()
    if not known:
        return 'EnvPool is not installed; pip install "mirl[fast]"'
    if suite.observation != "grid":
        return f"it has no observation={suite.observation}; use backend=gymnasium"
    for task in suite.tasks:
        obstacle = _task_obstacle(task, known)
        if obstacle is not None:
            return obstacle
    return None


def _task_obstacle(task: TaskConfig, known: frozenset[str]) -> str | None:
    # EnvPool has all fifty tasks of Meta-World, but the expert cannot solve its dial-turn.
    if task.env_id.startswith("Meta-World/"):
        return (
            "the rewards of its Meta-World differ from those of the package; use "
            f"backend=gymnasium for task '{task.name}'"
        )
    if task.env_id not in known:
        return (
            f"it does not know '{task.env_id}' of task '{task.name}'.{nearest(task.env_id, known)}"
        )
    if task.kwargs:
        return (
            f"it takes no kwargs, but task '{task.name}' has {task.kwargs}; use backend=gymnasium"
        )
    if task.wrappers:
        return (
            f"it takes no wrappers, but task '{task.name}' has {task.wrappers[0].wrapper}; use "
            "backend=gymnasium"
        )
    if task.success in ("info", "any_step"):
        return (
            f"its infos have neither 'is_success' nor 'success', but task '{task.name}' has "
            f"success={task.success}; use backend=gymnasium"
        )
    return None


class EnvPoolBackend:
    """Backend of one MiniGrid or BabyAI task; its environments are made at the first reset.

    Args:
        task: the task.
        n: number of environments.
        task_index: index of the task in its suite.
        threads: number of threads that step them.
        texts: conversion of the missions; None for MiniGrid's.
    """

    def __init__(
        self,
        task: TaskConfig,
        n: int,
        task_index: int = 0,
        *,
        threads: int = 1,
        texts: TextCodec | None = None,
    ) -> None:
        self._task = task
        self._n = n
        self._threads = threads
        self._task_index = task_index
        self._texts = texts or text_codec()
        self._missions = np.zeros((n, self._texts.length), dtype=np.int16)
        self._seeds: list[int] = []
        self.reset_infos: dict[int, Info] = {}
        """Always empty: EnvPool's infos hold nothing that comes from the environment."""
        self._envs: Any = None

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams at the next reset.

        Args:
            seeds: one seed per environment.
        """
        # reset(seed=...) is ignored, only the constructor takes seeds.
        self.close()
        self._seeds = [int(seed) for seed in seeds]

    def send_reset(self, env_indices: EnvIndices, options: Sequence[Info] | None = None) -> None:
        """Start an episode.

        Args:
            env_indices: the environments, (k,).
            options: None, because EnvPool takes no options.
        """
        assert options is None, "SuiteVecEnv.set_options() has refused them"
        if self._envs is None:
            self._envs = self._build()
        # The public reset() would also wait for the result.
        self._envs._reset(env_indices.astype(np.int32))

    def recv_reset(self) -> Observations:
        """Return the first observations of these episodes, (k, …)."""
        raw, info = self._envs.recv(reset=True, return_info=True)
        # EnvPool returns environments in the order in which they finished.
        order = np.argsort(info["env_id"])
        env_indices = info["env_id"][order]
        # Missions change only at resets, so they are decoded here.
        raw_missions = raw[MISSION_KEY][order]
        self._missions[env_indices] = [self._encode_mission(row.tobytes()) for row in raw_missions]
        return self._observations(raw, order, env_indices)

    def send(self, env_indices: EnvIndices, actions: Array) -> None:
        """Start a timestep.

        Args:
            env_indices: the environments, (k,).
            actions: their actions, (k, …); EnvPool ends the whole process on an invalid one.
        """
        contiguous = np.ascontiguousarray(actions, dtype=np.int32)
        self._envs.send(contiguous, env_indices.astype(np.int32))

    def recv(self) -> Step:
        """Finish the timestep and return it.

        An environment whose episode ended has to be reset, or EnvPool spends its next action on
        the reset.
        """
        raw, rewards, raw_terminated, truncated, info = self._envs.recv()
        order = np.argsort(info["env_id"])
        k = len(order)
        terminated = _correct_terminated(rewards, raw_terminated, truncated)
        return Step(
            obs=self._observations(raw, order, info["env_id"][order]),
            rewards=rewards[order],
            terminated=terminated[order],
            truncated=truncated[order],
            success=np.full(k, NOT_REPORTED, dtype=np.int8),
            failed=np.zeros(k, dtype=np.bool_),
        )

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        envs = self._envs
        self._envs = None
        if envs is not None:
            envs.close()

    def _build(self) -> Any:
        assert len(self._seeds) == self._n, "the first reset needs one seed per environment"
        envpool = importlib.import_module("envpool")
        return envpool.make(
            self._task.env_id,
            env_type="gymnasium",
            num_envs=self._n,
            num_threads=min(self._threads, self._n),  # more threads would only wait
            # A single integer would give environment i the seed + i, so that the environments of
            # neighboring seeds would be the same.
            seed=self._seeds,
        )

    def _encode_mission(self, text: bytes) -> NDArray[np.int16]:
        # EnvPool pads missions with zero bytes.
        return self._texts.encode(text.partition(b"\0")[0].decode("utf-8"), MISSION_KEY)

    def _observations(
        self, raw: Mapping[str, Array], order: NDArray[np.int64], env_indices: EnvIndices
    ) -> Observations:
        """Return EnvPool's observations under the contract's keys, (k, …).

        Args:
            raw: EnvPool's observations, in the order in which the environments finished.
            order: the rows in ascending order of the environments, (k,).
            env_indices: the environments in that order, (k,).
        """
        # take() copies, so no later step overwrites the result, and it is faster than [order].
        return {
            "image": raw["image"].take(order, axis=0),
            "direction": raw["direction"].take(order).astype(np.int64),
            MISSION_KEY: self._missions.take(env_indices, axis=0),
            TASK_KEY: np.full(len(env_indices), self._task_index, dtype=np.int64),
        }


def _correct_terminated(
    rewards: NDArray[np.float32], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return True for each episode that terminated, (k,)."""
    # On the last allowed timestep EnvPool reports "truncated, not terminated" even for a success.
    # A reward other than 0 (a success, or -1 for a collision) reveals the termination. An episode
    # that ends without a reward on that very timestep (lava) still counts as truncated.
    return terminated | (truncated & (rewards != 0))
