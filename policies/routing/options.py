"""Options of parts that are chosen by the observation space."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from mirl.configs.config import Config
from mirl.configs.errors import ConfigError
from mirl.configs.validation_messages import explain

ConfigT = TypeVar("ConfigT", bound=Config)


def accepts(part: Config, name: str, value: object) -> bool:
    """Return True if a config has an option, and the value is valid for it.

    Args:
        part: the config.
        name: name of the option.
        value: its value.
    """
    if name not in type(part).model_fields:
        return False
    try:
        type(part).model_validate({**part.model_dump(), name: value})
    except ValidationError as error:
        # options that depend on each other are checked together, when all are known
        return not any(detail["loc"] for detail in error.errors())
    return True


def with_options(part: Any, options: Mapping[str, Any], group: str) -> Any:
    """Return a config with some options replaced, validated.

    Args:
        part: the config.
        options: values of some of its options, by name.
        group: group of the config, for the message, e.g. "encoder".

    Raises:
        ConfigError: if the config has no such option, or if a value is invalid.
    """
    for name in options:
        if name not in type(part).model_fields:
            raise unused_option(group, name, [f"{part.kind}"])
    if not options:
        return part
    return validated(type(part), {**part.model_dump(), **options}, group)


def validated(config_class: type[ConfigT], values: Mapping[str, Any], group: str) -> ConfigT:
    """Build a config from some values.

    Args:
        config_class: class of the config.
        values: values of its options, by name.
        group: group of the config, for the message.

    Raises:
        ConfigError: if a value is invalid; the message names the group.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        problem = explain(config_class, error.errors()[0])
    raise ConfigError(f"{group}.{problem}")


def unused_option(group: str, name: str, chosen: Sequence[str]) -> ConfigError:
    """Return the error for an option that none of the chosen parts has.

    Args:
        group: group of the parts, "context" or "encoder".
        name: name of the option.
        chosen: the parts, in words.
    """
    return ConfigError(
        f"{group}.{name} is not an option of what the observation calls for, {', '.join(chosen)}; "
        f"remove {group}.{name}"
    )
