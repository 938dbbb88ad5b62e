"""Entry point of the commands: ``--help`` from the schema, errors as one message.

Exit codes: 0 for success, 1 for a failure that no argument caused, 2 for an invalid argument, 130
after Ctrl-C.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirl.configs.aliases import RenamedWarning
from mirl.configs.comparison import OWN_WORDS, PREFIX, ComparisonConfig
from mirl.configs.compose import GROUPS, PRESETS_DIR, TYPED_NAMES, presets, split_config_dir
from mirl.configs.errors import ConfigError, PlainWarning, RunError
from mirl.configs.imports import PluginWarning, load_plugins
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.validation_messages import config_classes

TRAIN_USAGE = """\
Train an agent, or resume a run that was stopped.

usage: train.py [--config-dir DIR] [group=preset | option=value] …

examples:
  train.py                                       the default agent on GoToDoor
  train.py task=goto_local fusion=film seed=3    presets and an option
  train.py task=BabyAI-GoToObj-v0                any environment id with a mission or goal
  train.py task=my_package:MyEnv-v0              an environment of your own, and its module
  train.py fusion=low_rank fusion.rank=64        a fusion in place of the chosen one
  train.py sites=[map,vector,heads] agent=a2c    where to fuse, and the algorithm
  train.py task=goto_door task.kwargs.size=7     keyword arguments of the environment
  train.py --config-dir my_presets task=mine     your own presets: my_presets/task/mine.yaml
