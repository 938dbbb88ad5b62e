"""The ``gymnasium`` backend: any registered id, stepped in the calling process."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array

from mirl.configs.errors import ContractError
from mirl.configs.tasks import TaskConfig
from mirl.envs.contract.codes import UnknownCodes
from mirl.envs.contract.descriptions import describe_value
from mirl.envs.make import ObservationKind, make_env
from mirl.envs.pools.backend import NOT_REPORTED, EnvironmentFailedError, Step, scatter_rows
from mirl.envs.seeds import replacement_seed
from mirl.envs.texts.codec import TextCodec
from mirl.envs.type_aliases import (
    AnyEnv,
    AnySpace,
    Array,
    EnvIndices,
    Info,
    Observation,
    Observations,
)

EnvStep = tuple[Observation, float, bool, bool, Mapping[str, object]]
"""Observation, reward, terminated, truncated and info of one environment."""


def _raise(failure: EnvironmentFailedError) -> None:
    raise failure


class GymnasiumBackend:
    """Backend of one task whose environments are stepped one after the other.

    Each environment is made at its first reset. An environment that raises is discarded, and its
    next reset makes a new one, unless ``on_failure`` raises.

    ``gymnasium.vector.SyncVectorEnv`` is not used: it steps all of its environments or none,
    cannot tell which one raised, and stacks all infos.

    Args:
        task: the task.
        n: number of environments.
        task_index: index of the task in its suite.
        n_tasks: number of tasks in the suite.
        observation: kind of observation, see ``make_env``.
        on_failure: called with each failure; by default it raises the failure.
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
        on_failure: Callable[[EnvironmentFailedError], None] = _raise,
        texts: TextCodec | None = None,
        unknown_codes: UnknownCodes = "error",
    ) -> None:
        self._task = task
        self._on_failure = on_failure
        self._make_env = partial(
            make_env,
            task,
            task_index,
            n_tasks,
            observation,
            texts=texts,
            unknown_codes=unknown_codes,
        )
        self._envs: list[AnyEnv | None] = [None] * n
        self._space: AnySpace  # known once the first environment has been made
        self._seeds: list[int | None] = [None] * n
        self._needs_seed = [False] * n
        self._was_made = [False] * n
        self._reset_indices: EnvIndices | None = None
        self._reset_options: Sequence[Info] = ()
        self.reset_infos: dict[int, Info] = {}
        """The infos of the last ``recv_reset``, by row; those that are empty are left out."""
        self._step_indices: EnvIndices | None = None
        self._actions: Array | None = None

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart each random stream at the next reset of its environment.

        Args:
            seeds: one seed per environment.
        """
        self._seeds = [int(seed) for seed in seeds]
        self._needs_seed = [True] * len(self._seeds)

    def send_reset(self, env_indices: EnvIndices, options: Sequence[Info] | None = None) -> None:
        """Store which environments ``recv_reset`` has to reset.

        Args:
            env_indices: the environments, (k,).
            options: the options of each reset, k of them; None for no options.
        """
        self._reset_indices = env_indices
        self._reset_options = options or [{} for _ in env_indices]

    def recv_reset(self) -> Observations:
        """Start an episode in each of the stored environments; return the observations, (k, …)."""
        assert self._reset_indices is not None, "recv_reset() follows send_reset()"
        env_indices = self._reset_indices.tolist()
        self._reset_indices = None
        self.reset_infos = {}
        first_obs: dict[int, Observation] = {}
        for row, env_index in enumerate(env_indices):
            # an empty dictionary means no options, as in SB3
            options = self._reset_options[row] or None
            first_obs[env_index], info = self._reset_env(env_index, options)
            if info:
                self.reset_infos[row] = info
        return self._stack(first_obs)

    def send(self, env_indices: EnvIndices, actions: Array) -> None:
        """Store which actions ``recv`` has to take.

        Args:
            env_indices: the environments, (k,).
            actions: their actions, (k, …).
        """
        self._step_indices = env_indices
        self._actions = actions

    def recv(self) -> Step:
        """Step each of the stored environments and return the timestep."""
        assert self._step_indices is not None, "recv() follows send()"
        assert self._actions is not None, "recv() follows send()"
        env_indices = self._step_indices.tolist()
        self._step_indices = None
        k = len(env_indices)
        rewards = np.zeros(k, np.float32)
        terminated = np.zeros(k, np.bool_)
        truncated = np.zeros(k, np.bool_)
        success = np.zeros(k, np.int8)
        failed = np.zeros(k, np.bool_)
        rows: dict[int, Observation] = {}
        infos: dict[int, Info] = {}
        # rows has no entry for a failed environment; its row in the result is zeros.
        for i, env_index in enumerate(env_indices):
            env_step = self._step_env(env_index, self._actions[i])
            if env_step is None:
                failed[i] = True
                continue
            rows[env_index], rewards[i], terminated[i], truncated[i], info = env_step
            success[i] = reported_success(info)
            if info:
                infos[i] = dict(info)
        obs = self._stack(rows)
        if failed.any():
            # (working environments, …) -> (k, …)
            obs = {key: scatter_rows(values, ~failed, k) for key, values in obs.items()}
        return Step(obs, rewards, terminated, truncated, success, failed, infos)

    def close(self) -> None:
        """Close the environments; a second call does nothing."""
        envs = self._envs
        self._envs = []
        for env in envs:
            if env is not None:
                _close(env)

    def _reset_env(self, env_index: int, options: Info | None) -> tuple[Observation, Info]:
        """Return the first observation and info of an environment.

        The environment is made again until it works.
        """
        while True:
            env = self._envs[env_index]
            if env is None:
                env = self._make(env_index)
                self._envs[env_index] = env
            if env is None:
                # The failure has been counted, so the loop ends when the restarts are used up.
                continue
            seed = self._seeds[env_index] if self._needs_seed[env_index] else None
            self._needs_seed[env_index] = False
            try:
                observation, info = env.reset(seed=seed, options=options)
            except Exception as error:
                self._discard(env_index, "reset", error)
            else:
                return observation, info

    def _make(self, env_index: int) -> AnyEnv | None:
        """Return a new environment, or None if it fails although it could be made before.

        If the first attempt fails, it is likely the user's mistake, and the error is raised.
        """
        try:
            env = self._make_env()
        except Exception as error:
            if not self._was_made[env_index]:
                raise
            self._discard(env_index, "make", error)
            return None
        self._was_made[env_index] = True
        self._space = env.observation_space
        return env

    def _step_env(self, env_index: int, action: Array) -> EnvStep | None:
        """Return the timestep of one environment, or None if it failed."""
        env = self._envs[env_index]
        assert env is not None, "an environment is reset before it is stepped"
        try:
            return cast(EnvStep, env.step(action))
        except Exception as error:
            self._discard(env_index, "step", error)
            return None

    def _discard(self, env_index: int, method: str, error: Exception) -> None:
        """Report the failure of an environment; the next reset makes another with a new seed."""
        env = self._envs[env_index]
        seed = self._seeds[env_index]
        assert seed is not None, "the first reset needs seeds"
        message = f"failed in {method}(): {type(error).__name__}: {error}"
        if isinstance(error, ContractError):
            # Its message already says what was expected and what to do.
            message = f"in {method}(): {error}"
        failure = self._failure(env_index, message)
        failure.__cause__ = error
        self._on_failure(failure)
        self._envs[env_index] = None
        self._seeds[env_index] = replacement_seed(seed)
        self._needs_seed[env_index] = True
        if env is not None:
            _close(env)

    def _failure(self, env_index: int, message: str) -> EnvironmentFailedError:
        seed = self._seeds[env_index]
        where = f"task '{self._task.name}' ({self._task.env_id}, seed {seed})"
        return EnvironmentFailedError(f"{where} {message}", env_index)

    def _stack(self, rows: Mapping[int, Observation]) -> Observations:
        """Return the observations of k environments as one batch: (…) each -> (k, …)."""
        out: Any = create_empty_array(self._space, n=len(rows), fn=np.zeros)
        if not rows:
            return cast(Observations, out)
        try:
            return cast(Observations, concatenate(self._space, tuple(rows.values()), out))
        except Exception as error:
            # Checking each row first would cost time in every timestep.
            for env_index, row in rows.items():
                if not self._space.contains(row):
                    message = f"gave {describe_value(row)}, which is not in its space"
                    raise self._failure(env_index, message) from error
            raise


def _close(env: AnyEnv) -> None:
    # Closing may fail for the same reason as the environment itself. That error must not hide the
    # first one, nor keep the other environments open.
    with suppress(Exception):
        env.close()


def reported_success(info: Mapping[str, object]) -> int:
    """Return the success that an info reports: 1, 0 or ``NOT_REPORTED``.

    Args:
        info: the info of a timestep.
    """
    # gymnasium-robotics reports "is_success", Meta-World reports "success".
    success = info.get("is_success", info.get("success"))
    if success is None:
        return NOT_REPORTED
    return int(bool(success))
