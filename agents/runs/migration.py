"""Migration of run directories that earlier versions wrote.

===== ============================================================================================
 1    no manifest; names and option values as in 2
 2    a manifest; no spaces; old names of layers (``RENAMED_LAYERS``), ``sampling`` "slots"
 3    spaces in state.json; current names of layers, ``sampling`` "fixed"
===== ============================================================================================

Option values in config.yaml are renamed by ``mirl.configs.aliases.migrate_config``.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from mirl.agents.runs.atomic_files import JsonObject
from mirl.configs.aliases import RENAMED_LAYERS, RENAMED_VALUES

SCHEMA_VERSION = 3
"""Schema version of newly written checkpoints."""
FIRST_SEALED = 2
"""First schema version whose checkpoints have a manifest."""
FIRST_WITH_CURRENT_NAMES = 3
"""First schema version whose weights have the current names."""

_PARAMETERS = r"(weight|bias|mean|variance|count)"
_RENAMED = [
    # anchored, so that only a whole name between dots is replaced
    (re.compile(rf"(^|\.){old}\.{_PARAMETERS}$"), rf"\1{current}.\2")
    for old, current in RENAMED_LAYERS.items()
]

ValueT = TypeVar("ValueT")


def check_schema_version(version: object, owner: object) -> int:
    """Check that a schema version can be read.

    Args:
        version: the version that a file states.
        owner: the checkpoint, for the message.

    Returns:
        The version.

    Raises:
        ValueError: the version is unknown.
    """
    if isinstance(version, int) and version in range(1, SCHEMA_VERSION + 1):
        return version
    raise ValueError(
        f"{owner} has schema version {version!r}, expected one from 1 to {SCHEMA_VERSION}; "
        "a newer MIRL wrote it, or the file is damaged"
    )


def migrate_state(state: JsonObject, version: int) -> JsonObject:
    """Convert the state.json of an earlier schema version to the current format.

    Args:
        state: the content of the file.
        version: its schema version.

    Returns:
        The state; the argument itself if nothing has changed since its version.
    """
    if version >= FIRST_WITH_CURRENT_NAMES:
        return state
    sampling = state.get("sampling")
    if not isinstance(sampling, dict):
        return state
    name = sampling.get("sampling")
    if not isinstance(name, str):
        return state
    current = RENAMED_VALUES["sampling"].get(name, name)
    return {**state, "sampling": {**sampling, "sampling": current}}


def current_weight_name(name: str) -> str:
    """Return the current name of a weight that an earlier version saved.

    Args:
        name: its name in the state dict of that version.

    Returns:
        The name in the current state dict.
    """
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def migrate_weight_names(weights: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Return weights under their current names.

    Args:
        weights: values by the names of an earlier version.

    Returns:
        The same values by their names in the current state dict.

    Raises:
        ValueError: two weights would have the same name.
    """
    migrated = {current_weight_name(name): value for name, value in weights.items()}
    if len(migrated) < len(weights):
        raise ValueError("two weights have the same name after the migration of their names")
    return migrated
