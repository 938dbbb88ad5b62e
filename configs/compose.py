"""From the command line to a valid configuration: Hydra composes the presets, the schema judges the result.

Every mistake ends in one ``ConfigError`` that says what was expected, what came and the nearest valid name.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirl.configs.aliases import replace_preset
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import TrainConfig

PRESETS = Path(__file__).parent
GROUPS = ("task", "fusion", "context", "encoder", "memory", "agent", "split")
LONGEST = 200
"""Characters of a value that a message shows."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def presets(group: str) -> list[str]:
    """The names that ``group=`` takes."""
    return sorted(path.stem for path in (PRESETS / group).glob("*.yaml"))


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The config classes behind a field's annotation: one, the members of a union, or those inside a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, tuple, UnionType):
        return [model for part in get_args(annotation) for model in models_of(part)]
    return []


def fields_of(models: Sequence[type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """Every dotted name below these config classes: ``agent.n_steps``. A tuple is set as a whole."""
    for model in models:
        for name, field in model.model_fields.items():
            yield prefix + name
            if get_origin(field.annotation) is not tuple:
                yield from fields_of(models_of(field.annotation), f"{prefix}{name}.")


def validate(model: type[ModelT], values: Any) -> ModelT:
    """The config that these values make; the first mistake raises a ConfigError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(dict.fromkeys(_explain(model, detail) for detail in error.errors()))
        ) from None


def _shown(value: Any) -> str:
    """As Python writes it, and no longer than a line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """One line for one of pydantic's findings."""
    models: list[type[BaseModel]] = [model]
    siblings: dict[str, type[BaseModel]] = {}
    path: list[str] = []
    for part in detail["loc"]:
        kinds = {m.model_fields["kind"].default: m for m in models if "kind" in m.model_fields}
        if part in kinds:  # pydantic names the member of the union, the user does not
            models, siblings = [kinds[part]], kinds
            continue
        path.append(str(part))
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if detail["type"] == "extra_forbidden" and not fields and not isinstance(part, int):
            valid = [name for m in models for name in m.model_fields if name != "kind"]
            kind = f" of {next(iter(kinds))}" if len(kinds) == 1 else ""
            others = [name for name, other in siblings.items() if part in other.model_fields]
            hint = (
                f" It is one of {', '.join(others)}."
                if kind and others
                else nearest(str(part), valid)
            )
            return f"unknown option '{'.'.join(path)}'{kind}.{hint}"
        models = [m for field in fields for m in models_of(field.annotation)] or models
    where = ".".join(path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "union_tag_invalid":
        tag = str(detail["ctx"]["tag"])
        return f"unknown {where} '{tag}'." + nearest(
            tag, [k.strip("' ") for k in detail["ctx"]["expected_tags"].split(",")]
        )
    if detail["type"] == "literal_error":
        valid = [
            choice.strip("' ")
            for choice in detail["ctx"]["expected"].replace(" or ", ",").split(",")
        ]
        return (
            f"{where}: expected {detail['ctx']['expected']}, got {_shown(detail['input'])}."
            + nearest(str(detail["input"]), valid)
        )
    if detail["type"] == "missing":
        return f"{where}=… is required"
    if detail["type"] == "value_error":
        return message if not where or message.startswith(path[-1]) else f"{where}: {message}"
    return f"{where}: {message[:1].lower()}{message[1:]}, got {_shown(detail['input'])}"


def parse_overrides(argv: Sequence[str]) -> list[tuple[str, str]]:
    """``key=value`` words as pairs; leading ``+`` marks are allowed and mean nothing here."""
    pairs = []
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or not key.strip("+"):
            raise ConfigError(f"expected key=value, got '{word}'. See --help.")
        pairs.append((key.lstrip("+"), value))
    return pairs


def compose_train(argv: Sequence[str]) -> TrainConfig:
    """The configuration of ``train.py key=value …``.

    A group takes a preset (``fusion=film``), a field a value (``agent.n_steps=64``), and ``task`` also environment ids,
    one or several (``task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0``). Context and encoder are then those that their
    observations call for, unless the command line says something of them.

    :raises ConfigError: for the first thing that is wrong.
    """
    known = sorted({*fields_of([TrainConfig])})
    overrides = []
    pairs = parse_overrides(argv)
    for key, value in pairs:
        if key not in known:
            raise ConfigError(f"unknown option '{key}'." + nearest(key, known))
        if key == "task" and "-v" in value:
            tasks = ", ".join(_task(env_id) for env_id in value.split("+"))
            overrides += ["++task.name=" + value, f"++task.tasks=[{tasks}]"]
            said = {other.partition(".")[0] for other, _ in pairs}
            overrides += [f"{group}=auto" for group in ("context", "encoder") if group not in said]
        elif key in GROUPS:
            value = replace_preset(key, value)
            if value not in presets(key):
                ids = " or an environment id" if key == "task" else ""
                raise ConfigError(
                    f"unknown {key} '{value}': expected a preset{ids}."
                    + nearest(value, presets(key))
                )
            overrides.append(f"{key}={value}")
        else:
            overrides.append(f"++{key}={value}")
    return validate(TrainConfig, _compose(overrides))


def _task(env_id: str) -> str:
    # Meta-World's own rule: reaching the goal counts, staying there does not
    success = ", success: any_step" if env_id.startswith("Meta-World/") else ""
    return f"{{name: {env_id}, env_id: {env_id}{success}}}"


def _compose(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(PRESETS), version_base="1.3"):
            return OmegaConf.to_container(
                compose("train", overrides), resolve=True, throw_on_missing=True
            )
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"the command line could not be read: {str(error).splitlines()[0]}"
        ) from None


def parse_flat(model: type[ModelT], argv: Sequence[str]) -> ModelT:
    """The configuration of a command without presets (``eval.py``), from ``key=value`` words."""
    pairs = parse_overrides(argv)
    for key, _ in pairs:
        if key not in model.model_fields:
            raise ConfigError(f"unknown option '{key}'." + nearest(key, model.model_fields))
    return validate(model, dict(pairs))
