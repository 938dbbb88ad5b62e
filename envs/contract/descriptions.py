"""Short descriptions of values and spaces for error messages, never whole arrays."""

from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

from mirl.configs.tasks import TaskConfig
from mirl.envs.type_aliases import Array

MAX_CHARACTERS = 60
"""Length beyond which a text in a message is shortened."""
MAX_SHOWN = 4
"""Largest number of entries of an array that a message spells out."""


def describe_value(value: object) -> str:
    """Return a short description of a value: its type, shape and range.

    Args:
        value: any value that an environment returned.
    """
    match value:
        case None:
            return "None"
        case np.ndarray():
            return _describe_array(value)
        case bool() | int() | float() | complex() | np.generic():
            return f"{type(value).__name__} {shorten(str(value))}"
        case str():
            return f"the text {shorten(repr(value))}"
        case Mapping():
            return f"a {type(value).__name__} with the keys {shorten(str(list(value)))}"
        case list() | tuple():
            return f"a {type(value).__name__} of length {len(value)}"
        case _:
            return f"an object of type {type(value).__name__}"


def describe_space(space: object) -> str:
    """Return a short description of a space; a Box is shown with its smallest and largest bound.

    Args:
        space: a space, or any other value.
    """
    if isinstance(space, spaces.Box) and space.low.size:
        low = space.low.min()
        high = space.high.max()
        return f"Box of shape {space.shape}, {space.dtype}, in [{low}, {high}]"
    return str(space)


def name_task(task: TaskConfig) -> str:
    """Return the prefix of an error message that names a task.

    Args:
        task: the task; its id is left out if it equals the name.
    """
    if task.name == task.env_id:
        return f"task '{task.name}'"
    return f"task '{task.name}' ({task.env_id})"


def shorten(text: str) -> str:
    """Return a text as one line, cut off after ``MAX_CHARACTERS``.

    Args:
        text: any text.
    """
    line = " ".join(text.split())
    if len(line) > MAX_CHARACTERS:
        return f"{line[:MAX_CHARACTERS]}…"
    return line


def _describe_array(array: Array) -> str:
    text = f"an array of shape {array.shape}, {array.dtype}"
    if array.dtype.kind not in "biuf" or not array.size:
        return text
    if array.size <= MAX_SHOWN:
        return f"{text}, {shorten(str(array.tolist()))}"
    return f"{text}, in [{array.min()}, {array.max()}]"
