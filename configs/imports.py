"""Modules that may be imported because a command, a Python user or an installed plugin named them.

A configuration names code as ``module:Name``. Importing a module executes it, so a file, such as
the config.yaml of a run directory, must not be able to trigger it. A module may be imported

- if the arguments of the command name it (``task=module:Id``, ``import=module``),
- if an installed distribution names it as an entry point of the group ``mirl.plugins``,
- if it is in ``sys.modules`` under its own name, because then it has been imported already, or
- if it is part of MIRL or of a library whose environments MIRL imports itself.
"""

import importlib
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from mirl.configs.errors import ConfigError, nearest

PLUGIN_GROUP = "mirl.plugins"
"""Group of the entry points that MIRL imports when a command starts."""
# Not "mirl": the root of the repository may contain folders that are not part of MIRL (runs/).
LIBRARIES = (
    "mirl.agents",
    "mirl.configs",
    "mirl.envs",
    "mirl.policies",
    "gymnasium",
    "gymnasium_robotics",
    "minigrid",
)
"""Packages whose modules any file may name."""

_imported: dict[str, None] = {}
"""Modules that ``import_module`` returned, in the order of the first call."""
_allowed: set[str] = set()
"""Modules that the user named; a package includes its modules."""
_inherited: set[str] = set()
"""Modules that the owner of a worker process had imported."""
OWN_PACKAGE = "mirl"
"""Package that is always imported, so that naming it does not allow anything."""


class PluginWarning(UserWarning):
    """An installed plugin that cannot be imported; the commands continue without it."""


def allow_imports(*modules: str) -> None:
    """Allow modules, and the modules inside of them, to be imported.

    Call it only with modules that the user of this process named, never with those from a file.

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
        if module == OWN_PACKAGE:
            # its folder may contain other modules, for example in runs/
            raise ConfigError(
                "import: expected a module of your own, got 'mirl'; name the module itself"
            )
        _allowed.add(module)


def allowed_modules() -> tuple[str, ...]:
    """Return the modules that were allowed by ``allow_imports``, in alphabetical order."""
    return tuple(sorted(_allowed))


def imported_modules() -> tuple[str, ...]:
    """Return the modules that were imported by name, for a worker process to import them too."""
    return tuple(_imported)


def is_allowed(module: str) -> bool:
    """Return True if a module may be imported.

    Args:
        module: dotted name of the module.
    """
    if _is_loaded(module):
        return True
    if not _is_module_name(module):
        return False
    return _is_around(module, _allowed) or module in _inherited or _is_installed(module)


def _is_loaded(module: str) -> bool:
    """Return True if a module has been imported under this name."""
    loaded = sys.modules.get(module)
    if loaded is None:
        return False
    # an alias, as used by compiled modules, refers to a file with another name elsewhere
    spec = getattr(loaded, "__spec__", None)
    return module == "__main__" or (spec is not None and spec.name == module)


def _is_installed(module: str) -> bool:
    """Return True for a module of a library or plugin, which every process may import."""
    return _is_around(module, {*LIBRARIES, *(plugin.module for plugin in _plugins())})


def _is_around(module: str, named: Iterable[str]) -> bool:
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


def named_code(values: object) -> list[str]:
    """Return everything in a configuration that names code: ``module:Name``, or a module.

    These are the environment ids, the wrappers, the kinds of the networks' parts, and ``imports``.

    Args:
        values: nested dictionaries and lists, not validated yet.

    Returns:
        The names, without duplicates.
    """
    return list(dict.fromkeys(_named_code(values)))


def import_words(values: object) -> list[str]:
    """Return the words that allow a command to open a run: ``import=my_package``, or nothing.

    Args:
        values: the configuration of the run, as nested dictionaries and lists.
    """
    modules: dict[str, None] = {}
    for name in named_code(values):
        module = name.partition(":")[0]
        if not _is_installed(module):
            modules.setdefault(_word(module))
    if not modules:
        return []
    return [f"import={','.join(modules)}"]


def _named_code(values: object) -> Iterator[str]:
    if isinstance(values, list | tuple):
        for item in values:
            yield from _named_code(item)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        if key == "imports":
            yield from _texts(value)
        elif key in ("env_id", "kind", "wrapper", "wrappers"):
            yield from (text for text in _texts(value) if ":" in text)
        # Keyword arguments are passed to an environment, and do not name code that MIRL imports.
        if key != "kwargs":
            yield from _named_code(value)


def _texts(value: object) -> Iterator[str]:
    """Yield a text, or the texts of a list."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, str))


def check_allowed(paths: Iterable[str], subject: str = "", advice: str = "") -> None:
    """Raise an error if code is named that may not be imported.

    Args:
        paths: names of code: ``my_package:MyEnv-v0``, or a module.
        subject: start of the error message, e.g. ``task 'reach': ``.
        advice: end of the error message, e.g. ``, or choose another name=…``.

    Raises:
        ConfigError: if only a file named one of the modules, or one is not a module name.
    """
    forbidden: dict[str, str] = {}
    for path in paths:
        module = path.partition(":")[0]
        if is_allowed(module):
            continue
        if not _is_module_name(module):
            raise ConfigError(
                f"{subject}'{_shown(path)}' must begin with the name of a module, got "
                f"'{_shown(module)}'"
            )
        forbidden.setdefault(module, path)
    if not forbidden:
        return
    named = ", ".join(f"'{_shown(path)}'" for path in forbidden.values())
    modules = " and ".join(f"'{module}'" for module in forbidden)
    words = ",".join(dict.fromkeys(_word(module) for module in forbidden))
    raise ConfigError(
        f"{subject}{named} names code of {modules}, which a file may not import by itself; "
        f"add import={words} (in Python, import {', '.join(forbidden)} first){advice}"
    )


