"""Agents of other projects, to compare MIRL's throughput with. All are optional.

None of their code is part of this repository. pip installs a pinned version of each into a virtual
environment of its own, ``.peers/NAME``. There a driver of this folder runs its public code and
prints a measurement. PufferLib 3.0.0 is left out: its build downloads further sources, and without
them (``NO_OCEAN=1``) it fails unless its setup.py is patched.
"""

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
"""Folder of the drivers."""
ENVIRONMENTS = FOLDER.parent.parent / ".peers"
"""Folder of the virtual environments."""


@dataclass(frozen=True)
class Peer:
    """Installation and driver of a peer."""

    driver: str
    """The script that measures."""
    requirements: tuple[str, ...]
    """Packages to install."""
    bare: tuple[str, ...] = ()
    """Packages to install without their dependencies and for any Python."""
    pythons: tuple[str, ...] = ("3.11", "3.12", "3.13")
    """Versions of Python that the packages support."""


PEERS = {
    "navix": Peer(
        "navix_ppo.py",
        ("navix==4.0.0", "jax[cpu]==0.12.0.1", "flax==0.12.12", "numpy==2.5.5"),
        pythons=("3.12", "3.13"),
    ),
    "cleanrl": Peer(
        "cleanrl_ppo.py",
        (
            "torch==2.13.0",
            "envpool==1.2.5",
            "gym==0.26.2",
            "numpy==2.4.6",
            "setuptools==84.2.1",
            "tensorboard==2.21.0",
        ),
        # its dependencies are those of all its scripts, in versions of 2023
        bare=("cleanrl==1.2.0",),
    ),
    "sample-factory": Peer(
        "sample_factory_appo.py",
        (
            "sample-factory==2.1.1",
            "torch==2.13.0",
            "envpool==1.2.5",
            "gymnasium==0.29.1",
            "numpy==1.26.4",
        ),
        pythons=("3.11", "3.12"),
    ),
    "torch-ac": Peer(
        "torch_ac_ppo.py",
        ("torch-ac==1.4.0", "torch==2.13.0", "minigrid==3.2.0", "gymnasium==1.4.0"),
    ),
}


def find_python(versions: tuple[str, ...]) -> str:
    """Return a Python of one of the versions: this one if it fits, else the first on the path.

    Args:
        versions: Versions such as ``3.12``.

    Raises:
        RuntimeError: If there is none.
    """
    major, minor, _ = platform.python_version_tuple()
    if f"{major}.{minor}" in versions:
        return sys.executable
    for version in versions:
        name = f"python{version}"
        if shutil.which(name) is None:
            continue
        # a name on the path may be a shim for a version that is not installed
        finished = subprocess.run([name, "--version"], capture_output=True, check=False)
        if finished.returncode == 0:
            return name
    raise RuntimeError(
        f"expected Python {' or '.join(versions)} on the path, found none; "
        "install one or name it by --python"
    )


def install(name: str, python: str | None = None) -> Path:
    """Install a peer if its environment is missing or its requirements have changed.

    Args:
        name: The name of the peer.
        python: The Python of a new environment, found by its version by default.

    Returns:
        The Python of the environment.
    """
    peer = PEERS[name]
    environment = ENVIRONMENTS / name
    bin_folder = "Scripts" if sys.platform == "win32" else "bin"
    executable = environment / bin_folder / "python"
    wanted = "\n".join(peer.requirements + peer.bare) + "\n"
    stamp = environment / "installed.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return executable

    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n", encoding="utf-8")
    if python is None:
        python = find_python(peer.pythons)
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *peer.requirements], check=True)
    if peer.bare:
        bare = ["--no-deps", "--ignore-requires-python", *peer.bare]
        subprocess.run([*pip, *bare], check=True)
    # written last: an installation that failed is repeated
    stamp.write_text(wanted, encoding="utf-8")
    return executable


def run(name: str, seconds: float, *options: str) -> dict[str, Any]:
    """Measure a peer, and install it before where that is needed.

    Args:
        name: The name of the peer.
        seconds: How long to train, approximately.
        *options: Further options of its driver.

    Returns:
        The measurement, as ``report`` prints it.

    Raises:
        RuntimeError: If the driver fails.
    """
    driver = str(FOLDER / PEERS[name].driver)
    command = [str(install(name)), driver, "--seconds", str(seconds), *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = finished.stdout.splitlines()
    if finished.returncode != 0 or not lines:
        last = "\n".join(finished.stderr.splitlines()[-15:])
        raise RuntimeError(
            f"expected a measurement from {driver}, got exit code {finished.returncode}; "
            f"its last lines are:\n{last}"
        )
    return json.loads(lines[-1])
