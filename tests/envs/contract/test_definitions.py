"""Tests of the check of each environment definition once per process."""

from contextlib import closing
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids)
import numpy as np
import pytest
import toy_envs
from hypothesis import given
from hypothesis import strategies as st
from minigrid.core import constants
from suites import COUNTER, single_task

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv, suite_spaces
from mirl.envs.contract.definitions import definition_key

WRAPPER = "gymnasium.wrappers:TimeLimit"
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def task(env_id: str = COUNTER, name: str = "task", **fields: Any) -> TaskConfig:
    return TaskConfig(name=name, env_id=env_id, **fields)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the tasks that are checked from now on."""
    names: list[str] = []
    original = suite_spaces.check_first_timestep

    def check(env: Any, task: TaskConfig, space: Any) -> None:
        names.append(task.name)
        original(env, task, space)

    monkeypatch.setattr(suite_spaces, "check_first_timestep", check)
    monkeypatch.setattr(suite_spaces, "_checked", {})
    return names


def make(*tasks: TaskConfig) -> None:
    SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), len(tasks), workers=0).close()


def test_definition_is_checked_once(checks: list[str]) -> None:
    """Training, evaluation and test share one check, and so do tasks of one environment."""
    tasks = (
        task(name="a"),
        task(name="b", success="return>=5"),
        task(name="c", kwargs={"size": 2}),
    )
    make(*tasks)
    assert checks == ["a", "c"]
    for _ in range(2):
        make(*tasks)
    assert checks == ["a", "c"]


@given(PLAIN, PLAIN)
def test_arguments_are_told_apart(first: Any, second: Any) -> None:
    """Only equal keyword arguments of equal types have one key."""
    keys = [definition_key(task(kwargs={"value": value})) for value in (first, second)]
    assert (keys[0] == keys[1]) == (repr(first) == repr(second))


@pytest.mark.parametrize(
    "other",
    [
        task(kwargs={"size": True}),
        task(kwargs={"size": 1.0}),
        task(
            kwargs={"size": 1}, wrappers=[{"wrapper": WRAPPER, "kwargs": {"max_episode_steps": 3}}]
        ),
        task("ToyLazy-v0", kwargs={"size": 1}),
    ],
)
def test_definitions_are_told_apart(other: TaskConfig) -> None:
    assert definition_key(task(kwargs={"size": 1})) != definition_key(other)
    assert definition_key(other) is not None


def test_failure_is_checked_again(checks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A definition that failed is checked again, and so is a class that was changed."""

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("no start")

    with monkeypatch.context() as patch:
        patch.setattr(toy_envs.CounterEnv, "reset", fail)
        for _ in range(2):
            with pytest.raises(ConfigError, match="reset"):
                make(task())
    make(task())
    with monkeypatch.context() as patch:
        patch.setattr(toy_envs.CounterEnv, "reset", fail)
        with pytest.raises(ConfigError, match="reset"):
            make(task())
    assert len(checks) == 4


def test_registration_replaces_another(checks: list[str]) -> None:
    """An id that is registered again, as in a notebook, is another definition."""
    for entry_point in (toy_envs.CounterEnv, type("Other", (toy_envs.CounterEnv,), {})):
        gym.register("ToyAgain-v0", entry_point=entry_point)
        make(task("ToyAgain-v0"))
        del gym.registry["ToyAgain-v0"]
    assert len(checks) == 2


def test_objects_are_not_compared(checks: list[str]) -> None:
    """An argument that is an object may change, so its definition is checked every time."""
    assert definition_key(task(kwargs={"size": np.int64(3)})) is None
    for _ in range(2):
        make(task(kwargs={"size": np.int64(3)}))
    assert len(checks) == 2


def test_codes_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that are added to MiniGrid's tables change its spaces."""
    grid = task("MiniGrid-Empty-5x5-v0")
    before = definition_key(grid)
    assert before == definition_key(grid)
    monkeypatch.setitem(constants.OBJECT_TO_IDX, "lantern", 30)
    assert definition_key(grid) != before


def test_spaces_are_not_shared(checks: list[str]) -> None:
    """Sampling an action of one vector environment leaves the others' random state alone."""
    suite = single_task(COUNTER)
    first, second = (SuiteVecEnv(suite, 1, workers=0) for _ in range(2))
    with closing(first), closing(second):
        first.action_space.seed(0)
        second.action_space.seed(0)
        first.action_space.sample()
        assert first.action_space is not second.action_space
        assert first.observation_space is not second.observation_space
        samples = [second.action_space.sample() for _ in range(8)]
        second.action_space.seed(0)
        assert samples == [second.action_space.sample() for _ in range(8)]
    assert checks == ["toy"]