def import_module(module: str, path: str = "", subject: str = "") -> ModuleType:
    """Import a module that may be imported.

    The current folder is searched last, and only for a module that the user named; it stays on
    ``sys.path`` if the module was found there.

    Args:
        module: dotted name of the module.
        path: the name that refers to it, for the error message; by default the module itself.
        subject: start of the error message, e.g. ``task 'reach': ``.

    Returns:
        The module.

    Raises:
        ConfigError: if the module is not allowed, does not exist, or fails on import.
    """
    check_allowed([path or module], subject)
    _imported.setdefault(module)
    loaded = sys.modules.get(module)
    if loaded is not None:
        return loaded
    importlib.invalidate_caches()
    try:
        with _current_folder(module):
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


@contextmanager
def _current_folder(module: str) -> Iterator[None]:
    """Search the current folder, last, for a module that the user of this process named.

    A file must not add the folder to ``sys.path``: every missing package would then be imported
    from a folder that may be untrusted.
    """
    folder = str(Path.cwd())
    if folder in sys.path or not _is_around(module, _allowed):
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        found = str(getattr(sys.modules.get(_top(module)), "__file__", None) or "")
        # a package without __init__.py has a path, but no file
        parts = [*getattr(sys.modules.get(_top(module)), "__path__", []), found]
        if not any(Path(part).is_relative_to(folder) for part in parts if part):
            sys.path.remove(folder)


def import_modules(modules: Iterable[str]) -> None:
    """Import modules that the user of this process named, such as those of ``import=``.

    Args:
        modules: dotted names of modules.

    Raises:
        ConfigError: if one of them does not exist or fails on import.
    """
    for module in modules:
        allow_imports(module)
        import_module(module, subject=f"import={module}: ")


def import_object(path: str, subject: str = "") -> object:
    """Return the object that ``module:Name`` or ``module:Outer.Name`` names.

    Args:
        path: e.g. ``my_package.layers:Mine``.
        subject: start of the error message, e.g. ``fusion: ``.

    Returns:
        The object; the caller must check its type.

    Raises:
        ConfigError: if the path is malformed, its module is not allowed, does not exist or fails
            on import, or has no such object.
    """
    module_name, _, qualified_name = path.partition(":")
    names = qualified_name.split(".")
    if not _is_module_name(module_name) or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"{subject}expected module:Name, e.g. my_package:Mine, got '{_shown(path)}'"
        )
    module = import_module(module_name, path, subject)
    found: object = module
    for name in names:
        # Only search classes: through a module, one could reach the modules that it imports.
        if found is not module and not isinstance(found, type):
            raise ConfigError(f"{subject}'{path}': only a module or a class can hold '{name}'")
        try:
            found = getattr(found, name)
        except AttributeError:
            message = _missing_object(subject, path, module_name, name, found)
            raise ConfigError(message) from None
        except Exception as error:  # a module that imports its parts lazily
            raise ConfigError(f"{subject}'{path}' cannot be loaded: {_one_line(error)}") from error
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


def restore_imports(allowed: Iterable[str], imported: Iterable[str]) -> None:
    """Allow and import in a worker process the modules that its owner allowed and imported.

    Args:
        allowed: ``allowed_modules()`` of the owner.
        imported: ``imported_modules()`` of the owner.
    """
    _allowed.update(allowed)
    _inherited.update(imported)
    for module in imported:
        # Code that needs a missing module, such as an environment, raises its own error.
        with suppress(ConfigError):
            import_module(module)


@cache
def _plugins() -> tuple[EntryPoint, ...]:
    """Return the installed entry points. Reading them imports nothing."""
    return tuple(entry_points(group=PLUGIN_GROUP))


def _is_module_name(module: str) -> bool:
    """Return True for ``package.module``, but not ``package.__main__``, which is a program."""
    if module == "__main__":
        return True
    names = module.split(".")
    return all(name.isidentifier() and not name.startswith("__") for name in names)


def _is_inside(module: str, other: str) -> bool:
    """Return True if a module is the other one or a part of it."""
    return f"{module}.".startswith(f"{other}.")


def _top(module: str) -> str:
    return module.partition(".")[0]


def _word(module: str) -> str:
    """Return the value of ``import=`` that allows a module."""
    if _top(module) == OWN_PACKAGE:
        return module
    return _top(module)


def _shown(text: str) -> str:
    """Return a text from a file without line breaks and control characters."""
    return text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text


def _modules_beside(module: str) -> Iterable[str]:
    """Return the importable modules in the same package as a module that does not exist."""
    package, dot, _ = module.rpartition(".")
    # Without a package, use only the current folder, or the nearest name could be an unrelated one.
    folders = [str(Path.cwd())]
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
