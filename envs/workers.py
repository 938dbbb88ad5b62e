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


class Workers:
    """Processes that the pools of a suite's tasks share: fifty tasks need no fifty processes."""

    def __init__(self, n: int) -> None:
        self._processes = [_Worker() for _ in range(n)]
        self._next = 0

    def __len__(self) -> int:
        return len(self._processes)

    def take(self, n: int) -> "list[_Worker]":
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


class WorkerPool:
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
        self._first_slots = [int(part[0]) for part in parts]
        # The registration travels along: a worker has imported neither the user's script nor his notebook.
        spec = find_spec(task)
        self._chunks = [
            _Chunk(worker, task, partial(_build, spec, task, len(part), task_index, n_tasks, observation))
            for worker, part in zip(workers.take(len(parts)), parts, strict=True)
        ]
        self._new_seeds: list[list[int] | None] = [None] * len(parts)
        self._busy: list[_Chunk] = []

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
        return join_observations([chunk.recv() for chunk in self._busy])

    def send(self, slots: Slots, actions: NDArray[Any]) -> None:
        """Start a timestep of slots (k,) with valid actions (k, …)."""
        self._busy = []
        for index, rows, own_slots in self._shares(slots):
            self._send(index, "step", (own_slots, actions[rows]))

    def recv(self) -> Step:
        """Finish it."""
        return join_steps([chunk.recv() for chunk in self._busy])

    def close(self) -> None:
        """Nothing: whoever made the workers ends them."""

    def _shares(self, slots: Slots) -> Iterator[tuple[int, slice, Slots]]:
        """Chunk, rows of ``slots`` and their numbers in that chunk, for each chunk that has any of them."""
        bounds = [*np.searchsorted(slots, self._first_slots).tolist(), len(slots)]
        for index, (start, end) in enumerate(pairwise(bounds)):
            if end > start:
                yield index, slice(start, end), slots[start:end] - self._first_slots[index]

    def _send(self, index: int, command: Command, argument: Any) -> None:
        self._chunks[index].send(command, argument)
        self._busy.append(self._chunks[index])


class _Chunk:
    """Some environments of a task, in one worker."""

    def __init__(self, worker: "_Worker", task: TaskConfig, build: Callable[[], GymnasiumPool]) -> None:
        self._worker, self._task = worker, task
        self._number = worker.host(build)

    def send(self, command: Command, argument: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # recv tells of a death, in the order of what was asked
            self._worker.connection.send((self._number, command, argument))

    def recv(self) -> Any:
        try:
            failure, answer = self._worker.answer()
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error
        if failure is not None:
            raise EnvironmentFailedError(failure)
        return answer

    def _death(self) -> EnvironmentFailedError:
        return EnvironmentFailedError(
            f"task '{self._task.name}' ({self._task.env_id}): a worker process died, exit code "
            f"{self._worker.exit_code()}. If it happened at the start: the script that creates the environments must "
            "do so under `if __name__ == '__main__':`, because each worker imports that script."
        )


class _Worker:
    """The owner's side of one worker process; it starts when it gets its first work."""

    def __init__(self) -> None:
        self._builds: list[Any] = []
        self._process: Any = None
        self._connection: Connection | None = None

    def host(self, build: Callable[[], GymnasiumPool]) -> int:
        """Let the process have another chunk; its number there."""
        assert self._process is None, "chunks are given to a worker before it starts"
        # Gymnasium's wrapper carries any function, its own or not
        self._builds.append(CloudpickleWrapper(build))
        return len(self._builds) - 1

    @property
    def connection(self) -> Connection:
        """To the process, which runs from the first use on."""
        if self._connection is None:
            context = _context()
            self._connection, theirs = context.Pipe()
            # A daemon: it is ended with its owner, and ends by itself (EOF) when its owner was killed.
            self._process = context.Process(target=_serve, args=(theirs, self._builds), daemon=True)  # type: ignore[attr-defined]
            self._process.start()
            theirs.close()
        return self._connection

    def answer(self) -> Any:
        """The next one; EOFError when the process died."""
        while not self.connection.poll(POLL_SECONDS):
            if not self._process.is_alive() and not self.connection.poll():
                raise EOFError
        return self.connection.recv()

    def exit_code(self) -> int | None:
        """Of the process, which has died or is about to."""
        self._process.join(CLOSE_SECONDS)
        return cast(int | None, self._process.exitcode)

    def ask_to_close(self) -> None:
        """Let it end its environments."""
        if self._connection is not None:
            with suppress(OSError):  # it may be dead already
                self._connection.send((0, "close", None))

    def join(self) -> None:
        """Wait for its end, for a while."""
        if self._connection is None:
            return
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._process.close()


def _context() -> BaseContext:
    # A forked child of a process with threads (torch's, EnvPool's) can hang. A fork server has none, and it imports
    # what the workers need once for all of them.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mirl.envs.workers"])
    return context


def _serve(connection: Connection, builds: Sequence[Any]) -> None:
    """The worker's life: build its chunks, answer commands with (failure, answer), end with its owner."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    pools: dict[int, GymnasiumPool] = {}
    try:
        while (message := connection.recv())[1] != "close":
            number, command, argument = message
            try:
                if number not in pools:
                    pools[number] = cast(GymnasiumPool, builds[number].fn())
                connection.send((None, _answer(pools[number], command, argument)))
            except EnvironmentFailedError as error:
                connection.send((f"{error}\n{_worker_traceback(error)}", None))
            except Exception as error:
                connection.send((f"{type(error).__name__}: {error}\n{_worker_traceback(error)}", None))
    except (EOFError, OSError):
        return  # the owner is gone
    for pool in pools.values():
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
