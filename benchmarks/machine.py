"""What a benchmark ran on, as data for its results file."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("mirl", "torch", "numpy", "gymnasium", "minigrid", "stable-baselines3", "envpool")


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
