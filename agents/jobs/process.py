"""The process of a job: its log, how it is stopped, and its run directory."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from filelock import FileLock, Timeout

from mirl.agents.jobs.local import OWNER
from mirl.agents.runs.run_directory import LOCK
from mirl.configs.imports import load_plugins

STOP = "stop"
"""File that asks all jobs of a folder to save a checkpoint and to end."""
POLL_SECONDS = 0.5
"""Seconds between two looks at the file."""
LOCK_SECONDS = 60
"""Seconds to wait for the process of a command that was killed to leave the run directory."""


@contextmanager
def job_process(log_path: Path, stop_file: Path) -> Iterator[Callable[[str], None]]:
    """Prepare this process for a job.

    Args:
        log_path: file for all that is printed, and the traceback of an error.
        stop_file: file whose existence interrupts the training, as Ctrl-C does.

    Yields:
        A function that logs a line.
    """
    with _logged(log_path) as log, _stop_on_request(stop_file):
        _reset_start_method()
        load_plugins()
        yield log


def wait_for_lock(run_dir: Path, stop_file: Path) -> None:
    """Wait until another process has left a run directory; if it does not, train says so.

    Processes of this machine end soon after the command that has started them. The jobs of a
    cluster go on without it, and a repeated command waits for them to the end.

    Args:
        run_dir: the run directory, which need not exist.
        stop_file: file whose existence ends the waiting.
    """
    if not run_dir.exists():
        return
    deadline = time.monotonic() + LOCK_SECONDS
    while not stop_file.exists():
        try:
            with FileLock(run_dir / LOCK, timeout=1):
                return
        except Timeout:
            if OWNER in os.environ and time.monotonic() > deadline:
                return


@contextmanager
def _logged(path: Path) -> Iterator[Callable[[str], None]]:
    """Write all that is printed to a file, and the traceback of an error; yield a log function."""
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        try:
            yield lambda line: print(line, file=file)
        except Exception:
            traceback.print_exc()
            raise


@contextmanager
def _stop_on_request(stop_file: Path) -> Iterator[None]:
    """Interrupt the training as Ctrl-C does once the file exists, or the owner has died.

    The process that owns this one may be killed without a chance to write the file.
    """
    owner = os.environ.get(OWNER)
    # A training that Ctrl-C has reached must not be ended by the second signal, from here. Outside
    # of the training there is nothing to save.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            if stop_file.exists() or owner not in (None, str(os.getppid())):
                # more than once, because the training may only begin later
                os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()  # so that no signal follows
        signal.signal(signal.SIGINT, previous)


def _reset_start_method() -> None:
    """Undo that loky has named itself as the way to start processes, which environments need."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)
