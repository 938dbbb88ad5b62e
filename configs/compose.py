"""Composition of a valid configuration from command-line arguments.

Hydra composes the YAML presets, the schema validates the result. Every invalid argument raises a
``ConfigError`` that says what was expected, what was given, and the nearest valid name.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mirl.configs.aliases import replace_preset
from mirl.configs.commands.values import QUOTES, option_types, parse_value
from mirl.configs.commands.words import (
    TYPED_NAMES,
    option_names,
    parse_overrides,
    unknown_option,
)
from mirl.configs.errors import ConfigError, first_lines, nearest
from mirl.configs.imports import allow_imports, import_modules, named_code
from mirl.configs.parts import OWN_KIND
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig
from mirl.configs.validation_messages import config_classes, explain

if TYPE_CHECKING:  # Hydra is imported on use
    from omegaconf import DictConfig

PRESETS_DIR = Path(__file__).parent
"""Folder of train.yaml and of the groups' folders."""
GROUPS = ("task", "fusion", "context", "encoder", "memory", "agent", "split")
"""Options that take the name of a preset."""
PARTS = ("fusion", "context", "encoder", "memory")
"""Parts of the network: groups that also take a user's class, ``module:Class``, and for which an
option that the default kind lacks chooses another preset."""
OWN_PARTS = "own_parts"
"""Key under which Hydra composes the options of such classes, separate from those of a preset."""
BY_OBSERVATION = ("fusion", "context", "encoder")
"""Groups that ``auto`` chooses by the observation space."""
LOGGER_EXTRAS = ("wandb", "trackio", "mlflow")
"""Loggers with optional packages; logger, package and extra have the same name."""
PRESET_ERRORS = (yaml.YAMLError, ValueError, LookupError)
"""Exceptions caused by a preset that is not valid YAML; PyYAML does not wrap those of ``int()`` and
the like."""
CONFIG_DIR = "--config-dir"
"""Argument of the commands that names a folder of the user's own presets."""
FREE_OPTION = re.compile(r"(task\.kwargs|encoder\.parts)(\.[^.\[\]]+)+")
"""Options whose names the schema does not know. OmegaConf reads brackets in a name as dots."""

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def presets(group: str, config_dir: Path | None = None) -> list[str]:
    """Return the names of a group's presets in alphabetical order.

    Args:
        group: one of ``GROUPS``.
        config_dir: folder of the user's own presets, which are included.
    """
    folders = [PRESETS_DIR]
    if config_dir is not None:
        folders.append(config_dir)
    names: set[str] = set()
    for folder in folders:
        names |= {path.stem for path in (folder / group).glob("*.yaml")}
    return sorted(names)


def preset_path(group: str, name: str, config_dir: Path | None = None) -> Path:
    """Return the file of a preset, which need not exist.

    Args:
        group: one of ``GROUPS``.
        name: name of the preset.
        config_dir: folder of the user's own presets, which come after MIRL's.
    """
    path = PRESETS_DIR / group / f"{name}.yaml"
    if config_dir is not None and not path.exists():
        path = config_dir / group / f"{name}.yaml"
    return path


