"""The ``envpool`` backend: MiniGrid and BabyAI in C++. Each trap of EnvPool 1.2.5 is met here and nowhere else."""

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import nearest
from mirl.configs.schema import SuiteConfig, TaskConfig
from mirl.envs.missions import MAX_TOKENS, tokenise
from mirl.envs.pool import Observations, Step
from mirl.envs.spaces import TASK_KEY

_FAMILIES = ("MiniGrid-", "BabyAI-")


def envpool_ids() -> frozenset[str]:
    """The ids that EnvPool steps like their Python originals; empty where it is not installed."""
    try:
        envpool = importlib.import_module("envpool")
    except ImportError:
        return frozenset()
    return frozenset(name for name in envpool.list_all_envs() if name.startswith(_FAMILIES))


def obstacle_to_envpool(suite: SuiteConfig) -> str | None:
    """Why EnvPool cannot step a suite, or None if it can."""
    known = envpool_ids()
    if not known:
        return 'EnvPool is not installed; pip install "mirl[fast]"'
    if suite.observation != "grid":
        return f"it has no observation={suite.observation}; use backend=gymnasium"
    for task in suite.tasks:
        if task.env_id not in known:
            return f"it does not know '{task.env_id}' of task '{task.name}'.{nearest(task.env_id, known)}"
        if task.kwargs:
            return f"it takes no kwargs, and task '{task.name}' has {task.kwargs}; use backend=gymnasium"
        if task.success == "info":
            return f"it has no info 'is_success', which task '{task.name}' asks for; use success=reward"
    return None


class EnvPoolPool:
    """n environments of one MiniGrid or BabyAI task."""

    def __init__(self, task: TaskConfig, n: int, task_index: int = 0, *, threads: int = 1) -> None:
        self._task = task
        self._n = n
        self._threads = threads
        self._task_column = np.full(n, task_index, dtype=np.int64)
        self._missions = np.zeros((n, MAX_TOKENS), dtype=np.int16)
        self._envs: Any = None

    def reset(self, seeds: Sequence[int] | None = None) -> Observations:
        """Start an episode in each slot; with seeds, one per slot, also restart the random streams."""
        if seeds is not None:
            self._envs = self._build(seeds)  # reset(seed=…) is ignored: only the constructor takes seeds
        if self._envs is None:
            raise ValueError("the first reset() of a pool needs seeds, one per slot")
        images, directions = self._reset_slots(np.arange(self._n, dtype=np.int32))
        return self._observations(images, directions)

    def send(self, actions: NDArray[Any]) -> None:
        """Start a timestep with valid actions (n,); EnvPool ends the whole process on an invalid one."""
        self._envs.send(np.ascontiguousarray(actions, dtype=np.int32))

    def recv(self) -> Step:
        """Finish it, and start the next episode where one ended."""
        raw, raw_rewards, raw_terminated, raw_truncated, info = self._envs.recv()
        order = np.argsort(info["env_id"])
        # Indexing copies: what is returned is never overwritten by a later step.
        images, directions = raw["image"][order], raw["direction"][order].astype(np.int64)
        rewards, truncated = raw_rewards[order], raw_truncated[order]
        # On the last allowed step EnvPool says "truncated, not terminated" even of a success. A reward other than 0
        # (a success, or a collision at -1) tells. An unrewarded end on that very step (lava) still reads as a time-out.
        terminated = raw_terminated[order] | (truncated & (rewards != 0))
        done = np.flatnonzero(terminated | truncated)
        final_obs: Observations = {
            "image": images[done],
            "direction": directions[done],
            "mission": self._missions[done],
            TASK_KEY: self._task_column[done],
        }
        if done.size:
            # Left alone, an ended episode would waste the next action on its reset (next-step autoreset).
            images[done], directions[done] = self._reset_slots(done.astype(np.int32))
        obs = self._observations(images, directions)
        return Step(obs, rewards, terminated, truncated, final_obs, (None,) * len(done))

    def close(self) -> None:
        """Give the threads back; a second call does nothing."""
        envs, self._envs = self._envs, None
        if envs is not None:
            envs.close()

    def _build(self, seeds: Sequence[int]) -> Any:
        envpool = importlib.import_module("envpool")
        return envpool.make(
            self._task.env_id,
            env_type="gymnasium",
            num_envs=self._n,
            num_threads=min(self._threads, self._n),
            seed=[int(seed) for seed in seeds],  # from one integer, slot i would get seed + i, as its neighbour's i - 1
        )

    def _reset_slots(self, slots: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """New episodes in slots (k,), which ascend; their images (k, 7, 7, 3) and directions (k,)."""
        raw, info = self._envs.reset(slots)
        order = np.argsort(info["env_id"])
        # Missions change at resets only, and few are distinct: decode them here, and each text once.
        self._missions[slots] = [_tokens_of_bytes(row.tobytes()) for row in raw["mission"][order]]
        return raw["image"][order], raw["direction"][order].astype(np.int64)

    def _observations(self, images: NDArray[np.uint8], directions: NDArray[np.int64]) -> Observations:
        return {
            "image": images,
            "direction": directions,
            "mission": self._missions.copy(),
            TASK_KEY: self._task_column.copy(),
        }


@lru_cache(maxsize=8192)
def _tokens_of_bytes(text: bytes) -> NDArray[np.int16]:
    return tokenise(text.partition(b"\0")[0].decode("utf-8"))
