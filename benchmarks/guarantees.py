"""Rows, sizes and training processes that the parts of ``reliability.py`` share."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from machine import ROOT

SMALL = [
    "agent.n_envs=8",
    "agent.n_steps=32",
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
]
"""Options of a small and fast agent."""
KILLED_RUNS = [
    "agent=ppo backend=envpool",
    "agent=ppo backend=gymnasium",
    "agent=a2c backend=envpool",
    "agent=a2c backend=gymnasium",
]


class Scale(NamedTuple):
    """Size of the tests of each part."""

    kills: int
    configurations: int
    fuzz_seconds: int
    soak_seconds: int
    killed_runs: list[str]
    interrupts: int
    """Runs that Ctrl-C ends while they import their modules."""
    scalars: int
    """Values of config.yaml that an odd scalar replaces."""
    faults: list[str]
    """Disk faults with which a run is resumed, half a minute each."""


FULL = Scale(
    kills=20,
    configurations=10_000,
    fuzz_seconds=600,
    soak_seconds=1800,
    killed_runs=KILLED_RUNS,
    interrupts=20,
    scalars=2_000,
    faults=["full disk", "read-only file system", "another user's directory"],
)
QUICK = Scale(
    kills=2,
    configurations=100,
    fuzz_seconds=15,
    soak_seconds=40,
    killed_runs=KILLED_RUNS[:1],
    interrupts=2,
    scalars=100,
    faults=[],
)


class Row(NamedTuple):
    """A row of the table."""

    guarantee: str
    test: str
    result: str
    holds: bool


def start(options: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a training process and wait until it is training.

    Args:
        options: Options of ``train.py``.
        **variables: Environment variables to add.

    Raises:
        RuntimeError: If the process does not report that it is training.
    """
    command = [sys.executable, str(ROOT / "train.py"), "progress=false", *options]
    environment = {**os.environ, **variables}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not re.match("Training for|Resuming at", line) and process.poll() != 0:
        raise RuntimeError(f"expected training to start, got {line!r} from: {' '.join(command)}")
    return process


def entry_names(folder: Path) -> list[str]:
    """Return the names of the entries of a folder.

    Args:
        folder: The folder.
    """
    return [path.name for path in folder.iterdir()]
