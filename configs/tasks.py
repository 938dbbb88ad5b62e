"""The schema of tasks: what is learned, how success is told, and what is withheld to be asked of the agent later."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mirl.configs.aliases import replace_value
from mirl.configs.config import Config

REFERENCES = Path(__file__).with_name("references.json")
"""What random play and an expert reach, per environment id; written by ``benchmarks/references.py``."""

Success = Annotated[
    Literal["auto", "reward", "info", "any_step"],
    BeforeValidator(lambda value: replace_value("success", value)),
]
"""Rule that decides whether an episode succeeded."""
Subset = Literal["trained", "held_out"]
"""The episodes that a split leaves to training, and those that it withholds."""


def file_name(name: str) -> str:
    """A task's name as part of a file's name: ``ALE/Pong-v5`` must not become a folder."""
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)


class TaskConfig(Config):
    """One task: an environment, how to build it, and what counts as success."""

    name: Annotated[str, Field(pattern=r'^[^,"\r\n]+$')]
    """Name in logs and tables."""
    env_id: str
    """Registered gymnasium id, e.g. ``MiniGrid-GoToDoor-5x5-v0``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment (the ``gymnasium`` backend only)."""
    mission: str = ""
    """Play only episodes whose mission contains this phrase: tasks of one environment that differ in nothing else."""
    success: Success = "auto"
    """What says that an episode succeeded: a positive last reward, the last info, or the info of any timestep; ``auto``
    asks the last info, and the reward where that says nothing."""
    score_low: float | None = None
    """Return that counts as score 0; by default random play's, where it has been measured, else 0."""
    score_high: float | None = None
    """Return that counts as score 1; by default the expert's, where one has been measured, else 1."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        low, high = score_bounds(self)
        if high <= low:
            raise ValueError(f"score_high must exceed score_low={low}, got {high}")
        return self


def score_bounds(task: TaskConfig) -> tuple[float, float]:
    """The returns that count as score 0 and 1: the task's own, else those measured of its id, else 0 and 1.

    What was measured holds for an environment as it is registered, so not for one with ``kwargs``.
    """
    measured = {} if task.kwargs else _references().get(task.env_id, {})
    low = (
        measured.get("random", {}).get("return", 0.0) if task.score_low is None else task.score_low
    )
    high = (
        measured.get("expert", {}).get("return", 1.0)
        if task.score_high is None
        else task.score_high
    )
    return low, high


@cache
def _references() -> dict[str, dict[str, dict[str, float]]]:
    if not REFERENCES.exists():  # it is being written for the first time
        return {}
    environments: dict[str, dict[str, dict[str, float]]] = json.loads(
        REFERENCES.read_text("utf-8")
    )["environments"]
    return environments


class SuiteConfig(Config):
    """An ordered tuple of tasks, trained together."""

    name: str
    """Name of the suite."""
    tasks: tuple[TaskConfig, ...]
    """Its tasks; the position of a task is its task index."""
    observation: Literal["grid", "rgb"] = "grid"
    """MiniGrid's symbolic view, or the same view as pixels (the ``gymnasium`` backend only)."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("tasks must list at least one task, got []")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"task names must be unique, these come twice: {', '.join(twice)}")
        return self


class HoldoutConfig(Config):
    """What is withheld from training, and evaluated apart: can the agent do what it was never asked?"""

    name: str = "none"
    """Name of the split."""
    missions: tuple[str, ...] = ()
    """Withheld are the episodes whose mission contains one of these phrases, e.g. ``red ball``."""
    goal_low: tuple[float, ...] = ()
    """Lower corner of the box of withheld goals."""
    goal_high: tuple[float, ...] = ()
    """Upper corner of the box of withheld goals."""
    tasks: tuple[str, ...] = ()
    """Withheld tasks of the suite, by name."""

    @model_validator(mode="after")
    def _goals_are_a_box(self) -> Self:
        corners = (self.goal_low, self.goal_high)
        if len(corners[0]) != len(corners[1]) or any(
            low > high for low, high in zip(*corners, strict=True)
        ):
            raise ValueError(
                f"goal_low and goal_high must be corners of one box, got {list(corners[0])} and {list(corners[1])}"
            )
        return self

    @property
    def holds_out_episodes(self) -> bool:
        """Some episodes of a task are withheld, others are not."""
        return bool(self.missions or self.goal_low)

    @property
    def holds_out_any(self) -> bool:
        """Anything is withheld at all."""
        return bool(self.tasks) or self.holds_out_episodes

    def task_indices(self, suite: SuiteConfig, subset: Subset) -> tuple[int, ...]:
        """The tasks that a subset of the split has, as indices into the suite."""
        withheld = tuple(i for i, task in enumerate(suite.tasks) if task.name in self.tasks)
        others = tuple(i for i in range(len(suite.tasks)) if i not in withheld)
        if subset == "trained":
            return others
        return tuple(sorted((*withheld, *others))) if self.holds_out_episodes else withheld
