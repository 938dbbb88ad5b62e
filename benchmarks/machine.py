"""Results files of the benchmarks: a table, its measurements, the command and the machine."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
"""Root folder of the repository."""

RESULTS = ROOT / "benchmarks" / "results"
"""Folder of the results files."""

PACKAGES = (
    "mirl",
    "torch",
    "numpy",
    "gymnasium",
    "minigrid",
    "stable-baselines3",
    "envpool",
)
"""Packages whose versions are recorded."""

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of ``ru_maxrss``: macOS reports bytes, Linux kibibytes."""


def write_results(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    measurements: object,
) -> None:
    """Write ``results/NAME.json``; ``tables.py`` copies its table into the documents.

    Args:
        name: The name of the results file.
        columns: The header of the table.
        rows: The cells of the table, one list per row.
        measurements: The raw measurements behind the table, as JSON values.
    """
    report = {
        "command": command_line(),
        "machine": machine(),
        "columns": columns,
        "rows": rows,
        "measurements": measurements,
    }
    text = json.dumps(report, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def command_line() -> str:
    """Return the command of this process, without the folder of the script."""
    script = Path(sys.argv[0]).name
    return shlex.join([script, *sys.argv[1:]])


def machine() -> dict[str, object]:
    """Return the processor, its usable cores, the device and the versions of ``PACKAGES``."""
    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "processor": _processor(),
        "cores": _usable_cores(),
        "device": device,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(": ", 1)[1]
    return platform.processor()


def _usable_cores() -> int | None:
    # a container or taskset may allow fewer cores than the machine has
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
