"""Old spellings keep working with one warning each."""

import subprocess
import sys
import warnings
from typing import Any, get_args

import pytest
import yaml

from mirl.configs import aliases
from mirl.configs.aliases import (
    RENAMED_PRESETS,
    RENAMED_VALUES,
    SCALED_FUSIONS,
    RenamedWarning,
    migrate_config,
    replace_preset,
    replace_value,
)
from mirl.configs.compose import compose_train, presets, validate
from mirl.configs.networks import FusionConfig
from mirl.configs.schema import TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig

OLD_SUCCESS = "task.tasks=[{name: reach, env_id: Meta-World/reach-v3, success: ever}]"
NEW_SUCCESS = "task.tasks=[{name: reach, env_id: Meta-World/reach-v3, success: any_step}]"
SPELLINGS = [
    (
        ["split=new_colour", "task=door_colors"],
        ["split=new_color", "task=door_colors"],
        "split=new_colour was renamed, use split=new_color;",
    ),
    (
        ["task=door_colours"],
        ["task=door_colors"],
        "task=door_colours was renamed, use task=door_colors;",
    ),
    (
        ["task=doors", "sampling=slots"],
        ["task=doors", "sampling=fixed"],
        "sampling=slots was renamed, use sampling=fixed;",
    ),
    ([OLD_SUCCESS], [NEW_SUCCESS], "success=ever was renamed, use success=any_step;"),
]
"""Arguments with an old spelling, the current ones, and the warning."""
KINDS = [config.model_fields["kind"].default for config in get_args(FusionConfig)]


