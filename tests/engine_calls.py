"""Function for an engine's processes, in a module that imports nothing heavy."""

import os
import signal


def call(item: int) -> tuple[int, str]:
    """Return the process and its threads; fail for 1, die for 2."""
    if item == 1:
        raise ValueError("one")
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), os.environ["OMP_NUM_THREADS"]
