"""Arguments of the commands, ``key=value``: their syntax, and the errors for invalid ones."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import get_origin

from pydantic import BaseModel

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.validation_messages import config_classes

TYPED_NAMES = {"import": "imports", "success": "task.success"}
"""Names of options as they may be typed, because Python reserves the word or it is shorter."""
MULTIRUN = ("-m", "--multirun")
"""Arguments that request several runs, as in Hydra."""
SYNONYMS = {
    "lr": "agent.learning_rate",
    "steps": "total_timesteps",
    "timesteps": "total_timesteps",
    "total_steps": "total_timesteps",
    "n_timesteps": "total_timesteps",
    "env": "task",
    "env_id": "task",
    "envs": "agent.n_envs",
    "num_envs": "agent.n_envs",
    "num_steps": "agent.n_steps",
    "rollout": "agent.n_steps",
    "algo": "agent",
    "algorithm": "agent",
    "epochs": "agent.n_epochs",
    "update_epochs": "agent.n_epochs",
    "minibatch_size": "agent.batch_size",
    "entropy": "agent.ent_coef",
    "clip": "agent.clip_range",
    "lambda": "agent.gae_lambda",
    "hidden": "agent.net_arch",
    "cuda": "device",
    "gpu": "device",
    "seeds": "seed",
    "out": "runs_dir",
    "logdir": "runs_dir",
    "log_dir": "runs_dir",
    "video": "videos",
    "gif": "videos",
    "save_every": "checkpoint_every",
    "eval_every": "evaluation.every",
    "eval_episodes": "evaluation.episodes",
    "load": "start_from",
    "init_from": "start_from",
    "path": "run",
    "run_dir": "run",
    "n_episodes": "episodes",
}
"""Names of options in other programs."""
MAX_SUGGESTIONS = 4
"""Maximum number of options that a message suggests."""


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
        if word in MULTIRUN:
            raise ConfigError(
                f"{word}: only train.py has it, for several runs; this command takes one, or "
                "several settings and seeds as its --help says"
            )
        if not equals or not key:
            raise ConfigError(f"expected key=value, got '{word}'. See --help.")
        pairs.append((TYPED_NAMES.get(key, key), value))
    return pairs


def option_names(classes: Sequence[type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every option of some config classes: ``agent.n_steps``.

    Tuples of configs are set as a whole, so the options of their items are left out.

    Args:
        classes: config classes that can occur in the same place, e.g. the members of a union.
        prefix: text before each name, e.g. ``agent.``.
    """
    for config_class in classes:
        for name, field in config_class.model_fields.items():
            yield prefix + name
            if get_origin(field.annotation) is not tuple:
                yield from option_names(config_classes(field), f"{prefix}{name}.")


def unknown_option(key: str, known: Iterable[str]) -> ConfigError:
    """Return the error about an unknown option, with a suggestion of the intended one.

    Args:
        key: the unknown name.
        known: names of the options.
    """
    names = set(known)
    plain = key.strip("-").replace("-", "_").lower()
    # with its group or without
    meant = [SYNONYMS.get(plain.rpartition(".")[2], plain)]
    if meant[0] not in names:
        # an option of a group that was typed without the group
        meant = sorted(name for name in names if name.rpartition(".")[2] == plain)
    hint = nearest(key, names)
    if 0 < len(meant) <= MAX_SUGGESTIONS:
        quoted = [f"'{name}'" for name in meant]
        hint = f" Did you mean {' or '.join(quoted)}?"
    return ConfigError(f"unknown option '{key}'.{hint}")


# ----------------------------------------------------------------------------------- as it is typed


def typed_name(name: str) -> str:
    """Return the name of an option as it is typed.

    Args:
        name: name of the field, e.g. ``imports``.
    """
    for typed, field in TYPED_NAMES.items():
        # an option of a group keeps its full name, although the short form may be typed, too
        if field == name and "." not in field:
            return typed
    return name


def typed_value(value: object) -> str:
    """Return a value as it is typed in a command.

    Args:
        value: value of an option.
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{','.join(map(typed_value, value))}]"
        case BaseModel():
            return "…"
        case _:
            return str(value)


def typed_words(config: BaseModel) -> list[str]:
    """Return the shell arguments for a config's values, except for those that are defaults.

    Args:
        config: a config without groups, such as ``EvalConfig``.
    """
    words = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value != field.get_default(call_default_factory=True):
            words.append(shlex.quote(f"{typed_name(name)}={typed_value(value)}"))
    return words
