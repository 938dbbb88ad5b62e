"""A ``gymnasium`` pool spread over a few worker processes, each of which steps its own chunk of slots."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from mirl.configs.tasks import TaskConfig
from mirl.envs.make import ObservationKind, find_spec
from mirl.envs.pools.backend import (
    EnvIndices,
    EnvironmentFailedError,
    Observations,
    Restarts,
    Step,
    join_observations,
    join_steps,
)
from mirl.envs.pools.gymnasium import GymnasiumBackend
from mirl.envs.pools.worker_process import Command, HungError, LostError, Worker
from mirl.envs.seeds import another_seed

SEEDS_SHOWN = 3
"""Seeds that a message names where any of several environments may be meant."""
TIMEOUT = 300.0
"""Seconds that a worker may take for an answer, where nothing else is said."""


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that the pools of a suite's tasks share: fifty tasks need no fifty processes.

    Args:
        n: so many.
        restarts: how often environments and processes that failed are made anew.
        timeout: seconds after which a process that does not answer is ended.
    """

    def __init__(self, n: int, restarts: Restarts | None = None, timeout: float = TIMEOUT) -> None:
        self.restarts = restarts or Restarts()
        self._processes = [Worker(self.restarts.max_restarts, timeout) for _ in range(n)]
        self._next = 0

    def __len__(self) -> int:
        return len(self._processes)

    def take(self, n: int) -> list[Worker]:
        """n of them, so that all are taken equally often."""
        taken = [self._processes[(self._next + i) % len(self)] for i in range(n)]
        self._next = (self._next + n) % len(self)
        return taken

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        processes, self._processes = self._processes, []
        for worker in processes:
            worker.ask_to_close()
        for worker in processes:
            worker.join()


class WorkerBackend:
    """n environments of one task, in chunks, each in one of ``workers``.

    Each worker answers in the order in which it was asked: pools that share workers are received as they were sent.
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
        chunks: int,
    ) -> None:
        parts = np.array_split(np.arange(n), min(chunks, len(workers), n))
        self._first_env_indices = [int(part[0]) for part in parts]
        # The registration travels along: a worker has imported neither the user's script nor his notebook.
        build = partial(_build, find_spec(task), task, task_index, n_tasks, observation)
        self._chunks = [
            _Chunk(worker, task, build, len(part), workers.restarts)
            for worker, part in zip(workers.take(len(parts)), parts, strict=True)
        ]
        self._busy: list[_Chunk] = []

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams, one seed per slot, each at its slot's next reset."""
        ends = [*self._first_env_indices[1:], len(seeds)]
        for chunk, start, end in zip(self._chunks, self._first_env_indices, ends, strict=True):
            chunk.seed([int(seed) for seed in seeds[start:end]])

    def send_reset(self, slots: EnvIndices) -> None:
        """Start an episode in slots (k,)."""
        self._busy = []
        for chunk, _, own_slots in self._shares(slots):
            chunk.send_reset(own_slots)
            self._busy.append(chunk)

    def recv_reset(self) -> Observations:
        """The first observations of these episodes."""
        return join_observations([chunk.recv_reset() for chunk in self._busy])

    def send(self, slots: EnvIndices, actions: NDArray[Any]) -> None:
        """Start a timestep of slots (k,) with valid actions (k, …)."""
        self._busy = []
        for chunk, rows, own_slots in self._shares(slots):
            chunk.send(own_slots, actions[rows])
            self._busy.append(chunk)

    def recv(self) -> Step:
        """Finish it."""
        return join_steps([chunk.recv() for chunk in self._busy])

    def close(self) -> None:
        """Nothing: whoever made the workers ends them."""

    def _shares(self, slots: EnvIndices) -> "Iterator[tuple[_Chunk, slice, EnvIndices]]":
        """Chunk, rows of ``slots`` and their numbers in that chunk, for each chunk that has any of them."""
        bounds = [*np.searchsorted(slots, self._first_env_indices).tolist(), len(slots)]
        for chunk, first, (start, end) in zip(
            self._chunks, self._first_env_indices, pairwise(bounds), strict=True
        ):
            if end > start:
                yield chunk, slice(start, end), slots[start:end] - first


