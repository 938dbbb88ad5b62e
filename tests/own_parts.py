"""The template of docs/extending as the module ``ownparts``, and tiny networks with its classes."""

import sys
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parents[1] / "docs" / "extending" / "template"
sys.path.append(str(TEMPLATE))

import ownparts  # noqa: E402

CLASSES: dict[str, Any] = {
    "fusion": ownparts.BoundedFilm,
    "memory": ownparts.Leaky,
    "context": ownparts.WordSum,
    "encoder": ownparts.PooledCells,
}
"""The classes by the option that they are given to."""
OPTIONS: dict[str, dict[str, Any]] = {
    "fusion": {"limit": 0.5},
    "memory": {"size": 8},
    "context": {"dim": 8},
    "encoder": {"channels": 4, "features_dim": 16},
}
"""Options of their own of these classes."""


def name_of(group: str) -> str:
    """Return the name of a group's class: ``ownparts:BoundedFilm``."""
    return f"ownparts:{CLASSES[group].__name__}"


def config_of(group: str) -> Any:
    """Return a config of a group's class with its options."""
    return CLASSES[group].Config(**OPTIONS[group])


def words_of(group: str) -> list[str]:
    """Return the command-line arguments for a group's class with its options."""
    words = [f"{group}={name_of(group)}"]
    for option, value in OPTIONS[group].items():
        words.append(f"{group}.{option}={value}")
    return words
