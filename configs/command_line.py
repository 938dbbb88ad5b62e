"""The face of the commands: ``--help`` from the schema itself; mistakes and failures told in one message.

The exit code is 2 after a mistake, 1 after a failure that no word of the command is to blame for.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirl.configs.compose import GROUPS, PRESETS, models_of, presets
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.schema import EvalConfig, TrainConfig


def console_entry(run: Callable[[list[str]], int], help_text: Callable[[], str]) -> int:
    """Run a command over ``sys.argv``; the exit code."""
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(help_text())
        return 0
    try:
        return run(argv)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:  # outside of training, which saves first
        sys.stderr.write("stopped\n")
        return 130


def command(name: str) -> str:
    """A command installed beside this Python, as one would type it here: ``.venv/bin/tensorboard``."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def train_help() -> str:
    """What ``train.py --help`` prints."""
    chosen = _default_presets()
    lines = [
        "Train an agent, or go on with a run that was stopped.",
        "",
        "usage: train.py [group=preset | option=value] …",
        "",
        "examples:",
        "  train.py                                       the default agent, on GoToDoor",
        "  train.py task=goto_local fusion=film seed=3    presets and an option",
        "  train.py task=BabyAI-GoToObj-v0                any environment id that states a mission",
        "  train.py fusion=low_rank fusion.rank=64        an option of the chosen preset",
        "  train.py sites=[map,vector,heads] agent=a2c    where to fuse, and how to learn",
        "",
        "groups (presets; * is the default):",
    ]
    for group in GROUPS:
        names = (f"{name}*" if name == chosen[group] else name for name in presets(group))
        lines.append(f"  {group:<9}{'  '.join(names)}")
    lines += ["", "options (default):", *_options(TrainConfig)]
    return "\n".join(lines) + "\n"


def eval_help() -> str:
    """What ``eval.py --help`` prints."""
    lines = [
        "Evaluate a checkpoint of a run on unseen episodes: a table, and eval/*.json in the run directory.",
        "",
        "usage: eval.py run=DIRECTORY [option=value] …",
        "",
        "examples:",
        "  eval.py run=runs/goto_door-bilinear-ppo-seed0",
        "  eval.py run=runs/goto_door-bilinear-ppo-seed0 checkpoint=last episodes=200 gif=true",
        '  eval.py run=runs/goto_door-bilinear-ppo-seed0 export="go to the red door"',
        "",
        "options (default):",
        *_options(EvalConfig),
    ]
    return "\n".join(lines) + "\n"


def _default_presets() -> dict[str, str]:
    """The preset that each group takes by itself, by the defaults list of train.yaml."""
    entries = yaml.safe_load((PRESETS / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return {
        group: preset
        for entry in entries
        if isinstance(entry, dict)
        for group, preset in entry.items()
    }


def _options(model: type[BaseModel]) -> Iterator[str]:
    """One line per option; those of a union's members stand under the name of the member."""
    for name, field in model.model_fields.items():
        models = models_of(field.annotation)
        if not models:
            yield "  " + _option(name, field)
            continue
        yield f"  {name}:  {_first_line(field.description)}"
        for member in models:
            if "kind" in member.model_fields:
                yield f"    {member.model_fields['kind'].default}:  {_first_line(member.__doc__)}"
            for option, part in member.model_fields.items():
                if option != "kind":
                    yield "      " + _option(f"{name}.{option}", part)


def _option(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else field.get_default(call_default_factory=True)
    shown = f"[{','.join(map(str, default))}]" if isinstance(default, tuple) else str(default)
    return f"{name} ({shown})  {_first_line(field.description)}"


def _first_line(text: str | None) -> str:
    return (text or "").replace("``", "").split("\n\n")[0].replace("\n", " ").strip()
