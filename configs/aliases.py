"""Old names of presets, option values and layers, accepted for one release.

Delete this module and its uses in the release after 0.2.
"""

import warnings
from collections.abc import Mapping

RENAMED_PRESETS = {
    "split": {"new_colour": "new_color"},
    "task": {"door_colours": "door_colors"},
}
"""Old and current names of presets, per group."""
RENAMED_VALUES = {
    "sampling": {"slots": "fixed"},
    "success": {"ever": "any_step"},
}
"""Old and current values, per option."""
RENAMED_LAYERS = {
    "read": "output",
    "normalise": "normalize",
}
"""Old and current attribute names of layers, as found in state dicts of checkpoints."""
SCALED_FUSIONS = (
    *("bilinear", "low_rank", "hyper", "film"),
    *("attention", "metric", "product", "adapter"),
)
"""Fusions that have the option ``context_scale``."""
FORMER_DEFAULTS: Mapping[tuple[str, str], Mapping[str, object]] = {
    ("encoder", "grid"): {"attributes": 0},
    ("context", "mission"): {"zero_start": False, "layers": 1},
    **{("fusion", kind): {"context_scale": 1.0} for kind in SCALED_FUSIONS},
    ("fusion", "low_rank"): {"context_scale": 1.0, "features_scale": 1.0},
    ("fusion", "metric"): {"context_scale": 1.0, "features_scale": 1.0},
    ("fusion", "product"): {"context_scale": 1.0, "pool_words": False},
    ("memory", "mi_lstm"): {"scaled_steps": False},
    ("agent", "ppo"): {"advantage_floor": 0.0, "kl_coef": 0.0, "scale_values": False},
    ("agent", "a2c"): {"advantage_floor": 0.0, "scale_values": False},
}
"""Options that runs of earlier versions do not state, with the value in effect there, per group and
kind; delete them with the support for these runs."""

_warned: set[str] = set()


class RenamedWarning(FutureWarning):
    """An old name was used. The commands print the message as one plain line."""


def replace_preset(group: str, name: str) -> str:
    """Return the current name of a preset, and warn once if ``name`` is an old one.

    Args:
        group: group of the preset, e.g. ``split``.
        name: name as given by the user.

    Returns:
        The current name; ``name`` itself if it was not renamed.
    """
    current = RENAMED_PRESETS.get(group, {}).get(name)
    if current is None:
        return name
    _warn_once(f"{group}={name}", f"{group}={current}")
    return current


def replace_value(option: str, value: object) -> object:
    """Return the current spelling of an option's value, and warn once if ``value`` is an old one.

    Args:
        option: name of the option, a key of ``RENAMED_VALUES``.
        value: value as given by the user, not validated yet.

    Returns:
        The current value; ``value`` itself if it was not renamed.
    """
    # a value of another type is left to the validation that follows
    if not isinstance(value, str):
        return value
    current = RENAMED_VALUES[option].get(value)
    if current is None:
        return value
    _warn_once(f"{option}={value}", f"{option}={current}")
    return current


def _warn_once(old: str, current: str) -> None:
    """Warn about an old spelling, once per process."""
    if old in _warned:
        return
    _warned.add(old)
    message = f"{old} was renamed, use {current}; the old name will be removed in a later release"
    # stacklevel 3 is the caller of replace_preset or replace_value
    warnings.warn(message, RenamedWarning, stacklevel=3)


def migrate_config(values: object) -> object:
    """Return the content of a run's ``config.yaml`` with every old spelling replaced.

    Options that were added since are stated with the value that was in effect. There is no warning,
    because nobody typed these spellings in this version. Values of an unexpected form are returned
    unchanged; the later validation reports them.

    Args:
        values: content of ``config.yaml``, not validated yet.

    Returns:
        A migrated copy.
    """
    if not isinstance(values, dict):
        return values
    # a copy, so that the caller's dictionary stays unchanged
    migrated = dict(values)
    if "sampling" in migrated:
        migrated["sampling"] = _current_value("sampling", migrated["sampling"])
    if "task" in migrated:
        migrated["task"] = _migrate_suite(migrated["task"])
    if "split" in migrated:
        migrated["split"] = _migrate_preset_name("split", migrated["split"])
    for group in {group for group, _ in FORMER_DEFAULTS}:
        if group in migrated:
            migrated[group] = _with_former_defaults(group, migrated[group])
    return migrated


def _with_former_defaults(group: str, part: object) -> object:
    """Return the options of a group, or of the parts that it joins, with former defaults stated."""
    if not isinstance(part, dict):
        return part
    kind = part.get("kind")
    former: Mapping[str, object] = {}
    if isinstance(kind, str):
        former = FORMER_DEFAULTS.get((group, kind), {})
    migrated = {**former, **part}
    parts = part.get("parts")
    if isinstance(parts, dict):
        migrated["parts"] = {k: _with_former_defaults(group, each) for k, each in parts.items()}
    elif isinstance(parts, list | tuple):
        migrated["parts"] = [_with_former_defaults(group, each) for each in parts]
    return migrated


def _migrate_suite(suite: object) -> object:
    """Return a suite with current spellings of its own name and of its tasks' ``success``."""
    suite = _migrate_preset_name("task", suite)
    if not isinstance(suite, dict) or not isinstance(suite.get("tasks"), list):
        # not a suite: the validation reports the error
        return suite
    tasks = [_migrate_task(task) for task in suite["tasks"]]
    return {**suite, "tasks": tasks}


def _migrate_task(task: object) -> object:
    """Return a task with the current spelling of its ``success``."""
    if not isinstance(task, dict) or "success" not in task:
        return task
    return {**task, "success": _current_value("success", task["success"])}


def _migrate_preset_name(group: str, preset: object) -> object:
    """Return a preset with the current spelling of its ``name``."""
    if not isinstance(preset, dict) or not isinstance(preset.get("name"), str):
        return preset
    name = preset["name"]
    return {**preset, "name": RENAMED_PRESETS[group].get(name, name)}


def _current_value(option: str, value: object) -> object:
    """Return the current spelling of a value."""
    if not isinstance(value, str):
        return value
    return RENAMED_VALUES[option].get(value, value)