def split_config_dir(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take ``--config-dir DIR`` or ``--config-dir=DIR`` out of the arguments.

    Args:
        argv: command-line arguments.

    Returns:
        The other arguments, and the folder as an absolute path; None if there is none.

    Raises:
        ConfigError: if the folder does not exist, or holds no presets, or one with the name of a
            preset of MIRL.
    """
    words: list[str] = []
    given: str | None = None
    remaining = iter(argv)
    for word in remaining:
        key, equals, value = word.partition("=")
        if key != CONFIG_DIR:
            words.append(word)
        elif equals:
            given = value
        else:
            given = next(remaining, "")
    if given is None:
        return words, None
    folder = Path(given).expanduser().absolute()
    if not given or not folder.is_dir():
        raise ConfigError(f"{CONFIG_DIR}: expected a folder of presets, got '{given}'")
    own = [(group, path.stem) for group in GROUPS for path in (folder / group).glob("*.yaml")]
    if not own:
        raise ConfigError(
            f"{CONFIG_DIR}: {given} holds no presets; expected files such as task/my_task.yaml in "
            f"the folders {', '.join(GROUPS)}"
        )
    for group, name in own:
        if name in presets(group):
            raise ConfigError(
                f"{CONFIG_DIR}: MIRL has a preset {group}={name}; rename {group}/{name}.yaml"
            )
    return words, folder


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
        # dictionaries: pydantic may report one error once per member of a union, and an option that
        # is given for all tasks is wrong in each of them
        tasks_by_line: dict[str, dict[str, None]] = {}
        for detail in error.errors():
            line, task = _split_task(explain(model, detail), values)
            tasks_by_line.setdefault(line, {}).setdefault(task)
    # outside of the except block, so that pydantic's error is not shown as its cause
    lines: list[str] = []
    for line, tasks in tasks_by_line.items():
        names = ", ".join(name for name in tasks if name)
        lines.append(f"{names}: {line}" if names else line)
    raise ConfigError("\n".join(first_lines(lines)))


def _split_task(line: str, values: object) -> tuple[str, str]:
    """Remove the location of a task, ``task.tasks.0``, from an error message.

    Users who gave environment ids have never typed this number.

    Returns:
        The rest of the message, and the task as ``task 'reach'``; empty if there is none.
    """
    place = re.search(r"(?:task\.)?tasks\.(\d+)\.(?=\w)", line)
    suite = values
    if isinstance(suite, dict) and "tasks" not in suite:
        suite = suite.get("task")
    tasks = suite.get("tasks") if isinstance(suite, dict) else None
    if place is None or not isinstance(tasks, list | tuple) or int(place[1]) >= len(tasks):
        return line, ""
    task = tasks[int(place[1])]
    name = task.get("name") if isinstance(task, dict) else None
    if not isinstance(name, str):
        return line, ""
    return line[: place.start()] + line[place.end() :], f"task '{name}'"


def compose_train(argv: Sequence[str]) -> TrainConfig:
    """Compose the configuration of ``train.py key=value ...``.

    A group takes a preset (``fusion=film``), any other option a value (``agent.n_steps=64``).
    ``task`` also takes environment ids, one or several
    (``task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0``); fusion, context and encoder are then chosen by
    the observation space, unless an argument sets them. ``fusion``, ``context``, ``encoder`` and
    ``memory`` also take a user's class (``fusion=my_package:Mine fusion.rank=8``).

    From then on, the modules that the arguments name may be imported; those of ``import=`` are
    imported now.

    Args:
        argv: command-line arguments.

    Returns:
        The valid configuration.

    Raises:
        ConfigError: if an argument is invalid.
    """
    words, config_dir = split_config_dir(argv)
    pairs = parse_overrides(words)
    known = set(option_names([TrainConfig]))
    types = option_types([TrainConfig])
    groups_set = {key for key, _ in pairs if key in GROUPS}
    own_parts = {key for key, value in pairs if key in PARTS and OWN_KIND in value}
    choices: dict[str, str] = {}
    options: list[tuple[str, object]] = []
    for key, value in pairs:
        group, _, option = key.partition(".")
        if group in own_parts:
            name = f"{OWN_PARTS}.{group}.{option or 'kind'}"
            options.append((name, parse_value(key, value, types)))
            continue
        # the user's own presets may use classes whose options only the validation knows
        is_free = config_dir is not None and group in PARTS and option
        if key not in known and not FREE_OPTION.fullmatch(key) and not is_free:
            raise unknown_option(key, known)
        if key == "task" and _names_environments(value, presets("task", config_dir)):
            has_rule = any(option == "task.success" for option, _ in pairs)
            options += _suite_of_environments(value, has_rule)
        elif key in GROUPS:
            choices[key] = _known_preset(key, value, config_dir)
        else:
            options.append((key, parse_value(key, value, types)))
    automatic = dict.fromkeys(_groups_by_observation(pairs, config_dir), "auto")
    for group, name in {**_groups_by_options(pairs, config_dir), **automatic}.items():
        if group not in groups_set:
            choices[group] = name
    values = _compose(choices, options, config_dir)
    if isinstance(values, dict):
        # replaces the group's preset and all of its options
        values |= values.pop(OWN_PARTS, {})
    # MIRL's own presets do not name code, so the user has named all of these modules
    allow_imports(*_named_modules(values))
    if isinstance(values, dict):
        import_modules(_named_modules({"imports": values.get("imports")}))
    config = validate(TrainConfig, values)
    check_loggers(config.logger)
    return config


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed.

    Args:
        names: the loggers.

    Raises:
        ConfigError: a package is missing; the error names the command that installs it.
    """
    for name in names:
        if name not in LOGGER_EXTRAS:
            continue
        spec = find_spec(name)
        # a folder of this name, such as wandb creates, is a namespace package without an origin
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"logger={name}: the package is not installed; "
                f'pip install "mirl[{name}]", or choose another logger=…'
            )


def compose_suite(name: str, config_dir: Path | None = None) -> SuiteConfig:
    """Compose the suite of ``task=name``.

    Args:
        name: a preset, or one or several environment ids.
        config_dir: folder of the user's own presets.

    Returns:
        The suite.

    Raises:
        ConfigError: if there is no such preset, or an id is not valid.
    """
    words = [f"task={name}"]
    if config_dir is not None:
        words.append(f"{CONFIG_DIR}={config_dir}")
    return compose_train(words).task


