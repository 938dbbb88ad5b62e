"""Schema and arguments of ``compare.py``: a comparison of settings, or of existing runs."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mirl.configs.commands.engines import ENGINE_WORDS, EngineConfig, add_engine_word
from mirl.configs.commands.pretrained import RunPath
from mirl.configs.commands.words import parse_overrides
from mirl.configs.compose import CONFIG_DIR, GROUPS, compose_train, split_config_dir, validate
from mirl.configs.config import Config
from mirl.configs.errors import ConfigError
from mirl.configs.schema import RUN_NAME, split_names
from mirl.configs.tasks import file_name

DEFAULT_FOLDER = Path("comparisons")
"""Folder of the results, inside the current one."""
EQUAL_BY_DEFAULT = "encoder.features_dim"
"""Option that ``match=true`` sets."""
PREFIX = "settings."
"""Prefix of the arguments that name a setting."""
OWN_WORDS = ("seeds", *ENGINE_WORDS, "out", "match")
"""Arguments of compare.py that train.py does not have."""
SET_BY_COMPARISON = {
    "name": "the runs are named by setting, task and seed; use out=… for their folder",
    "runs_dir": "the runs are in the folder of the comparison; use out=…",
    "seed": "every setting has the same seeds; use seeds=…",
    "progress": "several runs at a time have no progress bar; leave it out",
}
"""Options of train.py that a comparison sets itself, and what to do instead."""
MAX_SEEDS = 1000
"""Maximum number of seeds."""


def _first_seeds(value: object) -> object:
    """Return ``3`` as the seeds 0, 1 and 2, and ``4,5`` as a list."""
    if isinstance(value, str) and value.strip().isdecimal():
        # limited before the range is built
        return tuple(range(min(int(value), MAX_SEEDS + 1)))
    return split_names(value)


Words = tuple[str, ...]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def run_name(setting: str, task: str, seed: int) -> str:
    """Return the name of a run of a comparison.

    Args:
        setting: name of the setting.
        task: the task as typed by the user.
        seed: seed of the run.
    """
    return f"{setting}-{file_name(task)}-seed{seed}"


class ComparisonConfig(EngineConfig):
    """A comparison: every setting is trained on every task with every seed.

    Examples:
        >>> from mirl.configs.comparison import parse_comparison
        >>> config = parse_comparison(["task=goto_door", "fusion=concat,film", "seeds=5"])
        >>> config.settings
        {'concat': ('fusion=concat',), 'film': ('fusion=film',)}
        >>> config.seeds
        (0, 1, 2, 3, 4)
    """

    tasks: Annotated[tuple[str, ...], BeforeValidator(split_names)] = ("goto_door",)
    """Tasks, each trained in separate runs; one may be a suite, which is trained together."""
    settings: dict[str, Words]
    """Options of train.py of each setting, by its name."""
    options: Words = ()
    """Options of train.py of all settings."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_first_seeds)] = (0, 1, 2)
    """Number of seeds from 0 on, or the seeds themselves, e.g. 10,11,12."""
    out: Path | None = None
    """Folder of the runs, tables and figures; by default comparisons/ and the tasks."""
    match: str = ""
    """Equalize the numbers of parameters: true to widen the smaller settings with
    encoder.features_dim, or the option to widen them with."""

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not 0 < len(seeds) <= MAX_SEEDS or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"seeds must be a number from 1 to {MAX_SEEDS} or different seeds such as 10,11, "
                f"got {list(seeds[:5])}"
            )
        return seeds

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks or len({file_name(task) for task in tasks}) < len(tasks):
            raise ValueError(f"expected one or more different tasks, got {list(tasks)}")
        return tasks

    @field_validator("match")
    @classmethod
    def _match_is_an_option(cls, match: str) -> str:
        named = {"true": EQUAL_BY_DEFAULT, "false": ""}
        return named.get(match.lower(), match)

    @field_validator("settings")
    @classmethod
    def _settings_have_plain_names(cls, settings: dict[str, Words]) -> dict[str, Words]:
        for name in settings:
            if not re.fullmatch(RUN_NAME, name):
                raise ValueError(
                    f"a setting needs a plain name (letters, digits, . _ + -), got '{PREFIX}{name}'"
                )
        return settings

    @model_validator(mode="after")
    def _runs_have_names(self) -> Self:
        found: set[str] = set()
        for task, setting in product(self.tasks, self.settings):
            name = run_name(setting, task, max(self.seeds))
            if name in found or not re.fullmatch(RUN_NAME, name):
                raise ValueError(
                    f"'{name}' cannot name a run: it is too long, or has two meanings; use another "
                    f"name in '{PREFIX}NAME=…', or a preset for the task"
                )
            found.add(name)
        return self

    @property
    def folder(self) -> Path:
        """Return the folder of the comparison."""
        if self.out is not None:
            return self.out
        return DEFAULT_FOLDER / "+".join(file_name(task) for task in self.tasks)

    def words(self, task: str, setting: str) -> list[str]:
        """Return the options of train.py of a setting on a task.

        Args:
            task: one of the tasks.
            setting: name of one of the settings.
        """
        return [f"task={task}", *self.options, *self.settings[setting]]


