"""Identity of environment definitions, so that each is checked only once per process."""

from collections.abc import Hashable, Mapping
from typing import Any

from gymnasium.envs.registration import EnvSpec, load_env_creator

from mirl.configs.imports import import_object
from mirl.configs.tasks import TaskConfig
from mirl.envs.contract.codes import minigrid_tables
from mirl.envs.make import find_spec

_PLAIN_TYPES = (type(None), bool, int, float, str)
"""Types whose ``repr`` is different for each value."""


def definition_key(task: TaskConfig) -> Hashable | None:
    """Return a key of an environment's registration, arguments, wrappers and codes.

    Args:
        task: the task; its name, mission and success rule do not matter.

    Returns:
        A key that is equal for equal definitions; None if a definition cannot be compared, for
        example because an argument is an object.

    Raises:
        ConfigError: if the id is unknown, or a module may not be imported.
    """
    spec = find_spec(task)
    wrapper_kwargs = [wrapper.kwargs for wrapper in task.wrappers]
    additional = [wrapper.kwargs for wrapper in spec.additional_wrappers]
    arguments = [dict(spec.kwargs), task.kwargs, wrapper_kwargs, additional]
    if not _is_plain(arguments):
        return None
    try:
        creator = _creator(spec)
    except Exception:
        return None  # making the environment fails with a better message
    wrappers = [import_object(wrapper.wrapper, _subject(task)) for wrapper in task.wrappers]
    registration = (
        spec.id,
        spec.max_episode_steps,
        spec.order_enforce,
        tuple((wrapper.name, wrapper.entry_point) for wrapper in spec.additional_wrappers),
    )
    parts = tuple((part, _attributes(part)) for part in (creator, *wrappers))
    key = (registration, repr(arguments), parts, repr(minigrid_tables()))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _creator(spec: EnvSpec) -> object:
    """Return the class or function that makes an environment."""
    if isinstance(spec.entry_point, str):
        return load_env_creator(spec.entry_point)
    return spec.entry_point


def _subject(task: TaskConfig) -> str:
    return f"task '{task.name}': wrappers: "


def _is_plain(value: Any) -> bool:
    """Return True for numbers, strings, and nested dictionaries, lists and tuples of them."""
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, Mapping):
        return type(value) is dict and _is_plain([*value.keys(), *value.values()])
    return type(value) in _PLAIN_TYPES


def _attributes(part: object) -> tuple[tuple[str, int], ...]:
    """Return names and ids of the attributes of a class, which a user may change in a notebook."""
    if not isinstance(part, type):
        return ()
    return tuple((name, id(value)) for base in part.__mro__ for name, value in vars(base).items())
