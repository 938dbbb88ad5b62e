"""One-line messages from pydantic's validation errors, and the config classes behind a field."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mirl.configs.config import explain_errors_by
from mirl.configs.errors import nearest
from mirl.configs.parts import BuiltInOrOwn, own_config

MAX_SHOWN_CHARACTERS = 200
"""Maximum length of a value that a message shows in full."""
SAME_VALUES = {"gpu": "cuda"}
"""Values in other programs."""


def config_classes(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the config classes that a field can hold, except for users' classes.

    Args:
        field: a field for a config, one of several configs, or a tuple of them; any other field has
            no config classes.

    Returns:
        The classes in the order in which the schema lists them.
    """
    for mark in field.metadata:
        if isinstance(mark, BuiltInOrOwn):
            return _classes_in(mark.union)
    return _classes_in(field.annotation)


def _classes_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    # a union that is written A | B is a UnionType, and the schema has no other
    if get_origin(annotation) not in (Annotated, tuple, UnionType):
        return []
    classes: list[type[BaseModel]] = []
    for part in get_args(annotation):
        classes += _classes_in(part)
    return classes


@dataclass
class _Place:
    """Place of an error in the schema."""

    path: list[str] = field(default_factory=list)
    """Names as the user types them, from the outside in: ``["fusion", "rank"]``."""
    classes: list[type[BaseModel]] = field(default_factory=list)
    """Config classes that can occur in this place."""
    kind: str = ""
    """Selected member of the innermost union, e.g. ``low_rank``; empty outside of a union."""
    union: dict[str, type[BaseModel]] = field(default_factory=dict)
    """Members of the innermost union by their ``kind``."""


def explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """Return one line about one of pydantic's validation errors.

    Args:
        model: config class that was validated.
        detail: item of ``ValidationError.errors()``.

    Returns:
        The option, what was expected, what was given, and the nearest valid name if there is one.
    """
    location = detail["loc"]
    if detail["type"] == "extra_forbidden":
        # the last part is the unknown name itself, which the schema does not contain
        return _explain_unknown_option(_find(model, location[:-1]), str(location[-1]))
    place = _find(model, location)
    where = ".".join(place.path)
    match detail["type"]:
        case "union_tag_invalid":
            tag = str(detail["ctx"]["tag"])
            kinds = _quoted_names(detail["ctx"]["expected_tags"])
            return f"unknown {where} '{tag}'." + nearest(tag, kinds)
        case "union_tag_not_found":
            return f"{where}.kind=… is required"
        case "literal_error":
            expected = detail["ctx"]["expected"]
            given = detail["input"]
            hint = nearest(SAME_VALUES.get(str(given), given), _quoted_names(expected))
            return f"{where}: expected {expected}, got {shorten(given)}.{hint}"
        case "missing":
            return f"{where}=… is required"
        case "value_error":
            # raised by our own validators, whose messages are complete
            message = detail["msg"].removeprefix("Value error, ")
            # a message that begins with the option needs no prefix
            if not where or message.startswith(place.path[-1]):
                return message
            return f"{where}: {message}"
        case _:
            # pydantic's own messages begin with a capital and leave out the value
            message = detail["msg"]
            return f"{where}: {message[:1].lower()}{message[1:]}, got {shorten(detail['input'])}"


def _find(model: type[BaseModel], location: Sequence[str | int]) -> _Place:
    """Follow the location of an error into the schema.

    In a union, pydantic adds the ``kind`` of the member to the location; users do not type it.
    """
    place = _Place(classes=[model])
    for part in location:
        members = _members_by_kind(place.classes)
        # pydantic adds the kind of the chosen member to the location of an error
        if part in members:
            place.kind = str(part)
            place.union = members
            place.classes = [members[place.kind]]
            continue
        own = own_config(str(part))
        if own is not None:
            place.kind = str(part)
            place.union = {}
            place.classes = [own]
            continue
        place.path.append(str(part))
        inner: list[type[BaseModel]] = []
        for config_class in place.classes:
            if part in config_class.model_fields:
                inner += config_classes(config_class.model_fields[str(part)])
        if inner:  # an index into a tuple has no field, and its items have the same classes
            place.classes = inner
    return place


def _members_by_kind(classes: Sequence[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Return the classes that have a ``kind``, by its value."""
    members: dict[str, type[BaseModel]] = {}
    for config_class in classes:
        if "kind" in config_class.model_fields:
            members[config_class.model_fields["kind"].default] = config_class
    return members


def _explain_unknown_option(place: _Place, name: str) -> str:
    """Return the message about a name that the config class at this place does not have."""
    path = ".".join([*place.path, name])
    if not place.kind:
        return f"unknown option '{path}'." + nearest(name, _options(place.classes))
    # perhaps the option belongs to another kind of the same group
    owners: list[str] = []
    for kind, config_class in place.union.items():
        if name in config_class.model_fields:
            owners.append(kind)
    if owners:
        hint = f" It is an option of {', '.join(owners)}."
    else:
        hint = nearest(name, _options(place.classes))
    return f"unknown option '{path}' of {place.kind}.{hint}"


def _options(classes: Sequence[type[BaseModel]]) -> list[str]:
    """Return the names of the fields that users set; the preset sets ``kind``."""
    names: list[str] = []
    for config_class in classes:
        names += [name for name in config_class.model_fields if name != "kind"]
    return names


def _quoted_names(text: str) -> list[str]:
    """Return the names in pydantic's list ``'a', 'b' or 'c'``."""
    return [name.strip("' ") for name in text.replace(" or ", ",").split(",")]


def shorten(value: object) -> str:
    """Return the ``repr`` of a value, cut to one line of reasonable length.

    Args:
        value: any value.
    """
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        text = f"a {type(value).__name__} that is too large to show"
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:MAX_SHOWN_CHARACTERS]}…"


explain_errors_by(explain)
