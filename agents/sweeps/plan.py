"""The folder of a sweep: its arguments and its results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirl.agents.comparison.machine import command_line, machine
from mirl.agents.jobs.execution import LOGS, check_engine, locked
from mirl.agents.runs.atomic_files import load_json, write_json
from mirl.configs.commands.sweep import SweepConfig
from mirl.configs.errors import ConfigError

PLAN = "sweep.json"
"""File with the arguments of the sweep in a folder."""
RECORDS = "records"
"""Folder with a JSON file per finished run."""
RESULTS = "results.json"
"""File with the results of all runs."""


@contextmanager
def opened(config: SweepConfig) -> Iterator[Path]:
    """Create the folder of a sweep, or open it to continue, and keep other processes out of it.

    Args:
        config: the sweep.

    Yields:
        The folder.

    Raises:
        ConfigError: the engine is not available, or the folder holds something else.
    """
    folder = config.folder
    check_engine(config)
    path = folder / PLAN
    if path.exists():
        _check_same(path, config)
    elif folder.is_dir() and {each.name for each in folder.iterdir()} - {".lock"}:
        raise ConfigError(f"{folder} holds something else than a sweep; choose another out=…")
    with locked(folder):
        if not path.exists():
            write_json(path, {"options": config.plan})
        for name in (LOGS, RECORDS):
            (folder / name).mkdir(exist_ok=True)
        yield folder


def _check_same(path: Path, config: SweepConfig) -> None:
    """Raise if a folder holds a sweep with other arguments."""
    stored = load_json(path).get("options")
    if not isinstance(stored, list) or not all(isinstance(word, str) for word in stored):
        raise ConfigError(f"{path} holds no sweep; choose another out=…")
    if sorted(stored) != sorted(config.plan):
        there = " ".join(word for word in stored if word not in config.plan)
        now = " ".join(word for word in config.plan if word not in stored)
        raise ConfigError(
            f"{path.parent} holds another sweep ({there or 'less'} there, {now or 'less'} now); "
            "choose another out=…"
        )


def write_results(folder: Path, rows: list[dict[str, object]]) -> Path:
    """Write the results of a sweep.

    Args:
        folder: folder of the sweep.
        rows: the results of each run.

    Returns:
        The file.
    """
    path = folder / RESULTS
    write_json(path, {"command": command_line(), "machine": machine(), "runs": rows})
    return path