class _Chunk:
    """n environments of a task, in one worker. When that is gone, so are their episodes; the next begin in another."""

    def __init__(
        self,
        worker: Worker,
        task: TaskConfig,
        build: Callable[..., GymnasiumBackend],
        n: int,
        restarts: Restarts,
    ) -> None:
        self._worker, self._task, self._restarts = worker, task, restarts
        self._number, self._generation = worker.add_envs(partial(build, n)), worker.generation
        self._seeds: list[int] = []
        self._seeds_are_new = False
        self._playing = np.zeros(n, dtype=np.bool_)
        self._asked: EnvIndices = np.arange(0)
        self._like: Observations = {}

    def seed(self, seeds: list[int]) -> None:
        self._seeds, self._seeds_are_new = seeds, True

    def send_reset(self, slots: EnvIndices) -> None:
        self._follow_worker()
        seeds, self._seeds_are_new = (self._seeds if self._seeds_are_new else None), False
        self._ask("reset", slots, seeds)

    def recv_reset(self) -> Observations:
        while True:
            try:
                self._like = self._answer()
            except LostError:
                self.send_reset(self._asked)
            else:
                self._playing[self._asked] = True
                return self._like

    def send(self, slots: EnvIndices, actions: NDArray[Any]) -> None:
        self._follow_worker()
        self._stepping = self._playing[slots]
        if self._stepping.any():
            self._ask("step", slots[self._stepping], actions[self._stepping])

    def recv(self) -> Step:
        step, stepping = None, self._stepping
        if stepping.any():
            with suppress(LostError):
                step = self._answer()
        if step is None:
            return _all_failed(self._like, len(stepping))
        if stepping.all():
            return step
        step = step.scattered(stepping, len(stepping))
        step.failed[~stepping] = True
        return step

    def _follow_worker(self) -> None:
        if self._generation != self._worker.generation:
            self._generation = self._worker.generation
            self._playing[:] = False
            if not self._seeds_are_new:
                self.seed([another_seed(seed) for seed in self._seeds])

    def _ask(self, command: Command, slots: EnvIndices, argument: Any) -> None:
        self._asked = slots
        with suppress(
            BrokenPipeError, ConnectionResetError
        ):  # the answer tells of a death, in the order of asking
            self._worker.connection.send((self._number, command, (slots, argument)))

    def _answer(self) -> Any:
        try:
            failure, answer, survived = self._worker.answer(self._generation)
        except LostError as lost:
            if lost.reason:
                self._count_loss(lost)
            raise
        if failure is not None:
            raise EnvironmentFailedError(failure)
        for message, slot in survived:
            self._restarts.count(EnvironmentFailedError(message))
            self._seeds[slot] = another_seed(self._seeds[slot])  # as the worker's pool has done
        return answer

    def _count_loss(self, lost: LostError) -> None:
        seeds = [self._seeds[slot] for slot in self._asked.tolist()]
        one_of = f"one of the seeds {', '.join(map(str, seeds[:SEEDS_SHOWN]))}" + ", …" * (
            len(seeds) > SEEDS_SHOWN
        )
        whose = f"seed {seeds[0]}" if len(seeds) == 1 else one_of
        failure = f"task '{self._task.name}' ({self._task.env_id}, {whose}): {lost.reason}"
        if not self._worker.has_answered and not isinstance(lost, HungError):
            raise EnvironmentFailedError(
                f"{failure}, at its start. The script that creates the environments must do so under "
                "`if __name__ == '__main__':`, because each worker imports that script."
            )
        self._restarts.count(EnvironmentFailedError(failure))


def _all_failed(like: Observations, k: int) -> Step:
    obs = {key: np.zeros((k, *values.shape[1:]), values.dtype) for key, values in like.items()}
    no, nothing = np.zeros(k, np.bool_), np.zeros(k, np.int8)
    return Step(obs, np.zeros(k, np.float32), no, no.copy(), nothing, np.ones(k, np.bool_))


def _build(
    spec: EnvSpec,
    task: TaskConfig,
    task_index: int,
    n_tasks: int,
    observation: ObservationKind,
    n: int,
    *,
    on_failure: Callable[[EnvironmentFailedError], None],
) -> GymnasiumBackend:
    gym.registry.setdefault(spec.id, spec)
    return GymnasiumBackend(task, n, task_index, n_tasks, observation, on_failure)