@pytest.fixture(autouse=True)
def nothing_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the warnings that other tests caused."""
    monkeypatch.setattr(aliases, "_warned", set())


@pytest.mark.parametrize(("old", "current", "message"), SPELLINGS)
def test_old_spelling_composes_with_warning(
    old: list[str], current: list[str], message: str
) -> None:
    """An old spelling gives the same configuration as the current one, and one FutureWarning."""
    with pytest.warns(FutureWarning) as caught:
        config = compose_train(old)
    assert config == compose_train(current)
    [warning] = caught
    assert issubclass(warning.category, RenamedWarning)
    assert str(warning.message).startswith(message)


@pytest.mark.parametrize("old", [old for old, _, _ in SPELLINGS])
def test_second_use_does_not_warn(old: list[str]) -> None:
    with pytest.warns(FutureWarning):
        compose_train(old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose_train(old)


def test_several_tasks_warn_once() -> None:
    """A suite of tasks with the same old value causes one warning, not one per task."""
    tasks = [{"name": name, "env_id": "X-v0", "success": "ever"} for name in "ab"]
    with pytest.warns(FutureWarning) as caught:
        suite = SuiteConfig.model_validate({"name": "two", "tasks": tasks})
    assert [task.success for task in suite.tasks] == ["any_step", "any_step"]
    assert len(caught) == 1


def test_current_spelling_does_not_warn() -> None:
    assert replace_preset("split", "new_color") == "new_color"
    assert replace_preset("fusion", "film") == "film"
    assert replace_value("sampling", "uniform") == "uniform"
    assert replace_value("success", 3) == 3


def test_aliases_lead_to_valid_names() -> None:
    """Every alias leads to an existing preset or value, and hides none."""
    for group, renamed in RENAMED_PRESETS.items():
        assert set(renamed.values()) <= set(presets(group))
        assert not set(renamed) & set(presets(group))
    assert set(RENAMED_VALUES) == {"sampling", "success"}
    for value in RENAMED_VALUES["sampling"].values():
        assert compose_train(["task=doors", f"sampling={value}"]).sampling == value
    for value in RENAMED_VALUES["success"].values():
        task = TaskConfig.model_validate({"name": "a", "env_id": "X-v0", "success": value})
        assert task.success == value


def test_command_prints_warning_as_line() -> None:
    """The commands show the warning as one line without a file name or a source line.

    The arguments end in an error, so that nothing is trained.
    """
    code = "import mirl.train as train; train.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "split=new_colour", "fusion=flim"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    warning, error = done.stderr.splitlines()
    assert warning == (
        "warning: split=new_colour was renamed, use split=new_color; "
        "the old name will be removed in a later release"
    )
    assert error.startswith("error: unknown fusion 'flim'")
    assert (done.returncode, done.stdout) == (2, "")


def saved_config(*argv: str) -> dict[str, Any]:
    """Return the content of a config.yaml as a run directory holds it."""
    values: dict[str, Any] = compose_train(argv).model_dump(mode="json")
    # explicit, as after the choices by the observation
    values["encoder"]["attributes"] = 8
    return values


def test_saved_config_is_migrated() -> None:
    """A config.yaml with old spellings becomes the current one without a warning."""
    current = saved_config("task=door_colors", "split=new_color")
    old = yaml.safe_load(yaml.safe_dump(current))
    old["sampling"] = "slots"
    old["task"]["name"] = "door_colours"
    old["split"]["name"] = "new_colour"
    for task in old["task"]["tasks"]:
        task["success"] = "ever"
    expected = yaml.safe_load(yaml.safe_dump(current))
    for task in expected["task"]["tasks"]:
        task["success"] = "any_step"

    assert migrate_config(old) == expected
    assert (
        validate(TrainConfig, migrate_config(old)).run_name
        == compose_train(["task=door_colors", "split=new_color"]).run_name
    )


def test_unscaled_fusions_have_the_option() -> None:
    """The migration knows every built-in fusion with a scale of the context, and no other."""
    kinds = []
    for config in get_args(FusionConfig):
        if "context_scale" in config.model_fields:
            kinds.append(config.model_fields["kind"].default)
    assert sorted(SCALED_FUSIONS) == sorted(kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_old_fusion_keeps_its_scale(kind: str) -> None:
    """A fusion that was saved before its context had a scale computes as it did."""
    current = saved_config("task=goto_local", f"fusion={kind}")
    old = yaml.safe_load(yaml.safe_dump(current))
    old["fusion"].pop("context_scale", None)
    old["fusion"].pop("features_scale", None)
    before = yaml.safe_dump(old)

    migrated = validate(TrainConfig, migrate_config(old))
    assert yaml.safe_dump(old) == before
    if kind in SCALED_FUSIONS:
        assert migrated.fusion.context_scale == 1  # type: ignore[union-attr]
        assert getattr(migrated.fusion, "features_scale", 1) == 1
    else:
        assert migrate_config(old) == old
    assert migrate_config(current) == current


@pytest.mark.parametrize("context_scale", [None, 0.25])
def test_migration_keeps_given_scale(context_scale: float | None) -> None:
    """A scale that a run has stored is kept, also one that follows from the sizes."""
    old = {"fusion": {"kind": "bilinear", "context_scale": context_scale}}
    assert migrate_config(old) == old


def test_migration_copies_its_input() -> None:
    old = {"sampling": "slots", "task": {"name": "door_colours", "tasks": [{"success": "ever"}]}}
    before = yaml.safe_dump(old)
    assert migrate_config(old) != old
    assert yaml.safe_dump(old) == before


@pytest.mark.parametrize(
    "values",
    [
        None,
        3,
        "text",
        [],
        {},
        {"sampling": ["slots"]},
        {"task": 3, "split": None},
        {"task": {"name": 3, "tasks": 4}},
        {"task": {"tasks": [1, None, {}, {"success": 2}, {"success": ["ever"]}]}},
        {"split": {"name": ["new_colour"]}},
        {"encoder": "grid", "context": {"kind": ["mission"], "parts": 3}},
        {"encoder": {"parts": [None, 3]}, "context": {"parts": {"a": "mission"}}},
        {"fusion": "bilinear"},
        {"fusion": {"kind": None}, "agent": {"kind": "sac"}},
        {"fusion": {"kind": "my_package:Mine", "rank": 8}},
    ],
)
def test_unexpected_values_pass_unchanged(values: object) -> None:
    """Migration leaves it to the validation to report values of an unexpected form."""
    assert migrate_config(values) == values


def test_former_defaults_are_stated() -> None:
    """Options that a run does not state have the values of its time, and others stay."""
    grid = {"kind": "grid", "channels": 32}
    mission = {"kind": "mission", "key": "mission"}
    old = {
        "encoder": {"kind": "combined", "parts": {"codes": grid, "pixels": {"kind": "image"}}},
        "context": {"kind": "combined", "parts": [mission, {"kind": "task_id"}]},
    }
    migrated = migrate_config(old)
    assert migrated == {
        "encoder": {
            "kind": "combined",
            "parts": {"codes": {**grid, "attributes": 0}, "pixels": {"kind": "image"}},
        },
        "context": {
            "kind": "combined",
            "parts": [{**mission, "zero_start": False, "layers": 1}, {"kind": "task_id"}],
        },
    }
    stated = {
        "encoder": {**grid, "attributes": 4},
        "context": {**mission, "zero_start": True, "layers": 2},
    }
    assert migrate_config(stated) == stated
    assert migrate_config({"encoder": grid}) == {"encoder": {**grid, "attributes": 0}}
