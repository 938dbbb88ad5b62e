"""Pages of ``--help``: at most 80 columns, generated from the schema and the presets.

``--help`` by itself is a page of all groups and options; ``--help agent=ppo`` is a page about a
preset, ``--help agent`` about a group, ``--help agent.gamma`` or ``--help seed`` about one option.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirl.configs.commands.engines import ENGINE_WORDS, SLURM
from mirl.configs.commands.sweep import OWN_WORDS as SWEEP_WORDS
from mirl.configs.commands.sweep import SweepConfig
from mirl.configs.commands.values import is_list
from mirl.configs.commands.words import (
    MULTIRUN,
    TYPED_NAMES,
    option_names,
    typed_name,
    typed_value,
)
from mirl.configs.comparison import OWN_WORDS, PREFIX, ComparisonConfig
from mirl.configs.compose import (
    GROUPS,
    PRESETS_DIR,
    default_presets,
    load_preset,
    preset_path,
    presets,
    split_config_dir,
)
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import CardConfig, EvalConfig, PlayConfig, TrainConfig, WatchConfig
from mirl.configs.validation_messages import config_classes

TRAIN_USAGE = """\
Train an agent. The same command resumes a run, a larger total_timesteps
trains it further.

usage: train.py [--config-dir DIR] [group=preset | option=value] …
  train.py                                     the default agent on GoToDoor
  train.py task=goto_local fusion=film seed=3  presets and an option
  train.py task=my_package:MyEnv-v0            an environment of your own
  train.py fusion=low_rank fusion.rank=64      an option of a preset
  train.py task=goto_door task.kwargs.size=7   arguments of the environment
  train.py --multirun fusion=film,concat seed=0,1   each combination
"""
SWEEP_USAGE = """\
Train a run for each combination of values, or look for the best values with
Optuna; the same command goes on after a stop.

usage: train.py --multirun option=A,B,… [option=RANGE] [option=value] …
  train.py --multirun task=goto_door,goto_obj fusion=film,bilinear seed=0,1,2
  train.py --multirun 'agent.gamma=interval(.9,.999)' n_trials=20
  train.py --multirun 'agent.learning_rate=tag(log,interval(1e-5,1e-2))'
  train.py --multirun seed=0,1,2 engine=slurm slurm.partition=gpu slurm.time=600

Values: A,B or choice(A,B); of a list [A],[B]. Ranges: interval(LOW,HIGH),
tag(log,interval(LOW,HIGH)), int(interval(LOW,HIGH)), range(START,STOP,STEP).

