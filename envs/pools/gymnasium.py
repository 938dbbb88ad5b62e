"""The ``gymnasium`` backend: any registered id, stepped in this process, or by a few worker processes (workers.py)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from mirl.configs.tasks import TaskConfig
from mirl.envs.make import ObservationKind, make_env
from mirl.envs.pools.backend import (
    NOT_REPORTED,
    EnvIndices,
    EnvironmentFailedError,
    Observations,
    Step,
    scatter,
)
from mirl.envs.seeds import another_seed


def _raise(failure: EnvironmentFailedError) -> None:
    raise failure


class GymnasiumBackend:
    """n environments of one task, stepped one after the other in the calling process; each is made at its first reset.

    One that raises is dropped, and its next reset makes another, unless ``on_failure``, which is told, raises.

    ``gymnasium.vector.SyncVectorEnv`` steps all of its environments or none, cannot say which one raised, and stacks
    all infos.
    """

    def __init__(
        self,
        task: TaskConfig,
        n: int,
        task_index: int = 0,
        n_tasks: int = 1,
        observation: ObservationKind = "grid",
        on_failure: Callable[[EnvironmentFailedError], None] = _raise,
    ) -> None:
        self._task, self._on_failure = task, on_failure
        self._make_env = partial(make_env, task, task_index, n_tasks, observation)
        self._envs: list[gym.Env[Any, Any] | None] = [None] * n
        self._space: spaces.Space[Any]  # known from the first environment on
        self._seeds: list[int | None] = [None] * n
        self._seed_is_new = [False] * n
        self._was_made = [False] * n
        self._starting: EnvIndices | None = None
        self._stepping: tuple[EnvIndices, NDArray[Any]] | None = None

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams, one seed per slot, each at its slot's next reset."""
        self._seeds = [int(seed) for seed in seeds]
        self._seed_is_new = [True] * len(self._seeds)

    def send_reset(self, slots: EnvIndices) -> None:
        """Keep the slots (k,) for ``recv_reset``."""
        self._starting = slots

    def recv_reset(self) -> Observations:
        """Start an episode in each of them."""
        assert self._starting is not None, "recv_reset() follows send_reset()"
        slots, self._starting = self._starting, None
        return self._stack({slot: self._reset_slot(slot) for slot in slots.tolist()})

    def send(self, slots: EnvIndices, actions: NDArray[Any]) -> None:
        """Keep slots (k,) and actions (k, …) for ``recv``."""
        self._stepping = slots, actions

    def recv(self) -> Step:
        """Step each of these environments."""
        assert self._stepping is not None, "recv() follows send()"
        (slots, actions), self._stepping = self._stepping, None
        k = len(slots)
        rewards, terminated, truncated = (
            np.zeros(k, np.float32),
            np.zeros(k, np.bool_),
            np.zeros(k, np.bool_),
        )
        success, failed = np.zeros(k, np.int8), np.zeros(k, np.bool_)
        rows: dict[int, Any] = {}
        for i, slot in enumerate(slots.tolist()):
            stepped = self._step_slot(slot, actions[i])
            if stepped is None:
                failed[i] = True
                continue
            rows[slot], rewards[i], terminated[i], truncated[i], info = stepped
            success[i] = _reported_success(info)
        obs = self._stack(rows)
        if failed.any():
            obs = {key: scatter(values, ~failed, k) for key, values in obs.items()}
        return Step(obs, rewards, terminated, truncated, success, failed)

    def close(self) -> None:
        """Close the environments; a second call does nothing."""
        envs, self._envs = self._envs, []
        for env in envs:
            if env is not None:
                _close(env)

    def _reset_slot(self, slot: int) -> Any:
        while True:
            env = self._envs[slot]
            if env is None:
                env = self._envs[slot] = self._make_slot(slot)
            if env is None:
                continue
            seed = self._seeds[slot] if self._seed_is_new[slot] else None
            self._seed_is_new[slot] = False
            try:
                observation, _ = env.reset(seed=seed)
            except Exception as error:
                self._drop(slot, "reset", error)
            else:
                return observation

    def _make_slot(self, slot: int) -> gym.Env[Any, Any] | None:
        """None when it failed though it could be made once: the first time, a mistake of the user's is likelier."""
        try:
            env = self._make_env()
        except Exception as error:
            if not self._was_made[slot]:
                raise
            self._drop(slot, "make", error)
            return None
        self._was_made[slot], self._space = True, env.observation_space
        return env

    def _step_slot(
        self, slot: int, action: Any
    ) -> tuple[Any, Any, bool, bool, dict[str, Any]] | None:
        """None when the environment failed."""
        env = self._envs[slot]
        assert env is not None, "a slot is reset before it is stepped"
        try:
            return env.step(action)
        except Exception as error:
            self._drop(slot, "step", error)
            return None

    def _drop(self, slot: int, method: str, error: Exception) -> None:
        env, seed = self._envs[slot], self._seeds[slot]
        assert seed is not None, "the first reset needs seeds"
        failure = self._failure(slot, f"failed in {method}(): {type(error).__name__}: {error}")
        failure.__cause__ = error
        self._on_failure(failure)
        self._envs[slot] = None
        self._seeds[slot], self._seed_is_new[slot] = another_seed(seed), True
        if env is not None:
            _close(env)

    def _failure(self, slot: int, what: str) -> EnvironmentFailedError:
        told = f"task '{self._task.name}' ({self._task.env_id}, seed {self._seeds[slot]}) {what}"
        return EnvironmentFailedError(told, slot)

    def _stack(self, rows: Mapping[int, Any]) -> Observations:
        # (…) per slot -> (k, …)
        out: Any = create_empty_array(self._space, n=len(rows), fn=np.zeros)
        try:
            return (
                cast(Observations, concatenate(self._space, tuple(rows.values()), out))
                if rows
                else out
            )
        except Exception as error:
            for slot, row in rows.items():
                if not self._space.contains(row):
                    raise self._failure(
                        slot, f"gave {row!r}, which is not in {self._space}"
                    ) from error
            raise


def _close(env: gym.Env[Any, Any]) -> None:
    with suppress(
        Exception
    ):  # what it closes may be what failed; that must not hide why, nor leave others open
        env.close()


def _reported_success(info: Mapping[str, Any]) -> int:
    success = info.get(
        "is_success", info.get("success")
    )  # gymnasium-robotics' name, Meta-World's name
    return NOT_REPORTED if success is None else int(bool(success))
