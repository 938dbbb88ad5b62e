"""One worker process: its owner's side, which starts it and starts another when it was lost, and its own generation."""

import atexit
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Literal, assert_never, cast

from gymnasium.vector.utils import CloudpickleWrapper

from mirl.envs.pools.backend import EnvironmentFailedError, Observations, Step
from mirl.envs.pools.gymnasium import GymnasiumBackend

Command = Literal["reset", "step"]

POLL_SECONDS = 1.0
"""Time between two looks at whether a silent worker still lives."""
CLOSE_SECONDS = 5.0
"""Time that a worker gets to close its environments before it is ended."""


class LostError(Exception):
    """The process that was asked is gone.

    Args:
        reason: how, for the first who asks; "" for the others.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HungError(LostError):
    """The process was ended, since it gave no answer."""


class Worker:
    """The owner's side of a worker process; it starts when it gets its first work, and again after one was lost."""

    def __init__(self, max_restarts: int, timeout: float) -> None:
        self._most_restarts, self._timeout = max_restarts, timeout
        self._builds: list[Any] = []
        self._process: Any = None
        self._connection: Connection | None = None
        self.generation = 0
        """The number of processes that were lost."""
        self.has_answered = False

    def add_envs(self, build: Callable[..., GymnasiumBackend]) -> int:
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
            arguments = (theirs, self._builds, self._most_restarts)
            # A daemon: it is ended with its owner, and ends by itself (EOF) when its owner was killed, unless it hangs.
            self._process = context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
            self._process.start()
            atexit.register(
                self._process.kill
            )  # before multiprocessing's own, which would ask it to end and wait
            theirs.close()
        return self._connection

    def answer(self, generation: int) -> Any:
        """The next one, to what was asked in this generation.

        Raises:
            LostError: the process died, or did not answer in time and was ended; there will be another.
        """
        if generation != self.generation:
            raise LostError("")
        connection, patience = self.connection, time.monotonic() + self._timeout
        while not connection.poll(min(POLL_SECONDS, self._timeout)):
            if not self._process.is_alive() and not connection.poll():
                raise self._died()
            if time.monotonic() > patience:
                self._terminate()
                raise HungError(
                    f"a worker process gave no answer for {self._timeout:g} seconds and was ended"
                )
        try:
            answer = connection.recv()
        except (EOFError, OSError):  # the latter in the middle of an answer
            raise self._died() from None
        self.has_answered = True
        return answer

    def _died(self) -> LostError:
        self._process.join(CLOSE_SECONDS)
        code = self._process.exitcode
        self._terminate()
        return LostError(f"a worker process died, exit code {code}")

    def _terminate(self) -> None:
        """End what is left of the process; there will be another."""
        self._process.kill()
        self.join()
        self._connection, self.generation = None, self.generation + 1

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
        atexit.unregister(self._process.kill)
        self._connection.close()
        self._process.close()


def _context() -> BaseContext:
    # A forked child of a process with threads (torch's, EnvPool's) can hang. A fork server has none, and it imports
    # what the workers need once for all of them.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mirl.envs.pools.workers"])
    return context


def _serve(connection: Connection, builds: Sequence[Any], max_restarts: int) -> None:
    """The worker's generation: build its chunks, answer commands, end with its owner.

    An answer is (failure, what was asked for, failures that were survived).
    """
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # both may reach the whole group; the owner decides
        signal.signal(number, signal.SIG_IGN)
    pools: dict[int, GymnasiumBackend] = {}
    survived: list[tuple[str, int]] = []

    def survive(failure: EnvironmentFailedError) -> None:
        if len(survived) == max_restarts:
            raise failure
        survived.append((str(failure), failure.slot))

    try:
        while (message := connection.recv())[1] != "close":
            number, command, argument = message
            survived.clear()
            try:
                if number not in pools:
                    pools[number] = cast(GymnasiumBackend, builds[number].fn(on_failure=survive))
                connection.send((None, _answer(pools[number], command, argument), survived))
            except EnvironmentFailedError as error:
                connection.send((f"{error}\n{_worker_traceback(error)}", None, ()))
            except Exception as error:
                connection.send(
                    (f"{type(error).__name__}: {error}\n{_worker_traceback(error)}", None, ())
                )
    except (EOFError, OSError):
        return  # the owner is gone
    for pool in pools.values():
        pool.close()


def _answer(pool: GymnasiumBackend, command: Command, argument: Any) -> Observations | Step:
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