"""
EVAL_USAGE = """\
Evaluate a checkpoint on test episodes; prints a table and writes eval/*.json
in the run directory.

usage: eval.py run=DIRECTORY [--config-dir DIR] [option=value] …
  eval.py run=runs/goto_door-ppo-seed0
  eval.py run=runs/goto_door-ppo-seed0 task=goto_door_8x8   another level
  eval.py run=runs/goto_door-ppo-seed0 checkpoint=last gif=true
  eval.py run=runs/goto_door-ppo-seed0 export="go to the red door"
  eval.py run=runs/mine import=my_package 'success=return>=5'
"""
COMPARE_USAGE = """\
Train settings over seeds and tasks and compare them; the same command goes on
after a stop.

usage: compare.py [task=NAME,…] fusion=A,B,… [option=value] …
       compare.py [task=NAME,…] settings.NAME="option=value …" [option=value] …
       compare.py RUN RUN … [option of eval.py=value] …
  compare.py task=goto_door fusion=concat,film,bilinear seeds=3
  compare.py task=goto_door,goto_local fusion=concat,film match=true jobs=4
  compare.py settings.late="sites=vector" settings.heads="sites=heads" seeds=5,6
  compare.py fusion=concat,my_package.layers:Mine import=my_package
  compare.py runs/a runs/b episodes=500     two runs on the same episodes

A group with several values, such as fusion or memory, is a setting for each;
settings.NAME is any options. All other options of train.py (its --help lists
them) are common to all settings.
"""
WATCH_USAGE = """\
Watch a trained agent: its episodes, what it is asked, and what it computes.

usage: watch.py run=DIRECTORY [option=value] …
  watch.py run=runs/goto_door-ppo-seed0
  watch.py run=runs/goto_door-ppo-seed0 mission="go to the red door"
  watch.py run=runs/goto_door-ppo-seed0 view=terminal deterministic=true
"""
PLAY_USAGE = """\
Play a task yourself, in a window or by the keys of the terminal.

usage: play.py task=NAME [--config-dir DIR] [option=value] …
  play.py task=goto_local
  play.py task=minigrid30 level=four_rooms seed=3
  play.py task=MiniGrid-DoorKey-8x8-v0 view=terminal
"""
CARD_USAGE = """\
Evaluate a checkpoint and write its model card, README.md in the run directory:
results with intervals, settings, how to use the agent, and its limits.

usage: card.py run=DIRECTORY [option=value] …
  card.py run=runs/goto_door-ppo-seed0
  card.py run=runs/goto_door-ppo-seed0 checkpoint=last episodes=500
"""
HELP_WORDS = ("-h", "--help")
"""Arguments that ask for help."""
WIDTH = 80
"""Maximum number of columns of a page."""
TEXT_COLUMN = 27
"""Column in which the descriptions of options begin."""
ALL_OPTIONS = "options"
"""Page about every option that belongs to no group."""
SHORT_TEXT = WIDTH - TEXT_COLUMN
"""Number of characters per line of a description on the first page."""


def train_help(argv: Sequence[str] = ()) -> str:
    """Return the text of ``train.py --help``.

    Args:
        argv: the command-line arguments; one besides ``--help`` names the page, and the presets of
            ``--config-dir`` are listed.

    Raises:
        ConfigError: if there is no such page.
    """
    words, config_dir = _words(argv)
    if words and words[0] in (*MULTIRUN, MULTIRUN[1].lstrip("-")):
        return _sweep_page()
    if len(words) == 1:
        return _train_page(words[0], config_dir)
    defaults = default_presets(PRESETS_DIR / "train.yaml")
    lines = [TRAIN_USAGE, "groups, and their presets (* default):"]
    for group in GROUPS:
        names: list[str] = []
        for name in presets(group, config_dir):
            mark = "*" if name == defaults[group] else ""
            names.append(name + mark)
        lines += _columns(f"  {group}", " ".join(names), column=11)
    lines += ["", "options=default:", *_short_lines(TrainConfig)]
    lines += [
        "",
        "more: --help agent, --help agent=ppo, --help evaluation, --help seed,",
        f"      --help multirun, --help {ALL_OPTIONS} for the full text of those above",
    ]
    return "\n".join(lines) + "\n"


def _flat_help(argv: Sequence[str], usage: str, fields: dict[str, FieldInfo]) -> str:
    """Return the page of a command without groups, or its page about one or all options."""
    words, _ = _words(argv)
    names = [word.partition("=")[0] for word in words]
    if len(names) == 1:
        [name] = names
        chosen = fields
        if name != ALL_OPTIONS:
            if name not in fields:
                raise ConfigError(f"no help on '{name}'." + nearest(name, [*fields, ALL_OPTIONS]))
            chosen = {name: fields[name]}
        lines = [line for key, field in chosen.items() for line in _full_lines(key, field)]
        return "\n".join(lines) + "\n"
    lines = [usage, "options=default:"]
    for name, field in fields.items():
        lines += _short_line(name, field)
    example = next(name for name in ("checkpoint", "seeds", "seed") if name in fields)
    lines += ["", f"more: --help {example}, --help {ALL_OPTIONS}"]
    return "\n".join(lines) + "\n"


def _words(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the arguments besides ``--help``, and the folder of the user's own presets."""
    try:
        words, config_dir = split_config_dir(argv)
    except ConfigError:
        # help also works with invalid arguments
        words, config_dir = list(argv), None
    return [word for word in words if word not in HELP_WORDS], config_dir


# -------------------------------------------------------------------------------------------- pages


def _train_page(word: str, config_dir: Path | None) -> str:
    """Return the page about a group, a preset or an option of train.py."""
    name, equals, preset = word.partition("=")
    name = TYPED_NAMES.get(name, name)
    if name == ALL_OPTIONS:
        lines = _all_options()
    elif name in GROUPS and equals and preset in presets(name, config_dir):
        lines = _preset_page(name, preset, config_dir)
    elif name in GROUPS:
        lines = _group_page(name, config_dir)
    else:
        lines = _option_page(name)
    return "\n".join(lines) + "\n"


def _sweep_page() -> str:
    """Return the page about several runs."""
    fields = SweepConfig.model_fields
    lines = [SWEEP_USAGE + "options=default:"]
    for name in (*ENGINE_WORDS, *SWEEP_WORDS):
        lines += _full_lines(name, fields[name])
    lines += _full_lines(f"{SLURM}OPTION", fields["slurm"])
    return "\n".join(lines) + "\n"


def _all_options() -> list[str]:
    lines: list[str] = []
    for name, field in typed_fields(TrainConfig).items():
        if name not in GROUPS:
            lines += _full_lines(name, field)
    for name, field in typed_fields(_only_class("evaluation"), "evaluation.").items():
        lines += _full_lines(name, field)
    return lines


def _group_page(group: str, config_dir: Path | None) -> list[str]:
    """Return one line per preset of a group, and the options that all of them have."""
    field = TrainConfig.model_fields[group]
    lines = [*_paragraphs(f"{group}: {field.description}"), ""]
    classes = classes_by_kind(group)
    for name in presets(group, config_dir):
        content = load_preset(preset_path(group, name, config_dir))
        kind = content.get("kind")
        text = preset_summary(content)
        if kind in classes:
            text = _first_paragraph(classes[kind].__doc__)
            others = {
                key: value for key, value in content.items() if key not in ("kind", "defaults")
            }
            if others:
                text = f"{text.removesuffix('.')}, with {' '.join(_typed(others))}."
        lines += _columns(f"  {name}", text, column=TEXT_COLUMN)
    lines += ["", *_paragraphs(f"--help {group}=PRESET lists the options of a preset.")]
    return lines


def _preset_page(group: str, preset: str, config_dir: Path | None) -> list[str]:
    """Return the content of a preset, and the options of its kind with their values in it."""
    path = preset_path(group, preset, config_dir)
    content = load_preset(path)
    lines = [f"{group}={preset}"]
    config_class = classes_by_kind(group).get(str(content.get("kind", group)))
    if "kind" in content and config_class is not None:
        lines += _paragraphs(description_of(config_class), indent=2)
    else:
        lines += _columns("", preset_summary(content), column=2)
    suite = content
    if group == "task" and "task" in content:
        suite = content["task"]
        others = {key: value for key, value in content.items() if key not in ("task", "defaults")}
        words = [*_typed(default_presets(path)), *_typed(others)]
        if words:
            lines += _columns("", f"Sets {' '.join(words)}", column=2)
    if config_class is None:  # a user's class, which is not imported just for the help
        return lines
    lines += ["", "options=default:"]
    for name, field in config_class.model_fields.items():
        # the tasks of a suite are listed above, and the preset sets the kind
        is_shown = name != "kind" and (group, name) != ("task", "tasks")
        if is_shown:
            lines += _full_lines(f"{group}.{name}", field, suite.get(name))
    if group == "task":
        lines += ["", "options of a task, in task.tasks=[{name: …, env_id: …}]:"]
        [task_class] = config_classes(config_class.model_fields["tasks"])
        for name, field in task_class.model_fields.items():
            lines += _full_lines(name, field)
    return lines


def _typed(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the values of a preset as they are typed."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _typed(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={typed_value(_as_tuple(value))}"


def _option_page(name: str) -> list[str]:
    """Return the full text of an option, or of all options that begin with it and a dot."""
    known = set(option_names([TrainConfig]))
    lines: list[str] = []
    for key in sorted(known):
        if key == name or key.startswith(f"{name}."):
            lines += _entries_by_kind(key)
    if not lines:
        raise ConfigError(f"no help on '{name}'." + nearest(name, [*known, ALL_OPTIONS]))
    return lines


def _entries_by_kind(name: str) -> list[str]:
    """Return the text of an option, once per distinct text of the kinds that have it."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for kind, field in _fields_named(name):
        kinds.setdefault(tuple(_full_lines(name, field)), []).append(kind)
    lines: list[str] = []
    for entry, of_entry in kinds.items():
        lines += entry
        if len(kinds) > 1:
            lines += _paragraphs(f"For {', '.join(of_entry)}.", indent=6)
    return lines


def _fields_named(name: str) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the kinds and the fields that a dotted name can refer to."""
    classes: list[type[BaseModel]] = [TrainConfig]
    *groups, option = name.split(".")
    for group in groups:
        inner: list[type[BaseModel]] = []
        for config_class in classes:
            if group in config_class.model_fields:
                inner += config_classes(config_class.model_fields[group])
        classes = inner
    for config_class in classes:
        if option in config_class.model_fields:
            kind = config_class.model_fields.get("kind")
            yield "" if kind is None else str(kind.default), config_class.model_fields[option]


def classes_by_kind(group: str) -> dict[str, type[BaseModel]]:
    """Return the config classes of a group by their kind; by the group's name if it has none.

    Args:
        group: one of ``GROUPS``.
    """
    classes: dict[str, type[BaseModel]] = {}
    for config_class in config_classes(TrainConfig.model_fields[group]):
        kind = config_class.model_fields.get("kind")
        classes[group if kind is None else str(kind.default)] = config_class
    return classes


def description_of(config_class: type[BaseModel]) -> str:
    """Return the docstring of a config class without its examples.

    Args:
        config_class: the class of a group or of a command.
    """
    docstring = cleandoc(config_class.__doc__ or "")
    return docstring.partition("\n\nExamples:\n")[0]


def _only_class(name: str) -> type[BaseModel]:
    [config_class] = config_classes(TrainConfig.model_fields[name])
    return config_class


def preset_summary(content: dict[str, Any]) -> str:
    """Describe the content of a preset besides its kind: the ids of a suite, or values.

    Args:
        content: the preset, as ``load_preset`` returns it.
    """
    suite = content.get("task", content)
    tasks = suite.get("tasks")
    if isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks):
        ids = [str(task.get("env_id")) for task in tasks]
        shown = ", ".join(dict.fromkeys(ids[:3]))
        return shown if len(ids) <= 3 else f"{len(ids)} tasks: {shown}, …"
    others = {key: value for key, value in suite.items() if key not in ("name", "defaults")}
    return "; ".join(f"{key}: {typed_value(_as_tuple(value))}" for key, value in others.items())


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------ options


def typed_fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return the fields of a config by the names under which they are typed.

    Args:
        model: a config class.
        prefix: text before each name, e.g. ``evaluation.``.
    """
    return {typed_name(prefix + name): field for name, field in model.model_fields.items()}


def comparison_fields() -> dict[str, FieldInfo]:
    """Return the options of compare.py that train.py does not have, by the names to type."""
    fields = ComparisonConfig.model_fields
    own = {"task": fields["tasks"], f"{PREFIX}NAME": fields["settings"]}
    for name in OWN_WORDS:
        own[name] = fields[name]
    own[f"{SLURM}OPTION"] = fields["slurm"]
    return own


def _short_lines(model: type[BaseModel]) -> Iterator[str]:
    """Yield the options that belong to no group; those of the evaluation only by name."""
    for name, field in typed_fields(model).items():
        if name not in GROUPS and not config_classes(field):
            yield from _short_line(name, field)
    yield from _columns(
        "  evaluation.…",
        ", ".join(_only_class("evaluation").model_fields),
        column=TEXT_COLUMN,
    )


def _short_line(name: str, field: FieldInfo) -> list[str]:
    """Return an option with its choices, or the beginning of its description."""
    head = f"  {name}={default_of(field)}"
    text = " | ".join(choices_of(field.annotation))
    if text and is_list(field.annotation):
        text = f"one or several of {', '.join(choices_of(field.annotation))}"
    if not text:
        text = _beginning(_first_paragraph(field.description))
    return _columns(head, text, column=TEXT_COLUMN)


def _full_lines(name: str, field: FieldInfo, given: object = None) -> list[str]:
    """Return an option with its whole description and its choices.

    ``given`` is the value that a preset gives it.
    """
    default = default_of(field) if given is None else typed_value(_as_tuple(given))
    lines = textwrap.wrap(f"  {name}={default}", WIDTH, subsequent_indent="      ")
    lines += _paragraphs(field.description or "", indent=6)
    choices = choices_of(field.annotation)
    if choices:
        lines += _paragraphs(f"Choices: {', '.join(choices)}.", indent=6)
    return lines


def default_of(field: FieldInfo) -> str:
    """Return the default of an option as it is typed; … if the option is required.

    Args:
        field: the field of the option.
    """
    # pydantic has a marker object in place of the default of a required option
    if field.is_required():
        return "…"
    return typed_value(field.get_default(call_default_factory=True))


def choices_of(annotation: object) -> list[str]:
    """Return the values that an option can have; empty if it also takes others.

    Args:
        annotation: the type of the field.
    """
    origin = get_origin(annotation)
    if origin is Literal:
        return [str(value) for value in get_args(annotation)]
    if origin is Annotated:
        return choices_of(get_args(annotation)[0])
    if origin in (tuple, Union, UnionType):
        parts = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
        choices = [choices_of(part) for part in parts]
        if all(choices):
            return [choice for part in choices for choice in part]
    return []


# -------------------------------------------------------------------------------------------- texts


def _columns(head: str, text: str, column: int) -> list[str]:
    """Return a head and a wrapped text next to it, or below it if the head is too long."""
    indent = " " * column
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(head) >= column or not wrapped:
        return [head, *wrapped]
    return [head.ljust(column) + wrapped[0][column:], *wrapped[1:]]


def _paragraphs(text: str, indent: int = 0) -> list[str]:
    """Return the paragraphs of a docstring as wrapped lines without markup."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        plain = _first_paragraph(paragraph)
        margin = " " * indent
        lines += textwrap.wrap(
            plain, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
        )
    return lines


def _first_paragraph(text: str | None) -> str:
    """Return the first paragraph of a docstring as one line without markup."""
    if text is None:
        return ""
    paragraph = text.strip().split("\n\n")[0].replace("``", "")
    return " ".join(paragraph.split())


def _beginning(text: str) -> str:
    """Return a description on one line, or its beginning on at most two."""
    for separator in (", e.g.", ". ", "; ", ": ", " ("):
        text = text.split(separator)[0].rstrip(".")
        if len(text) <= SHORT_TEXT:
            return text
    if len(text) > 2 * SHORT_TEXT:
        text = text.split(", ")[0]
    return text


# ------------------------------------------------------------------------- commands without groups


def _help_of(
    usage: str, fields: Callable[[], dict[str, FieldInfo]]
) -> Callable[[Sequence[str]], str]:
    """Return a function from arguments to a page, which one argument besides ``--help`` names."""
    return lambda argv: _flat_help(argv, usage, fields())


eval_help = _help_of(EVAL_USAGE, lambda: typed_fields(EvalConfig))
"""Returns the text of ``eval.py --help``."""
watch_help = _help_of(WATCH_USAGE, lambda: typed_fields(WatchConfig))
"""Returns the text of ``watch.py --help``."""
play_help = _help_of(PLAY_USAGE, lambda: typed_fields(PlayConfig))
"""Returns the text of ``play.py --help``."""
card_help = _help_of(CARD_USAGE, lambda: typed_fields(CardConfig))
"""Returns the text of ``card.py --help``."""
compare_help = _help_of(COMPARE_USAGE, comparison_fields)
"""Returns the text of ``compare.py --help``."""
