"""Trained agents that come with MIRL: ``pretrained:goto_local`` in the place of a run directory."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from mirl.configs.errors import ConfigError, nearest

PREFIX = "pretrained:"
"""Beginning of the name of an agent that comes with MIRL, where a run directory may stand."""
FOLDER = Path(__file__).parents[2] / "agents" / "pretrained"
"""Folder of their run directories."""


def pretrained_names() -> list[str]:
    """Return the names of the agents that come with MIRL."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.yaml"))


def run_path(value: Path | str) -> Path:
    """Return a run directory, also that of ``pretrained:NAME``.

    Args:
        value: a path, or such a name.

    Raises:
        ConfigError: no agent has this name.
    """
    text = str(value)
    if not text.startswith(PREFIX):
        return Path(value)
    name = text.removeprefix(PREFIX)
    names = pretrained_names()
    if name not in names:
        choices = ", ".join(names)
        raise ConfigError(
            f"no agent '{name}' comes with MIRL, expected {choices}." + nearest(name, names)
        )
    return FOLDER / name


def run_name(run: Path) -> str:
    """Return what names a run directory in a command: its path, or ``pretrained:NAME``.

    Args:
        run: the run directory.
    """
    return f"{PREFIX}{run.name}" if run.parent == FOLDER else str(run)


def results_folder(run: Path) -> Path:
    """Return the folder in which results of a run directory are written: itself, as a rule.

    Args:
        run: the run directory. For one that comes with MIRL, it is a folder in ``runs/``, because
            the folder of a package is often read-only, and hard to find.
    """
    if run.parent == FOLDER:
        return Path("runs") / f"pretrained-{run.name}"
    return run


RunPath = Annotated[Path, AfterValidator(run_path)]
"""A run directory, or ``pretrained:NAME``."""
