"""The spaces that all tasks of a suite share."""

from typing import Any, Literal

from gymnasium import spaces

from mirl.configs.errors import ConfigError
from mirl.configs.schema import SuiteConfig, TaskConfig
from mirl.envs.actions import ActionSpace, supported_action_space
from mirl.envs.making import check_starts, make_env


def suite_spaces(suite: SuiteConfig, backend: Literal["gymnasium", "envpool"]) -> tuple[spaces.Dict, ActionSpace]:
    """Observation and action space of a suite, from one environment of each task.

    Raises:
        ConfigError: an environment cannot be made, or two tasks differ; says which and in what.
    """
    first, *others = suite.tasks
    observation_space, action_space = _task_spaces(suite, 0, backend)
    for index, task in enumerate(others, start=1):
        other_observation_space, other_action_space = _task_spaces(suite, index, backend)
        _check_same("observation keys", first, list(observation_space), task, list(other_observation_space))
        for key in observation_space:
            _check_same(f"observation '{key}'", first, observation_space[key], task, other_observation_space[key])
        _check_same("action space", first, action_space, task, other_action_space)
    return observation_space, action_space


def _task_spaces(
    suite: SuiteConfig, index: int, backend: Literal["gymnasium", "envpool"]
) -> tuple[spaces.Dict, ActionSpace]:
    task = suite.tasks[index]
    env = make_env(task, index, len(suite.tasks), suite.observation)
    try:
        if backend == "gymnasium":
            check_starts(env, task)
        assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
        return env.observation_space, supported_action_space(env.action_space, f"task '{task.name}'")
    finally:
        env.close()


def _check_same(what: str, first: TaskConfig, expected: Any, other: TaskConfig, got: Any) -> None:
    if expected != got:
        raise ConfigError(
            f"tasks of one suite must share their spaces; {what} of '{first.name}' is {_brief(expected)}, "
            f"of '{other.name}' {_brief(got)}"
        )


def _brief(value: Any) -> str:
    if isinstance(value, spaces.Box):  # its own text spells out every bound
        return f"Box of shape {value.shape}, {value.dtype}, in [{value.low.min()}, {value.high.max()}]"
    return str(value)
