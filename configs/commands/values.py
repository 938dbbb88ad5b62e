"""Values of options as they are typed: texts are taken as they are, Hydra reads the others.

A shell passes any characters on. Hydra's syntax has a meaning for many of them, which a path or a
mission that contains them does not have.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from mirl.configs.errors import ConfigError
from mirl.configs.validation_messages import config_classes, shorten

BRACKETS = {"(": ")", "[": "]", "{": "}"}
QUOTES = "\"'"
"""Quotation marks around a value, which are removed."""
BEFORE_QUOTE = ",:=([{"
"""Characters after which a quotation mark begins a quotation, and is no apostrophe."""
SWEEPS = re.compile(r"(choice|range|interval|glob)\(")
"""Beginnings of values that stand for several ones in Hydra."""
MISSING = "???"
"""Value that OmegaConf reserves for options that have to be set."""


class SeveralValuesError(Exception):
    """A value stands for several ones, of which Hydra would make several runs."""


class OptionTypes(NamedTuple):
    """Dotted names of options by what they take.

    Args:
        texts: options that take any text or path: ``runs_dir``.
        lists: options that take a list: ``agent.net_arch``.
        text_lists: those of them whose items are any texts: ``split.missions``.
        integers: options that take whole numbers only: ``agent.n_steps``.
    """

    texts: frozenset[str]
    lists: frozenset[str]
    text_lists: frozenset[str]
    integers: frozenset[str]


def option_types(classes: Sequence[type[BaseModel]]) -> OptionTypes:
    """Return the types of the options of some config classes.

    Args:
        classes: config classes that can stand at the same place.
    """
    return OptionTypes(
        texts=frozenset(_options_of(classes, is_text)),
        lists=frozenset(_options_of(classes, is_list)),
        text_lists=frozenset(_options_of(classes, _is_text_list)),
        integers=frozenset(_options_of(classes, _is_integer)),
    )


def _options_of(
    classes: Sequence[type[BaseModel]], suits: Callable[[object], bool], prefix: str = ""
) -> Iterator[str]:
    """Yield the dotted names of the options whose type suits."""
    for config_class in classes:
        for name, field in config_class.model_fields.items():
            if suits(field.annotation):
                yield prefix + name
            # the items of a list are no options
            elif not is_list(field.annotation):
                yield from _options_of(config_classes(field), suits, f"{prefix}{name}.")


def is_list(annotation: object) -> bool:
    """Return True for ``tuple[X, ...]``, also if it may be None.

    Args:
        annotation: the type of an option.
    """
    return any(get_origin(part) is tuple for part in _parts(annotation))


def is_text(annotation: object) -> bool:
    """Return True for ``str`` and ``Path``, also if they may be None.

    Args:
        annotation: the type of an option.
    """
    return any(part in (str, Path) for part in _parts(annotation))


def _is_text_list(annotation: object) -> bool:
    return any(get_args(part) == (str, ...) for part in _parts(annotation))


def _is_integer(annotation: object) -> bool:
    parts = _parts(annotation)
    return int in parts and float not in parts


def _parts(annotation: object) -> list[object]:
    """Return the types that an annotation joins by ``|``, without ``Annotated``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _parts(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [plain for part in get_args(annotation) for plain in _parts(part)]
    return [annotation]


# ---------------------------------------------------------------------------------- as it is meant


def parse_value(key: str, value: str, types: OptionTypes) -> object:
    """Return the value of an option as OmegaConf takes it.

    Args:
        key: dotted name of the option.
        value: the value as it was typed.
        types: the options that take texts and lists.

    Returns:
        A text for an option that takes one, a list of texts for an option that takes those. Else
        what Hydra reads in the value, and if that is nothing, the value as a text.

    Raises:
        ConfigError: several values came for an option that takes one, or a list or dictionary
            that cannot be read.
    """
    if value == MISSING:
        raise ConfigError(f"{key}: expected a value, got '{MISSING}', which stands for none")
    if key in types.texts:
        return _parse_text(value)
    if key in types.text_lists:
        return _parse_text_list(value)
    value = one_value(key, value, takes_list=key in types.lists)
    try:
        return _parse_by_hydra(value)
    except SeveralValuesError:
        raise ConfigError(f"{key}: expected one value, got several, {shorten(value)}") from None
    except SyntaxError:
        if value.startswith(tuple(BRACKETS)):
            raise ConfigError(
                f"{key}: cannot read {shorten(value)} as a list or dictionary; close all "
                "brackets, and put texts with symbols in quotation marks"
            ) from None
    # the schema says what is expected instead, if a text is not
    return as_literal(value)


def _parse_text(value: str) -> str | None:
    """Return a text as it was typed, or without the quotation marks around it; None for null."""
    if value.lower() == "null":
        return None
    if value.strip().startswith(tuple(QUOTES)):
        # otherwise the quotation marks belong to the text
        with suppress(SyntaxError, SeveralValuesError):
            return as_literal(str(_parse_by_hydra(value)))
    return as_literal(value)


def _parse_text_list(value: str) -> list[str | None] | str | None:
    """Return the texts of ``a,b`` and ``[a,b]``; None for null, and nothing as it is."""
    value = value.strip()
    if not value:
        return ""  # the schema says that it is no list
    if value.lower() == "null":
        return None
    if value.startswith("[") and value.endswith("]"):
        value = value[1:-1]
        if not value.strip():
            return []
    return [_parse_text(part.strip()) for part in split_outside_brackets(value)]


def _parse_by_hydra(value: str) -> object:
    """Return what Hydra reads in a value.

    Raises:
        SyntaxError: the value does not follow Hydra's syntax.
        SeveralValuesError: the value stands for several ones.
    """
    # imported on use, because Hydra takes long to import
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        # the key is no matter, and not every key of a task's kwargs is one for Hydra
        override = OverridesParser.create().parse_override(f"++key={value}")
    except (HydraException, RecursionError) as error:
        # its message is about how Hydra works inside
        raise SyntaxError(value) from error
    if override.is_sweep_override():
        raise SeveralValuesError(value)
    parsed: object = override.value()
    return parsed


def as_literal(text: str) -> str:
    r"""Return a text in which OmegaConf finds no interpolation: ``\${x}`` for ``${x}``.

    Args:
        text: any text.
    """
    # backslashes before an interpolation count as escapes
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def one_value(key: str, value: str, *, takes_list: bool) -> str:
    """Return the value of an option that Hydra shall read as one value, not as several runs.

    Args:
        key: the option.
        value: the value as it was typed.
        takes_list: True if the option takes a list, whose brackets may then be left out.

    Returns:
        The value, in brackets if it is a list.

    Raises:
        ConfigError: several values came for an option that takes one.
    """
    values = split_outside_brackets(value)
    if len(values) == 1 and not SWEEPS.match(value):
        return value
    if takes_list and not SWEEPS.match(value):
        return f"[{value}]"
    if key.startswith("task.kwargs."):
        remedy = f"""write a list in brackets, '{key}=[{value}]', or a text in quotation marks, \
'{key}="{value}"'"""
    elif key == "seed":
        remedy = "--multirun trains each, mirl-compare settings.NAME=… seeds=1,2,3 compares"
    else:
        remedy = (
            f"--multirun trains each, mirl-compare settings.A='{key}=…' settings.B='{key}=…' "
            "compares"
        )
    raise ConfigError(f"{key}: expected one value for one run, got '{value}'; {remedy}")


def split_outside_brackets(value: str) -> list[str]:
    """Split a value at the commas that stand in no brackets and no quotation marks.

    Args:
        value: the value.
    """
    parts = [""]
    closing: list[str] = []
    quote = ""
    last = ","
    for character in value:
        if quote:
            quote = "" if character == quote else quote
        # elsewhere it is an apostrophe
        elif character in QUOTES and last in BEFORE_QUOTE:
            quote = character
        elif character in BRACKETS:
            closing.append(BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            parts.append("")
            last = character
            continue
        parts[-1] += character
        last = last if character.isspace() else character
    return parts
