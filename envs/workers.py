"""A ``gymnasium`` pool spread over a few worker processes, each of which steps its own chunk of slots."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Literal, assert_never, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import CloudpickleWrapper
from numpy.typing import NDArray

from mirl.configs.tasks import TaskConfig
from mirl.envs.gymnasium_pool import GymnasiumPool
from mirl.envs.making import ObservationKind, find_spec
from mirl.envs.pool import EnvironmentFailedError, Observations, Slots, Step, join_observations, join_steps

Command = Literal["reset", "step"]

POLL_SECONDS = 1.0
"""Time between two looks at whether a silent worker still lives."""
CLOSE_SECONDS = 5.0
"""Time that a worker gets to close its environments before it is ended."""


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """n environments of one task in ``workers`` processes."""

    def __init__(
        self,
        task: TaskConfig,
        n: int,
        task_index: int = 0,
        n_tasks: int = 1,
        observation: ObservationKind = "grid",
        *,
        workers: int,
    ) -> None:
        chunks = np.array_split(np.arange(n), min(workers, n))
        self._first_slots = [int(chunk[0]) for chunk in chunks]
        # The registration travels along: a worker has imported neither the user's script nor his notebook.
        spec = find_spec(task)
        self._workers = [
            _Worker(task, partial(_build, spec, task, len(chunk), task_index, n_tasks, observation)) for chunk in chunks
        ]
        self._new_seeds: list[list[int] | None] = [None] * len(chunks)
        self._busy: list[_Worker] = []

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams, one seed per slot, each at its slot's next reset."""
        ends = [*self._first_slots[1:], len(seeds)]
        self._new_seeds = [
            [int(seed) for seed in seeds[start:end]] for start, end in zip(self._first_slots, ends, strict=True)
        ]

    def send_reset(self, slots: Slots) -> None:
        """Start an episode in slots (k,)."""
        self._busy = []
        for index, _, own_slots in self._shares(slots):
            seeds, self._new_seeds[index] = self._new_seeds[index], None
            self._send(index, "reset", (own_slots, seeds))

    def recv_reset(self) -> Observations:
        """The first observations of these episodes."""
        return join_observations([worker.recv() for worker in self._busy])

    def send(self, slots: Slots, actions: NDArray[Any]) -> None:
        """Start a timestep of slots (k,) with valid actions (k, …)."""
        self._busy = []
        for index, rows, own_slots in self._shares(slots):
            self._send(index, "step", (own_slots, actions[rows]))

    def recv(self) -> Step:
        """Finish it."""
        return join_steps([worker.recv() for worker in self._busy])

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.ask_to_close()
        for worker in workers:
            worker.join()

    def _shares(self, slots: Slots) -> Iterator[tuple[int, slice, Slots]]:
        """Worker, rows of ``slots`` and their numbers in that worker, for each worker that has any of them."""
        bounds = [*np.searchsorted(slots, self._first_slots).tolist(), len(slots)]
        for index, (start, end) in enumerate(pairwise(bounds)):
            if end > start:
                yield index, slice(start, end), slots[start:end] - self._first_slots[index]

    def _send(self, index: int, command: Command, argument: Any) -> None:
        self._workers[index].send(command, argument)
        self._busy.append(self._workers[index])


class _Worker:
    """The owner's side of one worker process."""

    def __init__(self, task: TaskConfig, build: Callable[[], GymnasiumPool]) -> None:
        context = _context()
        # Gymnasium's wrapper is made for functions that build its environments, and carries any function
        portable = CloudpickleWrapper(build)  # type: ignore[type-var]
        self._task = task
        self._connection, theirs = context.Pipe()
        # A daemon: it is ended with its owner, and ends by itself (EOF) when its owner was killed.
        self._process = context.Process(target=_serve, args=(theirs, portable), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def send(self, command: Command, argument: Any) -> None:
        try:
            self._connection.send((command, argument))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def recv(self) -> Any:
        try:
            while not self._connection.poll(POLL_SECONDS):
                if not self._process.is_alive() and not self._connection.poll():
                    raise EOFError
            failure, answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error
        if failure is not None:
            raise EnvironmentFailedError(failure)
        return answer

    def ask_to_close(self) -> None:
        with suppress(OSError):  # it may be dead already
            self._connection.send(("close", None))

    def join(self) -> None:
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._process.close()

    def _death(self) -> EnvironmentFailedError:
        self._process.join(CLOSE_SECONDS)
        return EnvironmentFailedError(
            f"task '{self._task.name}' ({self._task.env_id}): a worker process died, exit code "
            f"{self._process.exitcode}. If it happened at the start: the script that creates the environments must do "
            "so under `if __name__ == '__main__':`, because each worker imports that script."
        )


def _context() -> BaseContext:
    # A forked child of a process with threads (torch's, EnvPool's) can hang. A fork server has none, and it imports
    # what the workers need once for all of them.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mirl.envs.workers"])
    return context


def _serve(connection: Connection, build: Any) -> None:
    """The worker's life: build a chunk of environments, answer commands with (failure, answer), end with its owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    pool: GymnasiumPool | None = None
    try:
        while (message := connection.recv())[0] != "close":
            try:
                if pool is None:
                    pool = cast(GymnasiumPool, build.fn())
                connection.send((None, _answer(pool, *message)))
            except EnvironmentFailedError as error:
                connection.send((f"{error}\n{_worker_traceback(error)}", None))
            except Exception as error:
                connection.send((f"{type(error).__name__}: {error}\n{_worker_traceback(error)}", None))
    except (EOFError, OSError):
        return  # the owner is gone
    if pool is not None:
        pool.close()


def _build(spec: EnvSpec, *arguments: Any) -> GymnasiumPool:
    gym.registry.setdefault(spec.id, spec)
    return GymnasiumPool(*arguments)


def _answer(pool: GymnasiumPool, command: Command, argument: Any) -> Observations | Step:
    match command:
        case "reset":
            slots, seeds = argument
            if seeds is not None:
                pool.seed(seeds)
            pool.send_reset(slots)
            return pool.recv_reset()
        case "step":
            pool.send(*argument)
            return pool.recv()
        case _:
            assert_never(command)


def _worker_traceback(error: Exception) -> str:
    return "In the worker:\n" + "".join(traceback.format_exception(error.__cause__ or error))