class RunComparisonConfig(Config):
    """A comparison of existing runs, which plays the same episodes with each.

    Examples:
        >>> from mirl.configs.comparison import RunComparisonConfig
        >>> config = RunComparisonConfig(runs=("pretrained:goto_local", "pretrained:goto_door"))
        >>> config.names
        ('goto_local', 'goto_door')
        >>> config.folder.name
        'goto_local-vs-goto_door'
    """

    runs: tuple[RunPath, ...]
    """Run directories."""
    options: Words = ()
    """Options of eval.py."""
    out: Path | None = None
    """Folder of the tables; by default comparisons/ and the names of the runs."""

    @field_validator("runs")
    @classmethod
    def _runs_are_distinct(cls, runs: tuple[Path, ...]) -> tuple[Path, ...]:
        if len({run.resolve() for run in runs}) < max(2, len(runs)):
            raise ValueError(
                f"expected two or more different run directories, got {' '.join(map(str, runs))}"
            )
        return runs

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the runs: their folders' names, or their paths if two are equal."""
        names = tuple(run.resolve().name for run in self.runs)
        if len(set(names)) < len(names):
            return tuple(map(str, self.runs))
        return names

    @property
    def folder(self) -> Path:
        """Return the folder of the tables."""
        if self.out is not None:
            return self.out
        return DEFAULT_FOLDER / "-vs-".join(file_name(name) for name in self.names)


def parse_comparison(argv: Sequence[str]) -> ComparisonConfig | RunComparisonConfig:
    """Build the configuration of ``compare.py``.

    Args:
        argv: command-line arguments; if one of them is not ``key=value``, existing runs are
            compared.

    Returns:
        The valid configuration; the options of eval.py in it have not been checked yet.

    Raises:
        ConfigError: if an argument is invalid.
    """
    words, config_dir = split_config_dir(argv)
    runs = [word for word in words if "=" not in word and not word.startswith("-")]
    if runs:
        return _parse_runs(runs, [word for word in words if word not in runs])
    common: list[str] = []
    if config_dir is not None:
        common.append(f"{CONFIG_DIR}={config_dir}")
    values: dict[str, object] = {}
    settings: dict[str, Words] = {}
    groups: list[str] = []
    for word in words:
        [(key, value)] = parse_overrides([word])
        if key == "task":
            values["tasks"] = value
        elif add_engine_word(values, key, value):
            continue
        elif key in OWN_WORDS:
            values[key] = value
        elif key.startswith(PREFIX):
            _add(settings, key.removeprefix(PREFIX), _words_of_setting(key, value))
        elif key in GROUPS and "," in value:
            groups.append(key)
            for name, options_of_setting in _settings_of_group(key, value):
                _add(settings, name, options_of_setting)
        else:
            _check_common(key)
            common.append(word)
    if len(groups) > 1:
        raise ConfigError(
            f"{' and '.join(groups)} have several values each; write settings with both as "
            f"'{PREFIX}NAME={groups[0]}=… {groups[1]}=…'"
        )
    if not settings:
        raise ConfigError(
            "expected settings to compare, e.g. fusion=concat,film or "
            f"'{PREFIX}late=fusion=concat sites=vector'. See --help."
        )
    config = validate(ComparisonConfig, {**values, "settings": settings, "options": common})
    _check_words(config)
    return config


def _check_words(config: ComparisonConfig) -> None:
    """Compose every setting with every task, so that mistakes are reported before any training."""
    # an arbitrary width, to check that the option exists
    width = [f"{config.match}=64"] if config.match else []
    for task, setting in product(config.tasks, config.settings):
        try:
            compose_train([*config.words(task, setting), *width])
        except ConfigError as error:
            raise ConfigError(f"setting '{setting}': {error}") from None


def _parse_runs(runs: Sequence[str], words: Sequence[str]) -> RunComparisonConfig:
    values: dict[str, object] = {"runs": runs}
    options: list[str] = []
    for word in words:
        [(key, value)] = parse_overrides([word])
        if key == "out":
            values["out"] = value
        elif key in ("run", "adapt", "export", "gif", "mp4", "task"):
            raise ConfigError(f"{key}= is an option of eval.py that a comparison does not have")
        else:
            options.append(word)
    return validate(RunComparisonConfig, {**values, "options": options})


def _words_of_setting(key: str, value: str) -> Words:
    """Return the options in ``fusion=concat sites=vector``, split as by a shell."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ConfigError(f"{key}: cannot be split into options: {error}") from None
    for option, _ in parse_overrides(words):
        if option == "task" or option in OWN_WORDS:
            raise ConfigError(f"{key}: {option}= is the same for all settings; take it out of it")
        _check_common(option)
    return tuple(words)


def _settings_of_group(group: str, value: str) -> Iterator[tuple[str, Words]]:
    """Yield a setting per value of ``fusion=concat,film``, named by it."""
    names = [name.strip() for name in value.strip("[]").split(",")]
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(f"{group}: expected different names joined by commas, got '{value}'")
        yield file_name(name), (f"{group}={name}",)


def _add(settings: dict[str, Words], name: str, words: Words) -> None:
    if name in settings:
        raise ConfigError(f"setting '{name}' is given twice; give it another name")
    settings[name] = words


def _check_common(option: str) -> None:
    """Raise if the comparison sets an option of train.py itself."""
    if option in SET_BY_COMPARISON:
        raise ConfigError(f"{option}=: {SET_BY_COMPARISON[option]}")
