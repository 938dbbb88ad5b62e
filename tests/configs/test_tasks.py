"""Tasks and splits: what counts as score 0 and 1, and what a split leaves to which part."""

import json
import re
from pathlib import Path

import pytest

from mirl.configs import tasks
from mirl.configs.compose import PRESETS, compose_train, presets
from mirl.configs.keys import TASK_KEY
from mirl.configs.tasks import REFERENCES, HoldoutConfig, SuiteConfig, TaskConfig, score_bounds
from mirl.envs import SuiteVecEnv

MEASURED = json.loads(REFERENCES.read_text(encoding="utf-8"))["environments"]
FITS = [
    (split, task)
    for split in presets("split")
    for task in re.findall(
        r"task=(\w+)", (PRESETS / "split" / f"{split}.yaml").read_text(encoding="utf-8")
    )
]
"""Splits, and the suites that their comments name."""


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for references.json: one id with an expert, one without."""
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
        (
            {"env_id": "Both-v0", "kwargs": {"size": 16}},
            (0.0, 1.0),
        ),  # another environment than the measured one
    ],
)
def test_bounds_are_the_tasks_own_else_measured_else_zero_and_one(
    options: dict[str, object], bounds: tuple[float, float]
) -> None:
    assert score_bounds(TaskConfig(name="task", **options)) == bounds


@pytest.mark.usefixtures("measured")
def test_a_bound_beyond_a_measured_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score_high must exceed score_low=0\.9, got 0\.875"):
        TaskConfig(name="task", env_id="Both-v0", score_low=0.9)


@pytest.mark.parametrize("env_id", sorted(MEASURED))
def test_what_was_measured_is_a_scale(env_id: str) -> None:
    low, high = score_bounds(TaskConfig(name="task", env_id=env_id, score_high=None))
    assert low < high
    for reference in MEASURED[env_id].values():
        assert 0 <= reference["success"] <= 1
        assert reference["episodes"] > 0


@pytest.mark.parametrize("preset", presets("task"))
def test_every_minigrid_task_of_a_preset_was_measured(preset: str) -> None:
    for task in compose_train([f"task={preset}"]).task.tasks:
        if task.env_id.startswith(("MiniGrid-", "BabyAI-")):
            assert "random" in MEASURED[task.env_id]
            assert "expert" in MEASURED[task.env_id] or not task.env_id.startswith("BabyAI-")


SUITE = SuiteConfig(
    name="three", tasks=tuple(TaskConfig(name=name, env_id=f"{name}-v0") for name in "abc")
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
def test_a_withheld_task_is_trained_in_no_episode_and_a_withheld_mission_in_no_task(
    split: HoldoutConfig, trained: tuple[int, ...], held_out: tuple[int, ...]
) -> None:
    assert split.task_indices(SUITE, "trained") == trained
    assert split.task_indices(SUITE, "held_out") == held_out


def test_every_split_names_a_suite_that_it_fits() -> None:
    assert {split for split, _ in FITS} == {*presets("split")} - {"none"}


@pytest.mark.parametrize(("split", "task"), FITS)
@pytest.mark.parametrize("part", ["trained", "held_out"])
def test_a_split_leaves_every_task_it_fits_some_episodes_of_both_parts(
    split: str, task: str, subset: tasks.Subset
) -> None:
    config = compose_train([f"split={split}", f"task={task}"])
    slots = 4 * len(config.split.task_indices(config.task, subset))
    env = SuiteVecEnv(config.task, slots, workers=0, holdout=config.split, subset=subset)
    try:
        assert len(env.reset()[TASK_KEY]) == slots  # where none is left, drawing ends in an error
    finally:
        env.close()
