"""The process of a job: its log, stopping it, and the lock of its run directory."""

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
"""Seconds between checks for the file."""
LOCK_SECONDS = 60
"""Seconds to wait until the process of a killed command releases the run directory."""


@contextmanager
def job_process(log_path: Path, stop_file: Path) -> Iterator[Callable[[str], None]]:
    """Prepare this process for a job.

    Args:
        log_path: file for all output, including the traceback of an error.
        stop_file: file whose existence interrupts the training, as Ctrl-C does.

    Yields:
        A function that logs a line.
    """
    with _logged(log_path) as log, _stop_on_request(stop_file):
        _reset_start_method()
        load_plugins()
        yield log


def wait_for_lock(run_dir: Path, stop_file: Path) -> None:
    """Wait until another process releases a run directory; if it does not, ``train`` raises.

    Local processes end soon after the command that started them. The jobs of a cluster continue
    without it, and a repeated command waits until they end.

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
    """Redirect all output and the traceback of an error to a file; yield a log function."""
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
    """Interrupt the training as Ctrl-C does once the file exists or the owner has died.

    The owner of this process may be killed before it can write the file.
    """
    owner = os.environ.get(OWNER)
    # A second signal, sent from here, must not kill a training that Ctrl-C has already reached.
    # Outside of training, signals are ignored because there is nothing to save.
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
    """Reset multiprocessing's start method, which loky sets to itself but environments need."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)
