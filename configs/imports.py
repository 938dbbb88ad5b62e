"""Modules that may be imported because a command, a Python user or an installed plugin named them.

A configuration names code as ``module:Name``. Importing a module executes it, so a file, such as
the config.yaml of a run directory, must not be able to do that by itself. A module may be imported

- if the arguments of the command name it (``task=module:Id``, ``import=module``),
- if an installed distribution names it as an entry point of the group ``mirl.plugins``, or
- if it is in ``sys.modules``, because then it has been imported already.
"""

import importlib
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from mirl.configs.errors import ConfigError, nearest

PLUGIN_GROUP = "mirl.plugins"
"""Group of the entry points that MIRL imports when a command starts."""

_allowed: set[str] = set()
"""Modules that the user named; with a package, its modules are allowed."""


class PluginWarning(UserWarning):
    """An installed plugin that cannot be imported; the commands go on without it."""


def allow_imports(*modules: str) -> None:
    """Allow modules, and the modules inside of them, to be imported.

    Call it only with what the user of this process named, never with what a file names.

    Args:
        modules: dotted names of modules, e.g. ``my_package``.

    Raises:
        ConfigError: if a name is not the dotted name of a module.
    """
    for module in modules:
        if not _is_module_name(module):
            raise ConfigError(
                f"import: expected the name of a module, e.g. my_package, got '{module}'"
            )
        _allowed.add(module)


def allowed_modules() -> tuple[str, ...]:
    """Return the modules that were allowed by ``allow_imports``, e.g. to allow them in a worker."""
    return tuple(sorted(_allowed))


def is_allowed(module: str) -> bool:
    """Return True if a module may be imported.

    Args:
        module: dotted name of the module.
    """
    if sys.modules.get(module) is not None:
        return True
    if not _is_module_name(module):
        return False
    named = _allowed | {plugin.module for plugin in _plugins()}
    # Importing a module imports the packages around it, so these are allowed as well.
    return any(_is_inside(module, other) or _is_inside(other, module) for other in named)


def module_of(path: str) -> str | None:
    """Return the module that ``module:Name`` names, or None if there is no colon.

    Args:
        path: e.g. ``my_package:MyEnv-v0``.
    """
    module, colon, _ = path.partition(":")
    if not colon:
        return None
    return module


def check_allowed(module: str, path: str, subject: str = "") -> None:
    """Raise an error if a module may not be imported.

    Args:
        module: dotted name of the module.
        path: the whole name for the error message, e.g. ``my_package:MyEnv-v0``.
        subject: start of the error message, e.g. ``task 'reach': ``.

    Raises:
        ConfigError: if nobody but a file named the module.
    """
    if is_allowed(module):
        return
    raise ConfigError(
        f"{subject}'{path}' names code of '{module}', which a file may not import by itself; "
        f"add import={_top(module)} (in Python, import {module} first)"
    )


def import_module(module: str, path: str = "", subject: str = "") -> ModuleType:
    """Import a module that may be imported.

    The current folder is searched last; it is added to ``sys.path`` only here.

    Args:
        module: dotted name of the module.
        path: what names it, for the error message; by default the module itself.
        subject: start of the error message, e.g. ``task 'reach': ``.

    Returns:
        The module.

    Raises:
        ConfigError: if the module is not allowed, does not exist, or fails on import.
    """
    check_allowed(module, path or module, subject)
    loaded = sys.modules.get(module)
    if loaded is not None:
        return loaded
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if _is_inside(module, missing):
            raise ConfigError(
                f"{subject}there is no module '{missing}' on PYTHONPATH or in the current folder."
                + nearest(missing, _modules_beside(missing))
            ) from None
        raise ConfigError(
            f"{subject}module '{module}' needs '{missing}'; pip install {_top(missing)}"
        ) from error
    except (Exception, SystemExit) as error:  # a script may end the process
        raise ConfigError(
            f"{subject}module '{module}' fails on import: {_one_line(error)}{_place(error)}"
        ) from error


def import_object(path: str, subject: str = "") -> object:
    """Return the object that ``module:Name`` or ``module:Outer.Name`` names.

    Args:
        path: e.g. ``my_package.layers:Mine``.
        subject: start of the error message, e.g. ``fusion: ``.

    Returns:
        The object; the caller checks that it is what it needs.

    Raises:
        ConfigError: if the path is malformed, its module is not allowed, does not exist or fails
            on import, or has no such object.
    """
    module_name, _, qualified_name = path.partition(":")
    names = qualified_name.split(".")
    if not _is_module_name(module_name) or not all(name.isidentifier() for name in names):
        raise ConfigError(f"{subject}expected module:Name, e.g. my_package:Mine, got '{path}'")
    module = import_module(module_name, path, subject)
    found: object = module
    for name in names:
        # Only classes are searched. Through a module one would reach the modules that it imports.
        if found is not module and not isinstance(found, type):
            raise ConfigError(f"{subject}'{path}': only a module or a class can hold '{name}'")
        if not hasattr(found, name):
            raise ConfigError(_missing_object(subject, path, module_name, name, found))
        found = getattr(found, name)
    return found


def load_plugins() -> None:
    """Import the modules that installed distributions name as entry points of ``mirl.plugins``.

    Warns:
        PluginWarning: if one of them cannot be imported.
    """
    for plugin in _plugins():
        try:
            import_module(plugin.module)
        except ConfigError as error:
            distribution = plugin.dist.name if plugin.dist else "?"
            warnings.warn(
                f"plugin '{plugin.name}' of {distribution}: {error}", PluginWarning, stacklevel=2
            )


@cache
def _plugins() -> tuple[EntryPoint, ...]:
    """Return the installed entry points. Reading them imports nothing."""
    return tuple(entry_points(group=PLUGIN_GROUP))


def _is_module_name(module: str) -> bool:
    """Return True for ``package.module``; ``package.__main__`` is a program, which would run."""
    if module == "__main__":
        return True
    names = module.split(".")
    return all(name.isidentifier() and not name.startswith("__") for name in names)


def _is_inside(module: str, other: str) -> bool:
    """Return True if a module is the other one or a part of it."""
    return f"{module}.".startswith(f"{other}.")


def _top(module: str) -> str:
    return module.partition(".")[0]


def _modules_beside(module: str) -> Iterable[str]:
    """Return the names of the modules that can be imported beside one that does not exist."""
    package, dot, _ = module.rpartition(".")
    # Without a package, None stands for the folders of sys.path.
    folders = None
    if package:
        folders = getattr(sys.modules.get(package), "__path__", [])
    return [package + dot + found.name for found in pkgutil.iter_modules(folders)]


def _missing_object(subject: str, path: str, module: str, name: str, holder: object) -> str:
    """Return the error message for a name that a module or class does not have."""
    if module == "__main__":
        return (
            f"{subject}'{path}' was defined in a script, which is not running; "
            "move it to a module of its own"
        )
    public = [other for other in vars(holder) if not other.startswith("_")]
    return f"{subject}'{path}': module '{module}' has no '{name}'.{nearest(name, public)}"


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _place(error: BaseException) -> str:
    """Return the file and line in which an import failed."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f" ({last.filename}, line {last.lineno})"
