"""The spaces that all tasks of a suite share."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs.actions import ActionSpace, supported_action_space
from mirl.envs.make import check_starts, make_env


@dataclass(frozen=True)
class JoinedSpaces:
    """The spaces of all tasks as one."""

    observation: spaces.Dict
    """With ``action_mask``, if the tasks' numbers of actions differ."""
    action: ActionSpace
    """Every action that any task has."""
    n_actions: NDArray[np.int64] | None
    """(n_tasks,), of each task, if these differ."""


def suite_spaces(
    suite: SuiteConfig, backend: Literal["gymnasium", "envpool"]
) -> tuple[spaces.Dict, ActionSpace]:
    """Observation and action space of a suite, from one environment of each task; errors as in ``joined_spaces``."""
    joined = joined_spaces(suite, backend)
    return joined.observation, joined.action


def joined_spaces(suite: SuiteConfig, backend: Literal["gymnasium", "envpool"]) -> JoinedSpaces:
    """The spaces of a suite, from one environment of each task. Only numbers of discrete actions may differ.

    Raises:
        ConfigError: an environment cannot be made, or two tasks differ; says which and in what.
    """
    observations, actions = zip(
        *(_task_spaces(suite, i, backend) for i in range(len(suite.tasks))), strict=True
    )
    n_actions = _differing_counts(actions)
    own_mask = ACTION_MASK_KEY in observations[0]
    if n_actions is not None and own_mask:
        for task, space, n in zip(suite.tasks, observations, n_actions.tolist(), strict=True):
            _check_mask(task, space, n)
    for task, observation, action in zip(
        suite.tasks[1:], observations[1:], actions[1:], strict=True
    ):
        _check_same(
            "observation keys", suite.tasks[0], list(observations[0]), task, list(observation)
        )
        for key in observation:
            if n_actions is None or key != ACTION_MASK_KEY:
                _check_same(
                    f"observation '{key}'",
                    suite.tasks[0],
                    observations[0][key],
                    task,
                    observation[key],
                )
        if n_actions is None:
            _check_same("action space", suite.tasks[0], actions[0], task, action)
    if n_actions is None:
        return JoinedSpaces(observations[0], actions[0], None)
    width = int(n_actions.max())
    masked = spaces.Dict({**observations[0], ACTION_MASK_KEY: spaces.MultiBinary(width)})
    return JoinedSpaces(masked, spaces.Discrete(width), n_actions)


def _task_spaces(
    suite: SuiteConfig, index: int, backend: Literal["gymnasium", "envpool"]
) -> tuple[spaces.Dict, ActionSpace]:
    task = suite.tasks[index]
    env = make_env(task, index, len(suite.tasks), suite.observation)
    try:
        if backend == "gymnasium":
            check_starts(env, task)
        assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
        return env.observation_space, supported_action_space(
            env.action_space, f"task '{task.name}'"
        )
    finally:
        env.close()


def _differing_counts(actions: tuple[ActionSpace, ...]) -> NDArray[np.int64] | None:
    """Each task's number of actions, if all count theirs, and these numbers differ."""
    counts = [int(space.n) for space in actions if isinstance(space, spaces.Discrete)]
    return np.array(counts) if len(counts) == len(actions) and len(set(counts)) > 1 else None


def _check_mask(task: TaskConfig, observation: spaces.Dict, n_actions: int) -> None:
    mask = observation.spaces.get(ACTION_MASK_KEY)
    if mask is not None and mask != spaces.MultiBinary(n_actions):
        raise ConfigError(
            f"task '{task.name}' has {n_actions} actions, so its observation '{ACTION_MASK_KEY}' must be "
            f"MultiBinary({n_actions}), got {mask}"
        )


def _check_same(what: str, first: TaskConfig, expected: Any, other: TaskConfig, got: Any) -> None:
    if expected != got:
        raise ConfigError(
            f"tasks of one suite must share their spaces; {what} of '{first.name}' is {_brief(expected)}, "
            f"of '{other.name}' {_brief(got)}"
        )


def _brief(value: Any) -> str:
    if isinstance(value, spaces.Box):  # its own text spells out every bound
        return (
            f"Box of shape {value.shape}, {value.dtype}, in [{value.low.min()}, {value.high.max()}]"
        )
    return str(value)
