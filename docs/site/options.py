"""Pages on the options of the commands, made of the schema and the presets."""

from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirl.configs.commands.help import (
    CARD_USAGE,
    COMPARE_USAGE,
    EVAL_USAGE,
    PLAY_USAGE,
    TRAIN_USAGE,
    WATCH_USAGE,
    choices_of,
    classes_by_kind,
    comparison_fields,
    default_of,
    description_of,
    preset_summary,
    typed_fields,
)
from mirl.configs.commands.words import typed_value
from mirl.configs.compose import GROUPS, PRESETS_DIR, default_presets, load_preset, presets
from mirl.configs.schema import CardConfig, EvalConfig, PlayConfig, TrainConfig, WatchConfig
from mirl.configs.validation_messages import config_classes

OPTIONS_HEAD = ["| option | default | description |", "|---|---|---|"]


def option_pages() -> dict[str, str]:
    """Return the pages on all options by their paths in the site."""
    pages = {"options/train.md": _train_page()}
    for group in GROUPS:
        pages[f"options/{group}.md"] = _group_page(group)
    pages["options/eval.md"] = _flat_page("mirl-eval", EVAL_USAGE, typed_fields(EvalConfig))
    pages["options/watch.md"] = _flat_page("mirl-watch", WATCH_USAGE, typed_fields(WatchConfig))
    pages["options/play.md"] = _flat_page("mirl-play", PLAY_USAGE, typed_fields(PlayConfig))
    pages["options/card.md"] = _flat_page("mirl-card", CARD_USAGE, typed_fields(CardConfig))
    pages["options/compare.md"] = _flat_page("mirl-compare", COMPARE_USAGE, comparison_fields())
    return pages


def _train_page() -> str:
    """Return the page on the groups, and on the options that belong to none."""
    defaults = default_presets(PRESETS_DIR / "train.yaml")
    lines = [
        *_head("mirl-train", TRAIN_USAGE),
        "## Groups",
        "",
        "A group takes a preset's name.",
        "",
    ]
    lines += ["| group | preset by default | description |", "|---|---|---|"]
    for group in GROUPS:
        text = TrainConfig.model_fields[group].description
        lines.append(_row(f"[`{group}=`]({group}.md)", f"`{defaults[group]}`", text))
    fields = typed_fields(TrainConfig)
    others = {name: field for name, field in fields.items() if not config_classes(field)}
    lines += ["", "## Options", "", *_table(others)]
    [evaluation] = config_classes(fields["evaluation"])
    lines += ["", "## Evaluation", "", *_table(typed_fields(evaluation, "evaluation."))]
    return _page(lines)


def _flat_page(command: str, usage: str, fields: Mapping[str, FieldInfo]) -> str:
    return _page([*_head(command, usage), "## Options", "", *_table(fields)])


def _head(command: str, usage: str) -> list[str]:
    return [f"# `{command}`", "", "```text", usage.rstrip(), "```", ""]


def _group_page(group: str) -> str:
    """Return the page on the presets of a group and the options of each kind."""
    text = _markdown(TrainConfig.model_fields[group].description)
    lines = [f"# `{group}=`", "", text, "", "## Presets", ""]
    lines += ["| preset | contents |", "|---|---|"]
    classes = classes_by_kind(group)
    for name in presets(group):
        content = load_preset(PRESETS_DIR / group / f"{name}.yaml")
        kind = content.get("kind")
        about = preset_summary(content) if kind is None else _changes(classes[kind], content)
        lines.append(_row(f"`{name}`", about))
    for kind, config_class in classes.items():
        lines += ["", "## Options" if kind == group else f"## {kind}", ""]
        lines += [_markdown(part) for part in description_of(config_class).split("\n\n")]
        lines += _options(config_class, f"{group}.")
        if group == "task":
            [task_class] = config_classes(config_class.model_fields["tasks"])
            lines += ["", "## Options of each of `task.tasks`", "", *_options(task_class, "")]
    return _page(lines)


def _changes(config_class: type[BaseModel], content: Mapping[str, object]) -> str:
    """Return the kind of a preset with the options that it changes, or what the kind is."""
    kind = content["kind"]
    changes = []
    for name, field in config_class.model_fields.items():
        value = content.get(name)
        given = typed_value(tuple(value) if isinstance(value, list) else value)
        if name != "kind" and name in content and given != default_of(field):
            changes.append(f"`{name}={given}`")
    link = f"[{kind}](#{kind})"
    if changes:
        return f"{link} with {', '.join(changes)}"
    first_paragraph = (config_class.__doc__ or "").split("\n\n")[0]
    return f"{link}: {first_paragraph}"


def _options(config_class: type[BaseModel], prefix: str) -> list[str]:
    fields = typed_fields(config_class, prefix)
    for hidden in (f"{prefix}kind", "task.tasks"):
        fields.pop(hidden, None)
    return ["", *_table(fields)] if fields else ["", "No options."]


def _table(fields: Mapping[str, FieldInfo]) -> list[str]:
    lines = list(OPTIONS_HEAD)
    for name, field in fields.items():
        default = default_of(field)
        choices = ", ".join(f"`{choice}`" for choice in choices_of(field.annotation))
        text = f"{field.description} Choices: {choices}." if choices else field.description
        lines.append(_row(f"`{name}=`", f"`{default}`" if default else "", text))
    return lines


def _row(*cells: str | None) -> str:
    return f"| {' | '.join(_markdown(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _markdown(text: str | None) -> str:
    """Return a text of a docstring on one line."""
    return " ".join((text or "").split()).replace("``", "`")


def _page(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