def _named_modules(values: object) -> list[str]:
    return [name.partition(":")[0] for name in named_code(values)]


def _groups_by_observation(
    pairs: Sequence[tuple[str, str]], config_dir: Path | None
) -> tuple[str, ...]:
    """Return the groups to choose by the observation, because their defaults are for MiniGrid.

    MIRL's presets fit their own tasks. Environments that the user names may be of any kind, and so
    may those in the user's own presets or in wrappers; groups that such a preset overrides are
    kept.
    """
    keys = {key for key, _ in pairs}
    names = [value for key, value in pairs if key == "task"]
    if not names:
        if keys & {"task.tasks", "task.wrappers"}:
            return BY_OBSERVATION
        return ()
    name = replace_preset("task", names[-1])
    if _names_environments(name, presets("task", config_dir)):
        return BY_OBSERVATION
    if name in presets("task") and "task.wrappers" not in keys:
        return ()
    overridden = _overridden_groups(name, config_dir)
    return tuple(group for group in BY_OBSERVATION if group not in overridden)


def _groups_by_options(pairs: Sequence[tuple[str, str]], config_dir: Path | None) -> dict[str, str]:
    """Return a preset for each group with a given option that the group's default lacks.

    ``encoder.normalize=true`` requires an encoder that can normalize. Fusion, context and encoder
    are chosen by the observation; for the memory, the only kind with the option is chosen.
    """
    chosen: dict[str, str] = {}
    for key, _ in pairs:
        group, _, option = key.partition(".")
        option = option.partition(".")[0]
        if group not in PARTS or not option:
            continue
        kinds: dict[str, type[BaseModel]] = {}
        for config_class in config_classes(TrainConfig.model_fields[group]):
            kinds[config_class.model_fields["kind"].default] = config_class
        owners = [
            kind for kind, config_class in kinds.items() if option in config_class.model_fields
        ]
        if _default_kind(group, pairs, config_dir) in owners:
            continue
        if group in BY_OBSERVATION:
            chosen[group] = "auto"
        elif len(owners) == 1:
            chosen[group] = owners[0]
    return chosen


def _default_kind(
    group: str, pairs: Sequence[tuple[str, str]], config_dir: Path | None
) -> str | None:
    """Return the default kind of a group, from the task's preset or train.yaml."""
    name = default_presets(PRESETS_DIR / "train.yaml").get(group)
    task = [value for key, value in pairs if key == "task"]
    if task:
        preset = replace_preset("task", task[-1])
        name = default_presets(preset_path("task", preset, config_dir)).get(group, name)
    content = load_preset(PRESETS_DIR / group / f"{name}.yaml")
    return str(content["kind"]) if "kind" in content else None


def _overridden_groups(name: str, config_dir: Path | None) -> set[str]:
    """Return the groups that a preset of ``task`` overrides in its defaults list."""
    return set(default_presets(preset_path("task", name, config_dir)))


def default_presets(path: Path) -> dict[str, str]:
    """Return the defaults list of a preset: the name of the preset of each group.

    Args:
        path: the file of the preset, or train.yaml.
    """
    chosen: dict[str, str] = {}
    for entry in load_preset(path).get("defaults") or ():
        if isinstance(entry, dict):  # written as "override /context: task_id"
            for group, name in entry.items():
                chosen[str(group).rpartition("/")[2]] = str(name)
    return chosen


