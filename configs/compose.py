"""From command-line arguments to a valid configuration.

Hydra composes the YAML presets, the schema validates the result. Every invalid argument raises a
``ConfigError`` that says what was expected, what was given, and the nearest valid name.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from mirl.configs.aliases import replace_preset
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import TrainConfig
from mirl.configs.validation_messages import config_classes, explain

PRESETS_DIR = Path(__file__).parent
"""Folder of train.yaml and of the groups' folders."""
GROUPS = ("task", "fusion", "context", "encoder", "memory", "agent", "split")
"""Options that take the name of a preset."""

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def presets(group: str) -> list[str]:
    """Return the names of a group's presets in alphabetical order.

    Args:
        group: one of ``GROUPS``.
    """
    return sorted(path.stem for path in (PRESETS_DIR / group).glob("*.yaml"))


def option_names(classes: Sequence[type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every option of some config classes: ``agent.n_steps``.

    Tuples of configs are set as a whole, so the options of their items are left out.

    Args:
        classes: config classes that can stand at the same place, e.g. the members of a union.
        prefix: text before each name, e.g. ``agent.``.
    """
    for config_class in classes:
        for name, field in config_class.model_fields.items():
            yield prefix + name
            if get_origin(field.annotation) is not tuple:
                yield from option_names(config_classes(field), f"{prefix}{name}.")


def validate(model: type[ConfigT], values: object) -> ConfigT:
    """Build a config from plain values.

    Args:
        model: config class.
        values: nested dictionaries and lists, as from a YAML file.

    Returns:
        The valid config.

    Raises:
        ConfigError: if a value is invalid, with one line per error.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # dictionary keys: pydantic may report one error once per member of a union
        lines = dict.fromkeys(explain(model, detail) for detail in error.errors())
    # outside of the except block, so that pydantic's error is not shown as its cause
    raise ConfigError("\n".join(lines))


def parse_overrides(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``key=value`` arguments into pairs.

    Args:
        argv: command-line arguments. Hydra's leading ``+`` is accepted and ignored.

    Returns:
        The keys and values in the given order.

    Raises:
        ConfigError: if an argument is not of the form ``key=value``.
    """
    pairs: list[tuple[str, str]] = []
    for word in argv:
        # at the first =, because values may contain others
        key, equals, value = word.partition("=")
        key = key.lstrip("+")
        if not equals or not key:
            raise ConfigError(f"expected key=value, got '{word}'. See --help.")
        pairs.append((key, value))
    return pairs


def compose_train(argv: Sequence[str]) -> TrainConfig:
    """Compose the configuration of ``train.py key=value ...``.

    A group takes a preset (``fusion=film``), any other option a value (``agent.n_steps=64``).
    ``task`` also takes environment ids, one or several
    (``task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0``); context and encoder are then chosen by the
    observation space, unless an argument sets them.

    Args:
        argv: command-line arguments.

    Returns:
        The valid configuration.

    Raises:
        ConfigError: if an argument is invalid.
    """
    pairs = parse_overrides(argv)
    known = set(option_names([TrainConfig]))
    # "context.dim=32" sets the group "context"
    groups_set = {key.partition(".")[0] for key, _ in pairs}
    overrides: list[str] = []
    for key, value in pairs:
        if key not in known:
            raise ConfigError(f"unknown option '{key}'." + nearest(key, known))
        # environment ids end in a version, and no preset has "-v" in its name
        if key == "task" and "-v" in value:
            overrides += _override_environments(value)
            # the default presets fit MiniGrid, and these environments may be of any kind
            for group in ("context", "encoder"):
                if group not in groups_set:
                    overrides.append(f"{group}=auto")
        elif key in GROUPS:
            overrides.append(_override_preset(key, value))
        else:
            # ++ sets an option whether or not the preset lists it
            overrides.append(f"++{key}={value}")
    return validate(TrainConfig, _compose(overrides))


def _override_preset(group: str, value: str) -> str:
    """Return Hydra's override for a preset."""
    name = replace_preset(group, value)
    names = presets(group)
    if name not in names:
        expected = "a preset"
        if group == "task":
            expected = "a preset or an environment id"
        raise ConfigError(f"unknown {group} '{name}': expected {expected}." + nearest(name, names))
    return f"{group}={name}"


def _override_environments(value: str) -> list[str]:
    """Return Hydra's overrides for a suite of environment ids that are joined by ``+``."""
    tasks: list[str] = []
    for env_id in value.split("+"):
        task = f"name: {env_id}, env_id: {env_id}"
        if env_id.startswith("Meta-World/"):
            # Meta-World counts an episode as a success if any of its timesteps is one
            task += ", success: any_step"
        # a dictionary in the syntax of Hydra's command line
        tasks.append(f"{{{task}}}")
    return [f"++task.name={value}", f"++task.tasks=[{', '.join(tasks)}]"]


def _compose(overrides: list[str]) -> object:
    """Return the plain values of train.yaml after Hydra applied the overrides."""
    # imported on use, because Hydra takes long to import and eval.py does without
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(PRESETS_DIR), version_base="1.3"):
            config = compose("train", overrides)
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        # the lines after the first are about how Hydra works inside
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the command line could not be parsed: {reason}") from None


def parse_flat(model: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """Build the configuration of a command without presets (``eval.py``).

    Args:
        model: config class whose options have no options of their own.
        argv: ``key=value`` arguments.

    Returns:
        The valid configuration.

    Raises:
        ConfigError: if an argument is invalid.
    """
    pairs = parse_overrides(argv)
    for key, _ in pairs:
        if key not in model.model_fields:
            raise ConfigError(f"unknown option '{key}'." + nearest(key, model.model_fields))
    # all values are strings; pydantic converts them to the types of the fields
    return validate(model, dict(pairs))
