"""One worker process: its handle in the owner's process, and the loop that it runs."""

import atexit
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TextIO, assert_never, cast

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from mirl.configs.errors import ConfigError
from mirl.configs.imports import allowed_modules, imported_modules, restore_imports
from mirl.envs.pools.backend import EnvironmentFailedError, Step
from mirl.envs.pools.gymnasium import GymnasiumBackend
from mirl.envs.texts.codec import TextWarning
from mirl.envs.type_aliases import Info, Observations

Command = Literal["reset", "step"]
"""Command to a worker about one of its shards."""
Notice = tuple[str, str, str]
"""Message, observation key and topic of a ``TextWarning``."""
FirstObservations = tuple[Observations, dict[int, Info]]
"""Observations of a reset, (k, …), and the infos that are not empty, by row."""
Reply = tuple[
    str | None, FirstObservations | Step | None, Sequence[tuple[str, int]], Sequence[Notice]
]
"""Error message or None, the result, the tolerated failures (message, env index), and warnings."""

SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable that keeps the current folder off ``sys.path``."""
POLL_SECONDS = 1.0
"""Time between two checks whether a silent worker process is still alive."""
MAX_TEMPORARY_FOLDER = 70
"""Longest path of the temporary folder, in bytes, in which a fork server can listen: the path of a
socket has at most 103 bytes, and Python appends about 32 of its own."""
CLOSE_SECONDS = 5.0
"""Time that a worker process gets to close its environments before it is killed."""


class WorkerLostError(Exception):
    """The process that had to reply is gone.

    Args:
        reason: the reason, for the first caller; empty for the later ones.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerTimeoutError(WorkerLostError):
    """The process was killed because it did not reply in time."""


class Worker:
    """The owner's side of a worker process.

    The process starts with the first command; after it was lost, the next command starts a new one.

    Args:
        max_restarts: number of failures of environments that one command tolerates.
        timeout: seconds without a reply after which the process counts as hung.
    """

    def __init__(self, max_restarts: int, timeout: float) -> None:
        self._max_restarts = max_restarts
        self._timeout = timeout
        self._builders: list[CloudpickleWrapper] = []
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self.generation = 0
        """Number of processes that were lost."""
        self.has_replied = False
        """True once a process has replied to a command."""

    def add_envs(self, build: Callable[..., GymnasiumBackend]) -> int:
        """Give the process another shard of environments.

        Args:
            build: function that makes the shard's backend in the process.

        Returns:
            The index of the shard in this worker.
        """
        assert self._process is None, "environments are added before the process starts"
        # Unlike pickle, cloudpickle can send functions that are defined in the user's script.
        self._builders.append(CloudpickleWrapper(build))  # type: ignore[arg-type]
        return len(self._builders) - 1

    @property
    def connection(self) -> Connection:
        """Connection to the process, which is started if it does not run."""
        if self._connection is None:
            context = _context()
            self._connection, child_connection = context.Pipe()
            # A daemon ends with its owner. If the owner is killed, the process reads EOF and ends
            # by itself, unless it hangs.
            imports = (allowed_modules(), imported_modules())
            process: BaseProcess = context.Process(  # type: ignore[attr-defined]
                target=_serve,
                args=(child_connection, self._builders, self._max_restarts, imports),
                daemon=True,
            )
            with _safe_path():
                process.start()
            self._process = process
            # This runs before multiprocessing's own exit handler, which would wait for the process.
            atexit.register(process.kill)
            # Now the child holds the only copy of its end, so its death shows as EOF here.
            child_connection.close()
        return self._connection

    def recv(self, generation: int) -> Reply:
        """Return the next reply.

        Args:
            generation: the generation to which the command was sent.

        Raises:
            WorkerLostError: if the process died, or did not reply in time and was killed. The next
                command starts another process.
        """
        # The command went to a process that is gone, and so will never be answered.
        if generation != self.generation:
            raise WorkerLostError("")
        connection = self.connection
        assert self._process is not None, "a connection has a process"
        deadline = time.monotonic() + self._timeout
        while not connection.poll(min(POLL_SECONDS, self._timeout)):
            # The process may have replied between the poll and its end.
            if not self._process.is_alive() and not connection.poll():
                raise self._died()
            if time.monotonic() > deadline:
                self._terminate()
                raise WorkerTimeoutError(
                    f"a worker process gave no reply for {self._timeout:g} seconds and was killed; "
                    "raise the timeout if the environment is slow"
                )
        try:
            reply = cast(Reply, connection.recv())
        except (EOFError, OSError):  # OSError if it died in the middle of a reply
            raise self._died() from None
        self.has_replied = True
        return reply

    def _died(self) -> WorkerLostError:
        assert self._process is not None, "only a process that was started can die"
        self._process.join(CLOSE_SECONDS)
        code = self._process.exitcode
        self._terminate()
        return WorkerLostError(f"a worker process died, exit code {code}")

    def _terminate(self) -> None:
        """Kill the process; the next command starts another."""
        if self._process is not None:
            self._process.kill()
        self.join()
        # The next command starts a process, and replies to older commands are no longer expected.
        self._connection = None
        self.generation += 1

    def ask_to_close(self) -> None:
        """Ask the process to close its environments and to end."""
        if self._connection is not None:
            with suppress(OSError):  # the process may be dead already
                self._connection.send((0, "close", None))

    def join(self) -> None:
        """Wait for the end of the process, and kill it after ``CLOSE_SECONDS``."""
        if self._connection is None or self._process is None:
            return
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        atexit.unregister(self._process.kill)
        self._connection.close()
        self._process.close()


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep Python's helper processes from importing modules of the current folder.

    The fork server starts as ``python -c``, which searches the current folder first. Workers get
    the ``sys.path`` of their owner.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def _context() -> BaseContext:
    # A forked child of a process with threads (torch's, EnvPool's) can hang. A fork server has no
    # threads, and it imports what the workers need once for all of them.
    no_fork_server = "forkserver" not in multiprocessing.get_all_start_methods()
    if no_fork_server or len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_FOLDER:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mirl.envs.pools.workers"])
    return context


