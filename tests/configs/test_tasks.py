"""Score bounds of tasks, and the tasks of each subset of a split."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs import tasks
from mirl.configs.compose import PRESETS_DIR, compose_train, presets, validate
from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.configs.tasks import (
    REFERENCES,
    HoldoutConfig,
    ReturnThreshold,
    SuiteConfig,
    TaskConfig,
    has_score_bounds,
    return_threshold,
    score_bounds,
)
from mirl.envs import SuiteVecEnv

MEASURED = json.loads(REFERENCES.read_text(encoding="utf-8"))["environments"]


def splits_and_tasks() -> list[tuple[str, str]]:
    """Return each split preset with each task preset that its comment names."""
    pairs: list[tuple[str, str]] = []
    for split in presets("split"):
        text = (PRESETS_DIR / "split" / f"{split}.yaml").read_text(encoding="utf-8")
        for task in re.findall(r"task=(\w+)", text):
            pairs.append((split, task))
    return pairs


SPLITS_AND_TASKS = splits_and_tasks()


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace references.json: one id with the results of an expert, one without."""
    environments = {"Both-v0": {"random": {"return": 0.125}, "expert": {"return": 0.875}}}
    environments["Random-v0"] = {"random": {"return": 0.25}}
    path = tmp_path / "references.json"
    path.write_text(json.dumps({"environments": environments}))
    monkeypatch.setattr(tasks, "REFERENCES", path)
    tasks._references.cache_clear()
    yield
    tasks._references.cache_clear()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"env_id": "Both-v0"}, (0.125, 0.875)),
        ({"env_id": "Random-v0"}, (0.25, 1.0)),
        ({"env_id": "Unmeasured-v0"}, (0.0, 1.0)),
        ({"env_id": "Both-v0", "score_low": -50}, (-50, 0.875)),
        ({"env_id": "Both-v0", "score_high": 2}, (0.125, 2)),
        ({"env_id": "Both-v0", "score_low": 0, "score_high": 1}, (0, 1)),
        # with other keyword arguments or a wrapper it is not the measured environment
        ({"env_id": "Both-v0", "kwargs": {"size": 16}}, (0.0, 1.0)),
        ({"env_id": "Both-v0", "wrappers": ["module:Class"]}, (0.0, 1.0)),
    ],
)
def test_score_bounds_have_defaults(
    options: dict[str, object], bounds: tuple[float, float]
) -> None:
    """Score bounds are the task's own, otherwise the measured ones, otherwise 0 and 1."""
    assert score_bounds(TaskConfig(name="task", **options)) == bounds


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"env_id": "Both-v0"}, True),
        ({"env_id": "Both-v0", "kwargs": {"size": 16}}, False),
        ({"env_id": "Random-v0"}, False),
        ({"env_id": "Random-v0", "score_high": 2}, True),
        ({"env_id": "Unmeasured-v0", "score_high": 2}, False),
        ({"env_id": "Unmeasured-v0", "score_low": -2, "score_high": 2}, True),
    ],
)
def test_assumed_bounds_are_no_bounds(options: dict[str, object], expected: bool) -> None:
    """A task has score bounds if both are its own or measured."""
    assert has_score_bounds(TaskConfig(name="task", **options)) is expected


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(FINITE, st.sampled_from([">=", ">"]), st.sampled_from(["", " "]))
def test_return_rule_keeps_its_number(bound: float, sign: str, space: str) -> None:
    """Any number can be a threshold, and a rule has one spelling, which is stable."""
    task = TaskConfig(name="a", env_id="X-v0", success=f"return{space}{sign}{space}{bound!r}")
    assert return_threshold(task.success) == ReturnThreshold(bound, is_strict=sign == ">")
    again = TaskConfig(name="a", env_id="X-v0", success=task.success)
    assert again.success == task.success
    assert " " not in task.success


@pytest.mark.parametrize(
    ("rule", "canonical"),
    [
        ("return >= 5.0", "return>=5"),
        ("return>=-5", "return>=-5"),
        ("return>.5", "return>0.5"),
        ("return>=+1e3", "return>=1000"),
        (" return>=5 ", "return>=5"),
    ],
)
def test_return_rule_has_one_spelling(rule: str, canonical: str) -> None:
    assert TaskConfig(name="a", env_id="X-v0", success=rule).success == canonical


@pytest.mark.parametrize(
    "rule",
    [
        *("return", "return>=", "return>=x", "return=>5", "return<5", "return>=inf", "return>nan"),
        *("return>=1e999", "return>=5>=4", "reward>=5", "returns>=5", "Return>=5", ""),
        *(5, None, ["auto"]),
    ],
)
def test_other_rules_are_rejected_in_one_line(rule: object) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TaskConfig, {"name": "a", "env_id": "X-v0", "success": rule})
    [line] = str(caught.value).splitlines()
    assert line.startswith("success: expected 'auto', 'reward', 'info', 'any_step' or 'return>=X'")
    assert f"got {rule!r}." in line
    if str(rule).startswith("return"):
        assert "return>=-5" in line, "the advice is a rule that works"


def test_return_rule_from_the_command_line() -> None:
    """In a list of tasks the rule is quoted, because Hydra reads = and > otherwise."""
    words = ["task.name=x", "task.tasks=[{name: a, env_id: X-v0, success: 'return>=-5'}]"]
    assert compose_train(words).task.tasks[0].success == "return>=-5"


