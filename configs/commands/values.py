"""Typed values of options: texts are taken literally, Hydra parses the others.

A shell passes on any characters. Many of them have a special meaning in Hydra's syntax, which they
do not have in a path or a mission.
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
"""Characters after which a quotation mark begins a quotation and is not an apostrophe."""
SWEEPS = re.compile(r"(choice|range|interval|glob)\(")
"""Prefixes of values that stand for several values in Hydra."""
MISSING = "???"
"""Value that OmegaConf reserves for options that must be set."""


class SeveralValuesError(Exception):
    """A value stands for several values, for which Hydra would start several runs."""


class OptionTypes(NamedTuple):
    """Dotted names of options by the type of their values.

    Args:
        texts: options that take any text or path: ``runs_dir``.
        lists: options that take a list: ``agent.net_arch``.
        text_lists: those of them whose items are any texts: ``split.missions``.
        integers: options that take only whole numbers: ``agent.n_steps``.
    """

    texts: frozenset[str]
    lists: frozenset[str]
    text_lists: frozenset[str]
    integers: frozenset[str]


def option_types(classes: Sequence[type[BaseModel]]) -> OptionTypes:
    """Return the types of the options of some config classes.

    Args:
        classes: config classes that can occur in the same place.
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
    """Yield the dotted names of the options whose type matches ``suits``."""
    for config_class in classes:
        for name, field in config_class.model_fields.items():
            if suits(field.annotation):
                yield prefix + name
            # the items of a list are not options
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
    """Return the types that an annotation joins with ``|``, without ``Annotated``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _parts(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [plain for part in get_args(annotation) for plain in _parts(part)]
    return [annotation]


# ---------------------------------------------------------------------------------- as it is meant


def parse_value(key: str, value: str, types: OptionTypes) -> object:
    """Return the value of an option in the form that OmegaConf takes.

    Args:
        key: dotted name of the option.
        value: the value as it was typed.
        types: the options that take texts and lists.

    Returns:
        A text for an option that takes a text, a list of texts for an option that takes those.
        Otherwise, the result of Hydra's parser or, if that fails, the value as a text.

    Raises:
        ConfigError: several values are given for an option that takes one, or a list or dictionary
            cannot be read.
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
    # if a text is not valid, the schema's error says what is expected instead
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
    """Return the texts in ``a,b`` and ``[a,b]``; None for null, and an empty text unchanged."""
    value = value.strip()
    if not value:
        return ""  # the schema reports that it is not a list
    if value.lower() == "null":
        return None
    if value.startswith("[") and value.endswith("]"):
        value = value[1:-1]
        if not value.strip():
            return []
    return [_parse_text(part.strip()) for part in split_outside_brackets(value)]


def _parse_by_hydra(value: str) -> object:
    """Parse a value with Hydra.

    Raises:
        SyntaxError: the value does not follow Hydra's syntax.
        SeveralValuesError: the value stands for several values.
    """
    # imported on use, because Hydra is slow to import
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        # a dummy key, because not every key of a task's kwargs is valid for Hydra
        override = OverridesParser.create().parse_override(f"++key={value}")
    except (HydraException, RecursionError) as error:
        # the original message is about Hydra's internals
        raise SyntaxError(value) from error
    if override.is_sweep_override():
        raise SeveralValuesError(value)
    parsed: object = override.value()
    return parsed


def as_literal(text: str) -> str:
    r"""Escape a text so that OmegaConf does not find interpolations: ``\${x}`` for ``${x}``.

    Args:
        text: any text.
    """
    # backslashes before an interpolation count as escapes
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def one_value(key: str, value: str, *, takes_list: bool) -> str:
    """Return the value of an option such that Hydra parses it as one value, not as several runs.

    Args:
        key: the option.
        value: the value as it was typed.
        takes_list: True if the option takes a list, whose brackets may then be omitted.

    Returns:
        The value, in brackets if it is a list.

    Raises:
        ConfigError: several values are given for an option that takes one.
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
    """Split a value at the commas outside of brackets and quotation marks.

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