def load_preset(path: Path) -> dict[str, Any]:
    """Return a preset; empty if it cannot be read, because Hydra reports that.

    Args:
        path: the file of the preset.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, *PRESET_ERRORS):
        return {}
    return content if isinstance(content, dict) else {}


def _names_environments(value: str, names: Sequence[str]) -> bool:
    """Return True if ``task=`` is given environment ids, joined by ``+``, and not a preset."""
    if value in names:
        return False
    return any(_looks_like_id(word) for word in value.split("+"))


def _looks_like_id(word: str) -> bool:
    """Return True for ``module:Id``, ``namespace/Name``, ``name-v0`` and ``Name``."""
    return ":" in word or "/" in word or bool(re.search(r"-v\d", word)) or word[:1].isupper()


def _known_preset(group: str, value: str, config_dir: Path | None) -> str:
    """Return the name of a preset, or raise if there is no such preset."""
    name = replace_preset(group, value)
    names = presets(group, config_dir)
    if "," in value:
        remedy = f"--multirun trains each, mirl-compare {group}={value} compares them"
        if group == "task":
            remedy = "--multirun trains each; ids that are trained together are joined by +"
        raise ConfigError(f"{group}: expected one name for one run, got '{value}'; {remedy}")
    if name not in names:
        expected = "a preset"
        if group == "task":
            expected = "a preset or an environment id"
        elif group in PARTS:
            expected = "a preset or module:Class"
        raise ConfigError(f"unknown {group} '{name}': expected {expected}." + nearest(name, names))
    return name


def _suite_of_environments(value: str, has_rule: bool) -> list[tuple[str, object]]:
    """Return the options of a suite of environment ids, joined by ``+``.

    ``has_rule`` is True if another argument sets the success rule of the tasks.
    """
    tasks: list[dict[str, str]] = []
    for env_id in value.split("+"):
        if not re.fullmatch(r"[\w .:/-]+", env_id):
            raise ConfigError(
                f"task: expected an environment id, or several joined by +, got '{env_id}'"
            )
        if not _looks_like_id(env_id):
            raise ConfigError(
                f"task: only environment ids can be joined by +, got '{env_id}'; write the ids of "
                "its environments"
            )
        task = {"name": env_id, "env_id": env_id}
        if env_id.startswith("Meta-World/") and not has_rule:
            # Meta-World counts an episode as a success if any of its timesteps succeeds
            task["success"] = "any_step"
        tasks.append(task)
    return [("task.name", value), ("task.tasks", tasks)]


def _compose(
    choices: Mapping[str, str], options: Sequence[tuple[str, object]], config_dir: Path | None
) -> object:
    """Return the plain values of train.yaml with the given presets and options.

    Args:
        choices: name of the preset by group.
        options: dotted names and values, as OmegaConf takes them; the last value of a name counts.
        config_dir: folder of the user's own presets.
    """
    # imported on use, because Hydra is slow to import and eval.py does not need it
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    chosen = tuple(choices.items())
    try:
        if config_dir is None:
            config = copy.deepcopy(_compose_own_presets(chosen))
        else:
            config = _compose_presets(chosen, config_dir)
        # as Hydra does after merging the presets
        for key, value in options:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        # the lines after the first are about Hydra's internals
        reason = str(error).splitlines()[0]
        if isinstance(error, InterpolationResolutionError):
            reason += r"; '\${' stands for the characters '${' themselves"
        raise ConfigError(f"the command line could not be parsed: {reason}") from None
    except PRESET_ERRORS as error:
        reason = " ".join(str(error).split())
        # MIRL's own presets are valid, so otherwise a value is invalid, such as one of 5,000 digits
        subject = "the command line could not be parsed"
        if config_dir is not None:
            subject = f"{CONFIG_DIR}: a preset could not be read"
        raise ConfigError(f"{subject}: {reason}") from None


@lru_cache(maxsize=256)
def _compose_own_presets(choices: tuple[tuple[str, str], ...]) -> "DictConfig":
    """Return train.yaml with some of MIRL's presets; cached, as it may be composed often."""
    return _compose_presets(choices, None)


def _compose_presets(choices: Sequence[tuple[str, str]], config_dir: Path | None) -> "DictConfig":
    """Return train.yaml with the given presets, such as ``fusion=film``."""
    from hydra import compose, initialize_config_dir

    words = [f"{group}={_quoted(name)}" for group, name in choices]
    if config_dir is not None:
        words.append(f"hydra.searchpath=[{_quoted(f'file://{config_dir}')}]")
    with initialize_config_dir(str(PRESETS_DIR), version_base="1.3"):
        return compose("train", words)


def _quoted(text: str) -> str:
    """Return a text in quotation marks, as Hydra reads it on its command line."""
    # backslashes count as escapes only before a quotation mark, also before the last one
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)
    at_end = len(text) - len(text.rstrip("\\"))
    return "'" + escaped + "\\" * at_end + "'"


def parse_flat(model: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """Build the configuration of a command without presets (``eval.py``).

    Args:
        model: config class whose options do not have options themselves.
        argv: ``key=value`` arguments.

    Returns:
        The valid configuration; the modules of ``import=`` have been imported.

    Raises:
        ConfigError: if an argument is invalid.
    """
    words = list(argv)
    options: dict[str, object] = {}
    if "config_dir" in model.model_fields:
        words, config_dir = split_config_dir(argv)
        if config_dir is not None:
            options["config_dir"] = config_dir
    pairs: list[tuple[str, str]] = []
    for key, value in parse_overrides(words):
        # in a command without groups, the rule is a top-level option
        option = "success" if key == TYPED_NAMES["success"] else key
        pairs.append((option, value.strip(QUOTES) if option == "success" else value))
    for key, _ in pairs:
        if key not in model.model_fields:
            raise unknown_option(key, model.model_fields)
    # all values are strings; pydantic converts them to the types of the fields
    config = validate(model, {**dict(pairs), **options})
    import_modules(getattr(config, "imports", ()))
    return config