@pytest.mark.usefixtures("measured")
def test_bound_beyond_measured_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"score_high must exceed score_low=0\.9, got 0\.875"):
        TaskConfig(name="task", env_id="Both-v0", score_low=0.9)


@pytest.mark.parametrize("env_id", sorted(MEASURED))
def test_measured_results_form_a_scale(env_id: str) -> None:
    low, high = score_bounds(TaskConfig(name="task", env_id=env_id, score_high=None))
    assert low < high
    for reference in MEASURED[env_id].values():
        assert 0 <= reference["success"] <= 1
        assert reference["episodes"] > 0


@pytest.mark.parametrize("preset", presets("task"))
def test_preset_tasks_were_measured(preset: str) -> None:
    """MiniGrid's tasks have results of a random agent, BabyAI's of an expert as well."""
    for task in compose_train([f"task={preset}"]).task.tasks:
        if task.env_id.startswith(("MiniGrid-", "BabyAI-")):
            assert "random" in MEASURED[task.env_id]
            assert "expert" in MEASURED[task.env_id] or not task.env_id.startswith("BabyAI-")


SUITE = SuiteConfig(
    name="three",
    tasks=(
        TaskConfig(name="a", env_id="a-v0"),
        TaskConfig(name="b", env_id="b-v0"),
        TaskConfig(name="c", env_id="c-v0"),
    ),
)


@pytest.mark.parametrize(
    ("split", "trained", "held_out"),
    [
        (HoldoutConfig(), (0, 1, 2), ()),
        (HoldoutConfig(tasks=("b",)), (0, 2), (1,)),
        (HoldoutConfig(missions=("red",)), (0, 1, 2), (0, 1, 2)),
        (HoldoutConfig(missions=("red",), tasks=("b",)), (0, 2), (0, 1, 2)),
        (HoldoutConfig(goal_low=(0.0,), goal_high=(1.0,)), (0, 1, 2), (0, 1, 2)),
    ],
)
def test_holdout_assigns_tasks_to_subsets(
    split: HoldoutConfig, trained: tuple[int, ...], held_out: tuple[int, ...]
) -> None:
    """A held-out task is not trained at all; held-out missions or goals can be of any task."""
    assert split.task_indices(SUITE, "trained") == trained
    assert split.task_indices(SUITE, "held_out") == held_out


def test_split_preset_names_its_tasks() -> None:
    """The comment of every split preset names a task preset that it is for."""
    assert {split for split, _ in SPLITS_AND_TASKS} == {*presets("split")} - {"none"}


@pytest.mark.parametrize(("split", "task"), SPLITS_AND_TASKS)
@pytest.mark.parametrize("subset", ["trained", "held_out"])
def test_split_leaves_episodes_in_subset(split: str, task: str, subset: tasks.Subset) -> None:
    """Every task of a subset has episodes; drawing one raises an error otherwise."""
    config = compose_train([f"split={split}", f"task={task}"])
    n_envs = 4 * len(config.split.task_indices(config.task, subset))
    env = SuiteVecEnv(config.task, n_envs, workers=0, holdout=config.split, subset=subset)
    try:
        assert len(env.reset()[TASK_KEY]) == n_envs
    finally:
        env.close()


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3))
KWARGS = st.dictionaries(st.sampled_from("abc"), VALUES)


@given(common=KWARGS, own=st.lists(KWARGS, min_size=1, max_size=3))
def test_suite_kwargs_reach_its_tasks(
    common: dict[str, object], own: list[dict[str, object]]
) -> None:
    """A task's own values win, and none is ignored silently."""
    tasks = [{"name": str(i), "env_id": "A-v0", "kwargs": kwargs} for i, kwargs in enumerate(own)]
    values = {"name": "suite", "tasks": tasks, "kwargs": common}
    ignored = [key for key in common if all(key in kwargs for kwargs in own)]
    if ignored:
        with pytest.raises(ConfigError, match=f"kwargs.{ignored[0]}=… has no effect"):
            validate(SuiteConfig, values)
        return
    suite = validate(SuiteConfig, values)
    assert [task.kwargs for task in suite.tasks] == [{**common, **kwargs} for kwargs in own]
    assert suite.kwargs == {}
    assert validate(SuiteConfig, suite.model_dump(mode="json")) == suite


def test_suite_wrappers_reach_its_tasks() -> None:
    own = {"name": "own", "env_id": "B-v0", "wrappers": [{"wrapper": "m:B", "kwargs": {"x": 1}}]}
    plain = TaskConfig(name="plain", env_id="A-v0")
    suite = validate(SuiteConfig, {"name": "s", "tasks": [plain, own], "wrappers": "m:A"})
    assert [task.wrappers[0].wrapper for task in suite.tasks] == ["m:A", "m:B"]
    assert (suite.wrappers, suite.tasks[1].wrappers[0].kwargs) == ((), {"x": 1})


def test_ignored_success_is_an_error() -> None:
    values = {"name": "s", "tasks": [{"name": "a", "env_id": "A-v0", "success": "info"}]}
    with pytest.raises(ConfigError, match="success=… has no effect"):
        validate(SuiteConfig, {**values, "success": "reward"})


@pytest.mark.parametrize("value", ["Class", "module:", ":Class", "a:b:c", ""])
def test_wrapper_needs_module_and_class(value: str) -> None:
    with pytest.raises(ConfigError, match="wrapper: expected module:Class"):
        validate(TaskConfig, {"name": "a", "env_id": "A-v0", "wrappers": [value]})
