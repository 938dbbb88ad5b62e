"""Schema of tasks: environments, success rules, score bounds, and holdouts."""

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mirl.configs.aliases import replace_value
from mirl.configs.config import AllowSingle, Config
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.texts import (
    MAX_TEXT_LENGTH,
    MAX_VOCABULARY_CHARACTERS,
    TextForm,
    unique_words,
)

REFERENCES = Path(__file__).with_name("references.json")
"""Results of a random agent and of an expert per environment id; see benchmarks/references.py."""

MAX_NAME_CHARACTERS = 100
"""Maximum length of a task's name in the name of a file before it is shortened."""
SUCCESS_RULES = ("auto", "reward", "info", "any_step")
"""Success rules without a number."""

# "return>=-5", "return > 1e3"
_RETURN_RULE = re.compile(r"return\s*(>=|>)\s*([^\s>=]+)")


class ReturnThreshold(NamedTuple):
    """Threshold of the return for a successful episode.

    Examples:
        >>> from mirl.configs.tasks import return_threshold
        >>> return_threshold("return>=-5")
        ReturnThreshold(bound=-5.0, is_strict=False)
        >>> return_threshold("reward") is None
        True
    """

    bound: float
    is_strict: bool
    """True if the return has to exceed the bound, False if it has to reach it."""


def return_threshold(rule: str) -> ReturnThreshold | None:
    """Return the threshold of a success rule such as ``return>=-5``.

    Args:
        rule: a success rule.

    Returns:
        The threshold; None if the rule is another one.
    """
    match = _RETURN_RULE.fullmatch(rule.strip())
    if match is None:
        return None
    try:
        bound = float(match[2])
    except ValueError:
        return None
    # every episode exceeds -inf and none reaches nan
    if not math.isfinite(bound):
        return None
    return ReturnThreshold(bound, is_strict=match[1] == ">")


def _parse_success(value: object) -> str:
    """Return a success rule in its canonical spelling."""
    rule = replace_value("success", value)
    if isinstance(rule, str):
        if rule in SUCCESS_RULES:
            return rule
        threshold = return_threshold(rule)
        if threshold is not None:
            # one spelling, so that a run is resumed by "return >= 5.0" as well as by "return>=5"
            sign = ">" if threshold.is_strict else ">="
            return f"return{sign}{threshold.bound!r}".removesuffix(".0")
    hint = nearest(rule, SUCCESS_RULES)
    if rule == "return":
        hint = " A shell takes > for a redirection, so quote the argument: 'success=return>=-5'."
    elif str(rule).startswith("return"):
        hint = " An example: 'return>=-5'."
    raise ValueError(
        "expected 'auto', 'reward', 'info', 'any_step' or 'return>=X' with a number X, "
        f"got {value!r}.{hint}"
    )


Success = Annotated[str, BeforeValidator(_parse_success)]
"""Rule that decides whether an episode succeeded: one of ``SUCCESS_RULES``, or ``return>=X``."""
Subset = Literal["trained", "held_out"]
"""Subset of the episodes: those that are trained on, and those that are held out."""


def file_name(name: str) -> str:
    """Return a task's name in a form that can be part of a file name.

    Args:
        name: name of a task, which may contain slashes: ``ALE/Pong-v5``.

    Returns:
        The name with every character but letters, digits, ``.``, ``_``, ``+`` and ``-`` replaced
        by ``-``.
    """
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)


def short_file_name(name: str, length: int = MAX_NAME_CHARACTERS) -> str:
    """Return a name as ``file_name`` does, but cut it and add a checksum if it is too long.

    Args:
        name: the name.
        length: maximum number of characters before it is cut.
    """
    whole = file_name(name)
    if len(whole) <= length:
        return whole
    checksum = f"{zlib.crc32(name.encode()):08x}"
    return f"{whole[: length - len(checksum) - 1]}-{checksum}"


