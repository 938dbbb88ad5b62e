"""Commands that are run as processes, and killed."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def environment(*folders: Path) -> dict[str, str]:
    """Return the variables of a process that finds the modules of some folders."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), *map(str, folders)]))
    changes = {"PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **changes, "CUDA_VISIBLE_DEVICES": ""}


def kill_after_first_record(
    command: Sequence[str], folder: Path, records: str, variables: dict[str, str]
) -> list[Path]:
    """Start a command, kill it and its processes when a run is finished; return the records.

    ``records`` is the pattern of the records in the folder.
    """
    process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(folder.glob(records)):
            assert process.poll() is None
            assert time.monotonic() < deadline, "no run was finished"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return list(folder.glob(records))
