"""The machine, the versions of packages and the command behind a result."""

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    "mirl",
    "torch",
    "numpy",
    "gymnasium",
    "minigrid",
    "stable-baselines3",
    "envpool",
)
"""Packages whose versions are recorded, if they are installed."""


def command_line() -> str:
    """Return the command of this process, without the folder of the script."""
    script = Path(sys.argv[0]).name
    return shlex.join([script, *sys.argv[1:]])


def machine() -> dict[str, object]:
    """Return the processor, its usable cores, the device and the versions of ``PACKAGES``.

    The instruction set that torch uses is named after the processor.
    """
    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "cores": _usable_cores(),
        "device": device,
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of those ``PACKAGES`` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # EnvPool is optional, and MIRL may run from a clone without installation
    return found


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
