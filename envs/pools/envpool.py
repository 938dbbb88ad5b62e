"""The ``envpool`` backend: MiniGrid and BabyAI in C++. Each trap of EnvPool 1.2.5 is met here and nowhere else."""

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import nearest
from mirl.configs.keys import MISSION_KEY, TASK_KEY
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs.missions import MAX_TOKENS, tokenize
from mirl.envs.pools.backend import NOT_REPORTED, EnvIndices, Observations, Step

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
        if task.env_id.startswith(
            "Meta-World/"
        ):  # it has all fifty, and its dial-turn cannot be solved by the expert
            return f"its Meta-World has other rewards than the package's; use backend=gymnasium for task '{task.name}'"
        if task.env_id not in known:
            return f"it does not know '{task.env_id}' of task '{task.name}'.{nearest(task.env_id, known)}"
        if task.kwargs:
            return f"it takes no kwargs, and task '{task.name}' has {task.kwargs}; use backend=gymnasium"
        if task.success in ("info", "any_step"):
            return f"it has no info 'is_success', for which success={task.success} of task '{task.name}' asks"
    return None


class EnvPoolBackend:
    """n environments of one MiniGrid or BabyAI task; they are made at the first reset after ``seed``."""

    def __init__(self, task: TaskConfig, n: int, task_index: int = 0, *, threads: int = 1) -> None:
        self._task = task
        self._n = n
        self._threads = threads
        self._task_index = task_index
        self._missions = np.zeros((n, MAX_TOKENS), dtype=np.int16)
        self._seeds: list[int] = []
        self._envs: Any = None

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams, one seed per slot."""
        self.close()  # reset(seed=…) is ignored: only the constructor takes seeds
        self._seeds = [int(seed) for seed in seeds]

    def send_reset(self, slots: EnvIndices) -> None:
        """Start an episode in slots (k,)."""
        if self._envs is None:
            self._envs = self._build()
        self._envs._reset(
            slots.astype(np.int32)
        )  # the first half of its reset(slots), which would wait

    def recv_reset(self) -> Observations:
        """The first observations of these episodes."""
        raw, info = self._envs.recv(reset=True, return_info=True)
        order = np.argsort(info["env_id"])
        return self._observations(raw, order, info["env_id"][order], starts=True)

    def send(self, slots: EnvIndices, actions: NDArray[Any]) -> None:
        """Start a timestep with valid actions (k, …); EnvPool ends the whole process on an invalid one."""
        self._envs.send(np.ascontiguousarray(actions, dtype=np.int32), slots.astype(np.int32))

    def recv(self) -> Step:
        """Finish it. Left alone, an ended episode would waste its slot's next action on a reset."""
        raw, rewards, raw_terminated, truncated, info = self._envs.recv()
        order = np.argsort(info["env_id"])
        obs = self._observations(raw, order, info["env_id"][order])
        terminated = _ended_by_itself(rewards, raw_terminated, truncated)
        success = np.full(len(order), NOT_REPORTED, dtype=np.int8)
        failed = np.zeros(len(order), dtype=np.bool_)
        return Step(obs, rewards[order], terminated[order], truncated[order], success, failed)

    def close(self) -> None:
        """Give the threads back; a second call does nothing."""
        envs, self._envs = self._envs, None
        if envs is not None:
            envs.close()

    def _build(self) -> Any:
        assert len(self._seeds) == self._n, "the first reset needs seeds, one per slot"
        envpool = importlib.import_module("envpool")
        return envpool.make(
            self._task.env_id,
            env_type="gymnasium",
            num_envs=self._n,
            num_threads=min(self._threads, self._n),
            seed=self._seeds,  # from one integer, slot i would get seed + i, as its neighbor's i - 1
        )

    def _observations(
        self, raw: Any, order: NDArray[np.int64], slots: EnvIndices, starts: bool = False
    ) -> Observations:
        """What EnvPool observes, its rows (k, …) put in the order of the slots (k,), under the contract's keys."""
        if starts:
            # Missions change at resets only, and few are distinct: decode them here, and each text once.
            self._missions[slots] = [
                _tokens_of_bytes(row.tobytes()) for row in raw[MISSION_KEY][order]
            ]
        return {  # take() copies, faster than [order] does: what is returned is never overwritten by a later step
            "image": raw["image"].take(order, axis=0),
            "direction": raw["direction"].take(order).astype(np.int64),
            MISSION_KEY: self._missions.take(slots, axis=0),
            TASK_KEY: np.full(len(slots), self._task_index, dtype=np.int64),
        }


def _ended_by_itself(
    rewards: NDArray[np.float32], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    # On the last allowed step EnvPool says "truncated, not terminated" even of a success. A reward other than 0
    # (a success, or a collision at -1) tells. An unrewarded end on that very step (lava) still reads as a time-out.
    return terminated | (truncated & (rewards != 0))


@lru_cache(maxsize=8192)
def _tokens_of_bytes(text: bytes) -> NDArray[np.int16]:
    return tokenize(text.partition(b"\0")[0].decode("utf-8"))