class WrapperConfig(Config):
    """A Gymnasium wrapper, written as ``module:Class`` or with its arguments.

    Examples:
        >>> from mirl.configs.tasks import TaskConfig, WrapperConfig
        >>> from mirl.envs import make_env
        >>> full_view = WrapperConfig(wrapper="minigrid.wrappers:FullyObsWrapper")
        >>> task = TaskConfig(name="empty", env_id="MiniGrid-Empty-8x8-v0", wrappers=(full_view,))
        >>> make_env(task).observation_space["image"].shape
        (8, 8, 3)
    """

    wrapper: str
    """Class derived from ``gymnasium.Wrapper``, e.g. ``minigrid.wrappers:FullyObsWrapper``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class, after the environment."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone_is_a_wrapper(cls, value: object) -> object:
        if isinstance(value, str):
            return {"wrapper": value}
        return value

    @field_validator("wrapper")
    @classmethod
    def _wrapper_names_a_class(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not module or not name or ":" in name:
            raise ValueError(
                "wrapper: expected module:Class, e.g. minigrid.wrappers:FullyObsWrapper, "
                f"got '{value}'"
            )
        return value


Wrappers = Annotated[tuple[WrapperConfig, ...], AllowSingle]
"""Wrappers around an environment, the innermost first."""


class TaskConfig(Config):
    """A task: an environment, its keyword arguments, its wrappers, and its success rule.

    Examples:
        >>> from mirl.configs.tasks import TaskConfig
        >>> task = TaskConfig(name="pole", env_id="CartPole-v1", success="return >= 400")
        >>> task.success
        'return>=400'
    """

    # SB3 writes the names of metrics into the header of its CSV file without quotes.
    name: Annotated[str, Field(pattern=r'^[^,"\r\n]+$')]
    """Name in logs and tables."""
    env_id: str
    """Id that ``gym.make`` takes: ``MiniGrid-GoToDoor-5x5-v0``, or ``my_package:MyEnv-v0`` to
    import the module that registers it."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for ``gym.make``; they require the ``gymnasium`` backend."""
    wrappers: Wrappers = ()
    """Wrappers around the environment; they require the ``gymnasium`` backend."""
    mission: str = ""
    """Keep only episodes whose mission contains this phrase; empty keeps all. It makes several
    tasks out of one environment, e.g. one task per door color."""
    success: Success = "auto"
    """Success rule: ``reward`` requires a positive last reward, ``info`` reads ``is_success`` or
    ``success`` from the last info, ``any_step`` reads it from the info of every timestep,
    ``return>=X`` (or ``return>X``) requires the return of the episode to reach the number X, and
    ``auto`` reads the last info; if that says nothing, it is ``reward`` for the ids of MiniGrid
    and BabyAI, and otherwise the success is unknown."""
    score_low: float | None = None
    """Return with score 0; by default the measured return of a random agent, or 0 if there is
    none."""
    score_high: float | None = None
    """Return with score 1; by default the measured return of an expert, or 1 if there is none."""

    @model_validator(mode="after")
    def _score_high_exceeds_score_low(self) -> Self:
        low, high = score_bounds(self)
        if high <= low:
            raise ValueError(f"score_high must exceed score_low={low}, got {high}")
        return self


def score_bounds(task: TaskConfig) -> tuple[float, float]:
    """Return the returns with score 0 and score 1.

    Args:
        task: the task. Its own bounds come first, then the measured ones, then 0 and 1.

    Returns:
        The lower and the upper bound, in units of the episode return.
    """
    measured = _measured_results(task)
    low = task.score_low
    if low is None:
        low = measured.get("random", {}).get("return", 0.0)
    high = task.score_high
    if high is None:
        high = measured.get("expert", {}).get("return", 1.0)
    return low, high


def has_score_bounds(task: TaskConfig) -> bool:
    """Return True if both score bounds of a task are given or measured, not defaults.

    Args:
        task: the task.
    """
    measured = _measured_results(task)
    has_low = task.score_low is not None or "return" in measured.get("random", {})
    has_high = task.score_high is not None or "return" in measured.get("expert", {})
    return has_low and has_high


def _measured_results(task: TaskConfig) -> dict[str, dict[str, float]]:
    """Return the measured results of a task's environment; empty if there are none."""
    # The measurements hold for an environment as registered, not for a changed one.
    if task.kwargs or task.wrappers:
        return {}
    return _references().get(task.env_id, {})


@cache
def _references() -> dict[str, dict[str, dict[str, float]]]:
    """Return the measured results by environment id, ``random`` or ``expert``, and quantity."""
    if not REFERENCES.exists():  # benchmarks/references.py is writing it for the first time
        return {}
    content = json.loads(REFERENCES.read_text("utf-8"))
    environments: dict[str, dict[str, dict[str, float]]] = content["environments"]
    return environments


FOR_EVERY_TASK = ("kwargs", "wrappers", "success")
"""Options of a task that can be given for all tasks of a suite."""


