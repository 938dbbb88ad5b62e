"""Other agents to measure MIRL's speed against, each optional and in a virtual environment of its own, ``.peers/NAME``.

No source of theirs is here: pip installs a pinned version, and a driver in this folder, run inside that environment,
drives its public code and prints what it measured. Left out is PufferLib 3.0.0: its build downloads further sources,
and without them (``NO_OCEAN=1``) it fails unless its setup.py is patched.
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
ENVIRONMENTS = FOLDER.parent.parent / ".peers"


@dataclass(frozen=True)
class Peer:
    """What pip installs, under which Python, and the script that measures."""

    driver: str
    requirements: tuple[str, ...]
    bare: tuple[str, ...] = ()
    """Installed without their dependencies, whatever Python they ask for."""
    pythons: tuple[str, ...] = ("3.11", "3.12", "3.13")


PEERS = {
    "navix": Peer(
        "navix_ppo.py",
        ("navix==4.0.0", "jax[cpu]==0.12.0.1", "flax==0.12.12", "numpy==2.5.5"),
        pythons=("3.12", "3.13"),
    ),
    "cleanrl": Peer(
        "cleanrl_ppo.py",
        ("torch==2.13.0", "envpool==1.2.5", "gym==0.26.2", "numpy==2.4.6", "setuptools==84.2.1", "tensorboard==2.21.0"),
        bare=("cleanrl==1.2.0",),  # its dependencies are those of all its scripts, of 2023
    ),
    "sample-factory": Peer(
        "sample_factory_appo.py",
        ("sample-factory==2.1.1", "torch==2.13.0", "envpool==1.2.5", "gymnasium==0.29.1", "numpy==1.26.4"),
        pythons=("3.11", "3.12"),
    ),
    "torch-ac": Peer("torch_ac_ppo.py", ("torch-ac==1.4.0", "torch==2.13.0", "minigrid==3.2.0", "gymnasium==1.4.0")),
}


def interpreter(pythons: tuple[str, ...]) -> str:
    """This Python if it is one of the versions, else the first that answers to its name.

    Raises:
        RuntimeError: none of them does.
    """
    if ".".join(platform.python_version_tuple()[:2]) in pythons:
        return sys.executable
    for name in (f"python{number}" for number in pythons):
        if shutil.which(name) and not subprocess.run([name, "--version"], capture_output=True, check=False).returncode:
            return name
    raise RuntimeError(f"expected a Python {' or '.join(pythons)} on the path, or named by --python")


def install(name: str, python: str | None = None) -> Path:
    """The Python of a peer's environment, which is made when it is missing or its requirements have changed."""
    peer = PEERS[name]
    environment = ENVIRONMENTS / name
    executable = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    wanted = "\n".join(peer.requirements + peer.bare) + "\n"
    stamp = environment / "installed.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return executable
    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n", encoding="utf-8")
    subprocess.run([python or interpreter(peer.pythons), "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *peer.requirements], check=True)
    if peer.bare:
        subprocess.run([*pip, "--no-deps", "--ignore-requires-python", *peer.bare], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return executable


def run(name: str, seconds: float, *options: str) -> dict[str, Any]:
    """What a peer's driver measured in about ``seconds``; further options are the driver's own.

    Raises:
        RuntimeError: the driver failed; with the last it said.
    """
    command = [str(install(name)), str(FOLDER / PEERS[name].driver), "--seconds", str(seconds), *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = finished.stdout.splitlines()
    if finished.returncode or not lines:
        last = "\n".join(finished.stderr.splitlines()[-15:])
        raise RuntimeError(f"{name}'s driver ended with exit code {finished.returncode}:\n{last}")
    return json.loads(lines[-1])