def _serve(
    connection: Connection,
    builders: Sequence[CloudpickleWrapper],
    max_restarts: int,
    imports: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Run a worker process: reply to commands until the owner closes it or is gone.

    Args:
        connection: connection to the owner.
        builders: one function per shard that makes its backend.
        max_restarts: number of failures of environments that one command tolerates.
        imports: modules that the owner allowed and those that it imported.
    """
    # Both signals may reach the whole process group; the owner decides when to end.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    restore_imports(*imports)
    backends: dict[int, GymnasiumBackend] = {}
    tolerated: list[tuple[str, int]] = []
    notices = _forward_text_warnings()

    def tolerate(failure: EnvironmentFailedError) -> None:
        if len(tolerated) == max_restarts:
            raise failure
        tolerated.append((str(failure), failure.env_index))

    try:
        while True:
            shard, command, argument = connection.recv()
            if command == "close":
                break
            # The owner counts failures over all workers, so each reply starts a new list.
            tolerated.clear()
            notices.clear()
            try:
                if shard not in backends:
                    # Built at the first command, so that an error is sent as a reply.
                    backend = builders[shard].fn(on_failure=tolerate)
                    backends[shard] = cast(GymnasiumBackend, backend)
                result = _execute(backends[shard], command, argument)
                # Inside the block, because a result that cannot be pickled is an error as well.
                connection.send((None, result, tolerated, notices))
            except ConfigError as error:
                connection.send((str(error), None, (), ()))
            except EnvironmentFailedError as error:
                if isinstance(error.__cause__, ConfigError):
                    # It says all that a user needs, so a traceback would only bury it.
                    connection.send((str(error), None, (), ()))
                    continue
                connection.send(_error_reply(str(error), error))
            except Exception as error:
                connection.send(_error_reply(f"{type(error).__name__}: {error}", error))
    except (EOFError, OSError):
        return  # the owner is gone
    for backend in backends.values():
        backend.close()


def _forward_text_warnings() -> list[Notice]:
    """Collect warnings about texts from now on, so that the owner shows each of them once.

    Returns:
        The list to which they are appended.
    """
    notices: list[Notice] = []
    show_as_usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if isinstance(message, TextWarning):
            notices.append((str(message), message.key, message.topic))
        else:
            show_as_usual(message, category, filename, lineno, file, line)

    # Python prints every warning through this function
    warnings.showwarning = show
    return notices


def _execute(
    backend: GymnasiumBackend, command: Command, argument: Any
) -> FirstObservations | Step:
    """Return the result of a command for one shard."""
    match command:
        case "reset":
            env_indices, (seeds, options) = argument
            if seeds is not None:
                backend.seed(seeds)
            backend.send_reset(env_indices, options)
            return backend.recv_reset(), _plain_infos(backend.reset_infos)
        case "step":
            env_indices, actions = argument
            backend.send(env_indices, actions)
            step = backend.recv()
            return replace(step, infos=_plain_infos(step.infos))
        case _:
            assert_never(command)


def _plain_infos(infos: dict[int, Info]) -> dict[int, Info]:
    """Return only the plain entries, which the owner can unpickle whatever it has imported."""
    plain: dict[int, Info] = {}
    for row, info in infos.items():
        plain[row] = {key: value for key, value in info.items() if _is_plain(value)}
    return plain


def _is_plain(value: object, depth: int = 8) -> bool:
    """Return True for numbers, strings, arrays of numbers, and containers of these."""
    # exact types, because a class derived from them may be the user's
    kind = type(value)
    if kind in (bool, int, float, complex, str, bytes, type(None)) or isinstance(value, np.generic):
        return True
    if kind is np.ndarray:
        return not cast(np.ndarray, value).dtype.hasobject
    if depth == 0:  # also stops at a container that contains itself
        return False
    if kind is dict:
        items = cast(dict[object, object], value).items()
        return all(_is_plain(key) and _is_plain(item, depth - 1) for key, item in items)
    if kind in (list, tuple):
        return all(_is_plain(item, depth - 1) for item in cast(Sequence[object], value))
    return False


def _error_reply(message: str, error: Exception) -> Reply:
    """Return a reply with an error and its traceback in the worker."""
    lines = traceback.format_exception(error.__cause__ or error)
    return (f"{message}\nIn the worker:\n{''.join(lines)}", None, (), ())