def _with_options(task: object, for_all: Mapping[str, object]) -> object:
    """Return a task with the options that are given for all tasks.

    Args:
        task: the task; anything but a config or a dictionary is left to the validation.
        for_all: the options; a task's own ones take precedence, and keyword arguments are merged.
    """
    if isinstance(task, TaskConfig):
        task = task.model_dump(exclude_unset=True)
    if not isinstance(task, dict):
        return task
    joined = {**for_all, **task}
    own = task.get("kwargs")
    common = for_all.get("kwargs")
    if isinstance(own, dict) and isinstance(common, dict):
        joined["kwargs"] = {**common, **own}
    return joined


def _check_used(for_all: Mapping[str, object], tasks: Sequence[object]) -> None:
    """Raise an error if an option is given for all tasks, but each of them has its own value."""
    for key, value in for_all.items():
        names: list[tuple[str, ...]] = [(key,)]
        if isinstance(value, dict):
            names = [(key, str(name)) for name in value]
        for path in names:
            if all(_has(task, path) for task in tasks):
                option = ".".join(path)
                raise ValueError(
                    f"{option}=… has no effect, because every task of the suite sets its own "
                    f"{option}; list the tasks with task.tasks=[…] to change it"
                )


def _has(task: object, path: Sequence[str]) -> bool:
    """Return True if a task that has not been validated yet sets an option, such as kwargs.size."""
    if isinstance(task, TaskConfig):
        task = task.model_dump(exclude_unset=True)
    for name in path:
        if not isinstance(task, dict) or name not in task:
            return False
        task = task[name]
    return True