"""
EVAL_USAGE = """\
Evaluate a checkpoint on test episodes; prints a table and writes eval/*.json in the run directory.

usage: eval.py run=DIRECTORY [--config-dir DIR] [option=value] …

examples:
  eval.py run=runs/goto_door-ppo-seed0
  eval.py run=runs/goto_door-ppo-seed0 checkpoint=last episodes=200 gif=true
  eval.py run=runs/goto_door-ppo-seed0 export="go to the red door"
  eval.py run=runs/mine import=my_package        a run that needs a module of your own
  eval.py run=runs/mine 'success=return>=5'      another success rule
"""
COMPARE_USAGE = """\
Train settings over seeds and tasks and compare them; the same command goes on after a stop.

usage: compare.py [task=NAME,…] fusion=A,B,… [option=value] …
       compare.py [task=NAME,…] settings.NAME="option=value …" … [option=value] …
       compare.py RUN RUN … [option of eval.py=value] …

examples:
  compare.py task=goto_door fusion=concat,film,bilinear seeds=3
  compare.py task=goto_door,goto_local fusion=concat,film match=true jobs=4
  compare.py settings.late="fusion=concat sites=vector" settings.film="fusion=film" seeds=10,11
  compare.py task=my_package:MyEnv-v0 fusion=concat,my_package.layers:Mine import=my_package
  compare.py runs/a runs/b episodes=500          two runs on the same episodes, nothing is trained

A group with several values, such as fusion or memory, is a setting for each; settings.NAME is any
options. All other options of train.py are common to all settings.
"""


KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Capacity of torch's CPU kernel caches, which hold a kernel per matrix size and default to 1024.

A long run sees many sizes: the share of distinct observations changes as the agent learns.
"""


def limit_kernel_caches() -> None:
    """Limit torch's kernel caches, here and in the processes that this one starts.

    Call it before torch compiles its first kernel.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)


def console_entry(run: Callable[[list[str]], int], help_text: Callable[[list[str]], str]) -> int:
    """Run a command on ``sys.argv``.

    Args:
        run: takes the command-line arguments and returns the exit code.
        help_text: takes the command-line arguments and returns the text of ``--help``.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:]
    # before anything else, so that --help also works beside invalid options
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(help_text(argv))
        return 0
    try:
        with _plain_warnings():
            load_plugins()
            return run(argv)
    except ConfigError as error:
        sys.stderr.write(f"error: {_printable(error)}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"error: {_printable(error)}\n")
        return 1
    except KeyboardInterrupt:  # outside of the training loop, which saves a checkpoint first
        sys.stderr.write("stopped\n")
        return 130  # 128 + 2, the number of SIGINT, as in a shell


def _printable(error: Exception) -> str:
    """Return the text of an error without control characters, which a file may have put there."""
    lines = []
    for line in str(error).split("\n"):
        lines.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
    return "\n".join(lines)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print MIRL's own warnings as one line, without Python's file name and source line."""
    show_as_usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RenamedWarning | PlainWarning | PluginWarning):
            sys.stderr.write(f"warning: {message}\n")
        else:
            show_as_usual(message, category, filename, lineno, file, line)

    # Python prints every warning through this function
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = show_as_usual


def command(name: str) -> str:
    """Return how to call a command that is installed beside this Python interpreter.

    Args:
        name: name of the command, e.g. ``tensorboard``.

    Returns:
        Its path, relative to the current folder if it is inside: ``.venv/bin/tensorboard``.
    """
    path = Path(sys.executable).with_name(name)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


def train_help(argv: Sequence[str] = ()) -> str:
    """Return the text of ``train.py --help``.

    Args:
        argv: the command-line arguments; the presets of ``--config-dir`` are listed.
    """
    try:
        _, config_dir = split_config_dir(argv)
    except ConfigError:
        config_dir = None
    defaults = _default_presets()
    lines = [TRAIN_USAGE, "groups (presets; * is the default):"]
    for group in GROUPS:
        names: list[str] = []
        for name in presets(group, config_dir):
            mark = "*" if name == defaults[group] else ""
            names.append(name + mark)
        lines.append(f"  {group:<9}{'  '.join(names)}")
    lines += ["", "options (default):", *_option_lines(TrainConfig)]
    return "\n".join(lines) + "\n"


def eval_help(_argv: Sequence[str] = ()) -> str:
    """Return the text of ``eval.py --help``."""
    lines = [EVAL_USAGE, "options (default):", *_option_lines(EvalConfig)]
    return "\n".join(lines) + "\n"


def compare_help(_argv: Sequence[str] = ()) -> str:
    """Return the text of ``compare.py --help``."""
    lines = [COMPARE_USAGE, "options (default):"]
    fields = ComparisonConfig.model_fields
    lines.append("  " + _option_line("task", fields["tasks"]))
    lines.append("  " + _option_line(f"{PREFIX}NAME", fields["settings"]))
    for name in OWN_WORDS:
        lines.append("  " + _option_line(name, fields[name]))
    return "\n".join(lines) + "\n"


def _default_presets() -> dict[str, str]:
    """Return the default preset of each group, from the defaults list of train.yaml."""
    content = yaml.safe_load((PRESETS_DIR / "train.yaml").read_text(encoding="utf-8"))
    chosen: dict[str, str] = {}
    for entry in content["defaults"]:
        if isinstance(entry, dict):  # the other entry is Hydra's "_self_"
            chosen.update(entry)
    return chosen


def _option_lines(model: type[BaseModel]) -> Iterator[str]:
    """Yield one line per option; the options of a union's members follow the member's name."""
    for name, field in model.model_fields.items():
        members = config_classes(field)
        if not members:
            yield "  " + _option_line(typed_name(name), field)
            continue
        yield f"  {name}:  {_first_paragraph(field.description)}"
        for member in members:
            if "kind" in member.model_fields:
                kind = member.model_fields["kind"].default
                yield f"    {kind}:  {_first_paragraph(member.__doc__)}"
            for option, inner in member.model_fields.items():
                # the preset sets the kind, so it is not an option of its own
                if option != "kind":
                    yield "      " + _option_line(f"{name}.{option}", inner)


def typed_name(name: str) -> str:
    """Return the name of an option as it is typed.

    Args:
        name: name of the field, e.g. ``imports``.
    """
    for typed, field in TYPED_NAMES.items():
        # an option of a group keeps its name, beside which the short form may be typed
        if field == name and "." not in field:
            return typed
    return name


def _option_line(name: str, field: FieldInfo) -> str:
    """Return an option's name, default and description."""
    default = field.get_default(call_default_factory=True)
    # pydantic has a marker object in place of the default of a required option
    if field.is_required():
        shown = "required"
    elif isinstance(default, tuple):
        shown = f"[{','.join(map(str, default))}]"  # as it is typed, without spaces
    else:
        shown = str(default)
    return f"{name} ({shown})  {_first_paragraph(field.description)}"


def _first_paragraph(text: str | None) -> str:
    """Return the first paragraph of a docstring as one line without markup."""
    if text is None:
        return ""
    paragraph = text.split("\n\n")[0].replace("``", "")
    return " ".join(paragraph.split())
