"""Old spellings of presets and option values, accepted for one release.

Delete this module, and its uses, in the release after 0.2.
"""

import warnings
from typing import Any

PRESETS = {
    "split": {"new_colour": "new_color"},
    "task": {"door_colours": "door_colors"},
}
"""By group: the old and the new name of a preset."""
SAMPLING = {"slots": "fixed"}
"""Old and new values of ``sampling``."""
SUCCESS = {"ever": "any_step"}
"""Old and new values of a task's ``success``."""

_warned: set[str] = set()


def replace_preset(group: str, name: str) -> str:
    """Return the current name of a preset, and warn once if ``name`` is an old one."""
    return _replace(PRESETS.get(group, {}), name, f"{group}=")


def replace_value(option: str, value: Any) -> Any:
    """Return the current spelling of an option's value, and warn once if ``value`` is an old one."""
    values = {"sampling": SAMPLING, "success": SUCCESS}[option]
    return _replace(values, value, f"{option}=")


def _replace(renamed: dict[str, str], value: Any, prefix: str) -> Any:
    if not isinstance(value, str) or value not in renamed:
        return value
    current = renamed[value]
    if prefix + value not in _warned:
        _warned.add(prefix + value)
        message = f"{prefix}{value} is now {prefix}{current}; the old name will be removed"
        warnings.warn(message, FutureWarning, stacklevel=3)
    return current


def migrate_config(values: Any) -> Any:
    """Return the values of a run's config.yaml with every old spelling replaced, without a warning.

    Values that are not of the expected form are returned as they are; validation reports them.
    """
    if not isinstance(values, dict):
        return values
    migrated = dict(values)
    sampling = migrated.get("sampling")
    if isinstance(sampling, str):
        migrated["sampling"] = SAMPLING.get(sampling, sampling)
    suite = migrated.get("task")
    if isinstance(suite, dict):
        migrated["task"] = _migrate_suite(suite)
    holdout = migrated.get("split")
    if isinstance(holdout, dict):
        migrated["split"] = {**holdout, **_renamed("split", holdout)}
    return migrated


def _migrate_suite(suite: dict[str, Any]) -> dict[str, Any]:
    migrated = {**suite, **_renamed("task", suite)}
    tasks = suite.get("tasks")
    if isinstance(tasks, list):
        migrated["tasks"] = [_migrate_task(task) for task in tasks]
    return migrated


def _migrate_task(task: Any) -> Any:
    if not isinstance(task, dict) or not isinstance(task.get("success"), str):
        return task
    return {**task, "success": SUCCESS.get(task["success"], task["success"])}


def _renamed(group: str, preset: dict[str, Any]) -> dict[str, Any]:
    """Return the ``name`` of a preset under its current spelling, if it has a text as its name."""
    name = preset.get("name")
    return {"name": PRESETS[group].get(name, name)} if isinstance(name, str) else {}