class SuiteConfig(Config):
    """An ordered tuple of tasks that are trained together.

    Examples:
        >>> from mirl.configs.tasks import SuiteConfig, TaskConfig
        >>> small = TaskConfig(name="small", env_id="MiniGrid-Empty-5x5-v0")
        >>> large = TaskConfig(name="large", env_id="MiniGrid-Empty-8x8-v0")
        >>> suite = SuiteConfig(name="rooms", tasks=(small, large), kwargs={"max_steps": 50})
        >>> suite.task_index("large")
        1
        >>> suite.tasks[0].kwargs
        {'max_steps': 50}
    """

    name: str
    """Name of the suite."""
    tasks: tuple[TaskConfig, ...]
    """Tasks of the suite; a task's position is its task index."""
    observation: Literal["grid", "rgb"] = "grid"
    """MiniGrid observations: the symbolic grid, or the same view as RGB pixels (which require the
    ``gymnasium`` backend)."""
    unknown_codes: Literal["error", "hash"] = "error"
    """Reaction to codes of a symbolic image beyond MiniGrid's tables and the bounds of its space:
    an error, or separate rows, chosen by a hash; ``encoder.unknown`` sets it."""
    vocabulary: Annotated[tuple[str, ...], AllowSingle] | None = None
    """Words that get their own token ids, besides MiniGrid's and BabyAI's; all others share 64
    ids. None collects the words of the environments' texts when they are first made."""
    text_length: Annotated[int, Field(ge=1, le=MAX_TEXT_LENGTH)] | None = None
    """Length of a text in words (in bytes for ``text_form=utf8``); longer ones are cut. None
    measures the environments' texts when they are first made."""
    text_form: TextForm = "tokens"
    """Form of the texts: ``tokens`` for one id per word, ``utf8`` for the text itself as bytes,
    which ``context=sentence`` needs."""

    @field_validator("vocabulary")
    @classmethod
    def _vocabulary_is_of_single_words(
        cls, vocabulary: tuple[str, ...] | None
    ) -> tuple[str, ...] | None:
        if vocabulary is None:
            return None
        # in the form in which texts are split; a text of several words adds each of them
        words = unique_words(vocabulary)
        n_characters = sum(map(len, words))
        if n_characters > MAX_VOCABULARY_CHARACTERS:
            raise ValueError(
                f"vocabulary must have at most {MAX_VOCABULARY_CHARACTERS:,} characters in all its "
                f"words, got {n_characters:,}; leave out the rarest words, which then share ids"
            )
        return words

    def task_index(self, name: str, where: str = "") -> int:
        """Return the index of a task.

        Args:
            name: its name.
            where: beginning of the error message, such as ``split.tasks: ``.

        Raises:
            ConfigError: the suite has no such task; the error suggests the nearest.
        """
        names = [task.name for task in self.tasks]
        if name not in names:
            raise ConfigError(
                f"{where}suite '{self.name}' has no task '{name}'." + nearest(name, names)
            )
        return names.index(name)

    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for ``gym.make`` of every task, e.g. ``task.kwargs.max_steps=20``; a task's
    own value wins."""
    wrappers: Wrappers = ()
    """Wrappers around the environments of every task without its own, e.g.
    ``task.wrappers=[minigrid.wrappers:FullyObsWrapper]``."""
    success: Success | None = None
    """Success rule of every task without its own; it may be typed without ``task.``."""

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_suite_reach_its_tasks(cls, values: object) -> object:
        """Move options given for all tasks into the tasks, so that they are in one place."""
        if not isinstance(values, dict) or not isinstance(values.get("tasks"), list | tuple):
            return values
        suite = dict(values)
        for_all: dict[str, object] = {}
        for key in FOR_EVERY_TASK:
            if suite.get(key):
                for_all[key] = suite.pop(key)
        if not for_all:
            return values
        _check_used(for_all, suite["tasks"])
        suite["tasks"] = [_with_options(task, for_all) for task in suite["tasks"]]
        return suite

    def with_success(self, rule: str | None) -> Self:
        """Return the suite with another success rule for every task.

        Args:
            rule: the rule; None to keep the rules of the tasks.
        """
        if rule is None:
            return self
        tasks = tuple(task.model_copy(update={"success": rule}) for task in self.tasks)
        return self.model_copy(update={"tasks": tasks})

    def with_task(self, task: TaskConfig) -> Self:
        """Return the suite with a task that replaces the one of the same name, or else the first.

        The number of tasks stays the same, because the shapes of weights depend on it.

        Args:
            task: the task.
        """
        tasks = list(self.tasks)
        names = [other.name for other in tasks]
        index = 0
        if task.name in names:
            index = names.index(task.name)
        tasks[index] = task
        return self.model_copy(update={"tasks": tuple(tasks)})

    @model_validator(mode="after")
    def _task_names_are_unique(self) -> Self:
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("tasks must list at least one task, got []")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"task names must be unique, got more than once: {', '.join(repeated)}"
            )
        return self


class HoldoutConfig(Config):
    """Missions, goals or tasks that are held out of training and evaluated separately.

    They measure generalization to instructions that the agent was never trained on.

    Examples:
        >>> from mirl.configs.compose import compose_suite
        >>> from mirl.configs.tasks import HoldoutConfig
        >>> suite = compose_suite("mt3")
        >>> [task.name for task in suite.tasks]
        ['lava_gap', 'red_blue_doors', 'memory']
        >>> holdout = HoldoutConfig(tasks=("memory",))
        >>> holdout.task_indices(suite, "trained"), holdout.task_indices(suite, "held_out")
        ((0, 1), (2,))
    """

    name: str = "none"
    """Name of the split."""
    missions: tuple[str, ...] = ()
    """Hold out episodes whose mission contains one of these phrases, e.g. ``red ball``."""
    goal_low: tuple[float, ...] = ()
    """Lower corner of the box of held-out goals (inclusive), in the units of ``desired_goal``."""
    goal_high: tuple[float, ...] = ()
    """Upper corner of the box of held-out goals (inclusive), in the units of ``desired_goal``."""
    tasks: tuple[str, ...] = ()
    """Names of the held-out tasks of the suite."""

    @model_validator(mode="after")
    def _goal_bounds_form_a_box(self) -> Self:
        is_box = len(self.goal_low) == len(self.goal_high)
        # strict=False, because the lengths were compared in the line above
        for low, high in zip(self.goal_low, self.goal_high, strict=False):
            is_box = is_box and low <= high
        if not is_box:
            raise ValueError(
                "goal_low and goal_high must be opposite corners of one box, got "
                f"{list(self.goal_low)} and {list(self.goal_high)}"
            )
        return self

    @property
    def holds_out_episodes(self) -> bool:
        """Return True if only some episodes of a task are held out."""
        return bool(self.missions or self.goal_low)

    @property
    def holds_out_any(self) -> bool:
        """Return True if anything is held out."""
        return bool(self.tasks) or self.holds_out_episodes

    def task_indices(self, suite: SuiteConfig, subset: Subset) -> tuple[int, ...]:
        """Return the tasks that have episodes in a subset.

        Args:
            suite: the suite that this holdout belongs to.
            subset: ``trained`` or ``held_out``.

        Returns:
            Task indices in ascending order.
        """
        trained: list[int] = []
        held_out: list[int] = []
        for index, task in enumerate(suite.tasks):
            if task.name in self.tasks:
                held_out.append(index)
            else:
                trained.append(index)
        if subset == "trained":
            return tuple(trained)
        if self.holds_out_episodes:
            # every trained task may have held-out episodes as well
            return tuple(range(len(suite.tasks)))
        return tuple(held_out)
