"""Pretrained agents that come with MIRL: ``pretrained:goto_local`` instead of a run directory."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from mirl.configs.errors import ConfigError, nearest

PREFIX = "pretrained:"
"""Prefix of the name of a pretrained agent, which may replace a run directory."""
FOLDER = Path(__file__).parents[2] / "agents" / "pretrained"
"""Folder of their run directories."""


def pretrained_names() -> list[str]:
    """Return the names of the pretrained agents that come with MIRL."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.yaml"))


def run_path(value: Path | str) -> Path:
    """Return a run directory; resolve ``pretrained:NAME``.

    Args:
        value: a path, or a name with this prefix.

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
    """Return the argument for a run directory in a command: its path, or ``pretrained:NAME``.

    Args:
        run: the run directory.
    """
    return f"{PREFIX}{run.name}" if run.parent == FOLDER else str(run)


def results_folder(run: Path) -> Path:
    """Return the folder for the results of a run directory: usually the directory itself.

    Args:
        run: the run directory. For a pretrained agent, results go to a folder in ``runs/``, because
            the folder of a package is often read-only and hard to find.
    """
    if run.parent == FOLDER:
        return Path("runs") / f"pretrained-{run.name}"
    return run


RunPath = Annotated[Path, AfterValidator(run_path)]
"""A run directory, or ``pretrained:NAME``."""
