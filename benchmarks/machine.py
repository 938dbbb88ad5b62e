"""The results file of a benchmark: its table, what it was made from, and what it ran on."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("mirl", "torch", "numpy", "gymnasium", "minigrid", "stable-baselines3", "envpool")

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in a unit of the operating system's peak memory of a process."""
RESULTS = Path(__file__).parent / "results"


def write_results(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], measurements: object) -> None:
    """``results/NAME.json``; ``tables.py`` puts its table into the documents."""
    report = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "columns": columns,
        "rows": rows,
        "measurements": measurements,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, object]:
    """Processor, usable cores, device, and the versions of what matters."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(": ", 1)[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
