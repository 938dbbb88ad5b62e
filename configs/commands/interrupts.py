"""Ctrl-C while a command imports its modules; itself loaded first, with only standard modules."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + 2, the number of SIGINT, as in a shell."""


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """End the process at once on Ctrl-C within the context, in which no files may be written.

    It is for imports, which take seconds. An exception there would print a traceback, or might not
    end the process at all: libraries turn it into their own errors, or catch it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    # only the main thread can handle signals, and a shell's background job ignores this one
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    previous = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)
