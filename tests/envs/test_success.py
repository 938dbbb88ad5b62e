"""Tests of the success rules."""

from contextlib import closing
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from hypothesis import given
from hypothesis import strategies as st
from suites import BACKENDS, COUNTER, EMPTY, FRAGILE, SOLUTION, single_task

from mirl.configs.errors import ConfigError
from mirl.configs.schema import BackendName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.pools.backend import NOT_REPORTED
from mirl.envs.success import is_success


def test_info_decides_success() -> None:
    """With success=info, the info of the last timestep decides."""
    env = SuiteVecEnv(single_task(COUNTER, success="info", kwargs={"report": True}), 3)
    env.reset()
    _, _, dones, infos = env.step(np.array([0, 1, 2]))
    assert dones.tolist() == [False, True, True]
    assert [info["is_success"] for info in infos[1:]] == [True, False]
    env.close()


def test_missing_report_names_the_task() -> None:
    """An info without a success is an error that names the task."""
    env = SuiteVecEnv(single_task(COUNTER, success="info"), 1)
    env.reset()
    message = (
        r"task 'toy' has success=info.*neither 'is_success' nor 'success'; use 'success=return>=X'"
    )
    with pytest.raises(ConfigError, match=message):
        env.step(np.array([1]))


@pytest.mark.parametrize(
    ("actions", "expected"),
    [((1, 0, 0), True), ((0, 0, 1), True), ((1, 2, 2), True), ((0, 0, 2), False)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_any_timestep_can_succeed(
    actions: tuple[int, int, int], expected: bool, workers: int
) -> None:
    """With success=any_step, one successful timestep suffices, within the same episode only."""
    env = SuiteVecEnv(single_task("ToyGlimpse-v0", success="any_step"), 2, workers=workers)
    env.reset()
    for _ in range(2):  # the second episode starts without the reports of the first
        for action in actions:
            infos = env.step(np.array([action, 0]))[3]
        assert [info["is_success"] for info in infos] == [expected, False]
        for action in (0, 0, 0):
            infos = env.step(np.array([action, 0]))[3]
        assert [info["is_success"] for info in infos] == [False, False]
    env.close()


def test_info_of_last_timestep_counts() -> None:
    """With success=info, a success before the last timestep does not count."""
    env = SuiteVecEnv(single_task("ToyGlimpse-v0", success="info"), 2)
    env.reset()
    for actions in ((1, 0), (0, 0), (0, 1)):
        infos = env.step(np.array(actions))[3]
    assert [info["is_success"] for info in infos] == [False, True]
    env.close()


def test_no_report_at_any_timestep() -> None:
    """With success=any_step, an episode without any report is an error that names the task."""
    env = SuiteVecEnv(single_task("ToyGlimpse-v0", success="any_step"), 1)
    env.reset()
    env.step(np.array([2]))
    env.step(np.array([2]))
    message = (
        r"task 'toy' has success=any_step, but every info of ToyGlimpse-v0 has "
        r"neither 'is_success' nor 'success'"
    )
    with pytest.raises(ConfigError, match=message):
        env.step(np.array([2]))


RULES = ("auto", "reward", "info", "any_step", "return>=0.75")
REPORTS = (NOT_REPORTED, 0, 1)


def expected_success(
    rule: str, reward: float, last: int, best: int, minigrid: bool
) -> bool | str | None:
    """Return the success of an episode with one reward as a table says it, or "error"."""
    by_report = {NOT_REPORTED: None, 0: False, 1: True}
    required = {NOT_REPORTED: "error", 0: False, 1: True}
    unreported = reward > 0 if minigrid else None
    table = {
        "auto": unreported if last == NOT_REPORTED else by_report[last],
        "reward": reward > 0,
        "info": required[last],
        "any_step": required[best],
        "return>=0.75": reward >= 0.75,
    }
    return table[rule]


@pytest.mark.parametrize("rule", RULES)
def test_rules_decide_as_documented(rule: str) -> None:
    """Each rule reads the reward, the return or the report that it names, and nothing else."""
    task = TaskConfig(name="toy", env_id=COUNTER, success=rule)
    for reward, last, best, minigrid in product(
        (-1.0, 0.0, 0.5, 1.0), REPORTS, REPORTS, (False, True)
    ):
        if best < last:
            continue  # the best report is at least the last
        expected = expected_success(rule, reward, last, best, minigrid)
        options: dict[str, Any] = {"has_minigrid_reward": minigrid}
        if expected == "error":
            with pytest.raises(ConfigError, match="task 'toy' has success="):
                is_success(task, reward, reward, last, best, **options)
        else:
            assert is_success(task, reward, reward, last, best, **options) is expected


FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(FINITE, FINITE)
def test_return_rule_compares_the_return(bound: float, episode_return: float) -> None:
    """Except within the rounding of float32, success is whether the return reaches the bound."""
    reaches, exceeds = (
        TaskConfig(name="toy", env_id=COUNTER, success=f"return{sign}{bound!r}")
        for sign in (">=", ">")
    )
    arguments = (-1.0, episode_return, 0, 0)
    if abs(episode_return - bound) > 2e-6 * max(1.0, abs(bound)):
        expected = episode_return > bound
        assert is_success(reaches, *arguments) is expected
        assert is_success(exceeds, *arguments) is expected
    assert is_success(reaches, 0.0, bound, 0, 0) is True
    assert is_success(exceeds, 0.0, bound, 0, 0) is False


@given(st.lists(st.sampled_from([0.1, 0.7, -0.3, 1.0, -1.0]), min_size=1, max_size=60))
def test_rounded_rewards_reach_their_sum(rewards: list[float]) -> None:
    """A bound that is the exact return is reached, not exceeded, although rewards are rounded."""
    bound = round(sum(round(10 * reward) for reward in rewards) / 10, 1)
    total = float(np.sum(np.array(rewards, np.float32), dtype=np.float64))
    for sign, expected in ((">=", True), (">", False)):
        task = TaskConfig(name="toy", env_id=COUNTER, success=f"return{sign}{bound}")
        assert is_success(task, rewards[-1], total, 0, 0) is expected


class ReportingEnv(toy_envs.CounterEnv):
    """Environment that pays 1 at the end and reports success always, at the end or never.

    ``last`` reports in the last info, ``every`` in all infos, ``solved`` only where it is True.
    """

    def __init__(self, reports: str) -> None:
        super().__init__()
        self.reports = reports

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        solved = bool(action == 1)
        is_reported = {
            "last": terminated or truncated,
            "every": True,
            "solved": solved,
            "none": False,
        }
        info = {"is_success": solved} if is_reported[self.reports] else {}
        return observation, reward, terminated, truncated, info


if "ToyReporting-v0" not in gym.registry:
    gym.register("ToyReporting-v0", entry_point=ReportingEnv)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("reports", "rule", "expected"),
    [
        ("last", "auto", [True, False]),
        ("every", "auto", [True, False]),
        ("none", "auto", [None, None]),
        # a report of success alone says nothing about the other episodes
        ("solved", "auto", [True, None]),
        ("none", "reward", [True, False]),
        ("none", "return>=1", [True, False]),
        ("none", "return>=-0.5", [True, True]),
        ("none", "return>0", [True, False]),
        ("last", "return>1", [False, False]),
        ("every", "any_step", [True, False]),
    ],
)
def test_infos_hold_known_success_only(
    reports: str, rule: str, expected: list[bool | None], workers: int
) -> None:
    """The info of an ended episode has ``is_success`` exactly if it is known."""
    suite = single_task("ToyReporting-v0", kwargs={"reports": reports}, success=rule)
    with closing(SuiteVecEnv(suite, 2, workers=workers)) as env:
        env.reset()
        infos = env.step(np.array([1, 2]))[3]
    assert [info.get("is_success") for info in infos] == expected
    for info, success in zip(infos, expected, strict=True):
        assert ("is_success" in info) == (success is not None)
        assert info["episode"]["l"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_minigrid_keeps_its_reward_rule(backend: BackendName) -> None:
    """Ids of MiniGrid and BabyAI succeed with a positive last reward, on both backends."""
    with closing(SuiteVecEnv(single_task(EMPTY), 1, backend=backend)) as env:
        env.reset()
        for action in SOLUTION:
            infos = env.step(np.array([action]))[3]
        assert infos[0]["is_success"] is True
        for _ in range(100):
            infos = env.step(np.array([0]))[3]
        assert infos[0]["is_success"] is False


def test_copied_minigrid_class_is_unknown() -> None:
    """A class that derives from MiniGrid's may pay otherwise, so its success is unknown."""
    from minigrid.envs import EmptyEnv

    class OwnEmptyEnv(EmptyEnv):
        """An environment of our own."""

    gym.register("MiniGrid-ToyOwnEmpty-v0", entry_point=OwnEmptyEnv, kwargs={"size": 5})
    try:
        suite = single_task("MiniGrid-ToyOwnEmpty-v0")
        with closing(SuiteVecEnv(suite, 1, workers=0)) as env:
            env.reset()
            for action in SOLUTION:
                _, rewards, _, infos = env.step(np.array([action]))
    finally:
        del gym.registry["MiniGrid-ToyOwnEmpty-v0"]
    assert rewards[0] > 0
    assert "is_success" not in infos[0]


@pytest.mark.parametrize(
    ("wrapper", "is_known"),
    [
        ("minigrid.wrappers:FullyObsWrapper", True),
        ({"wrapper": "gymnasium.wrappers:TimeLimit", "kwargs": {"max_episode_steps": 9}}, True),
        # it adds a bonus to the reward of every timestep, so a failure may end with one
        ("minigrid.wrappers:PositionBonus", False),
    ],
)
def test_wrapper_may_change_the_reward(wrapper: Any, is_known: bool) -> None:
    """MiniGrid's reward rule holds under wrappers that leave the reward as it is."""
    with closing(SuiteVecEnv(single_task(EMPTY, wrappers=[wrapper]), 1, workers=0)) as env:
        env.reset()
        for action in SOLUTION:
            infos = env.step(np.array([action]))[3]
    assert ("is_success" in infos[0]) == is_known


@pytest.mark.parametrize(("rule", "expected"), [("auto", None), ("return>=-1", False)])
def test_failed_environment_never_succeeds(rule: str, expected: bool | None) -> None:
    """An episode whose environment fails is a failure, or unknown if its task reports nothing."""
    suite = single_task(FRAGILE, success=rule)
    with closing(SuiteVecEnv(suite, 1, workers=0, max_restarts=1)) as env:
        env.reset()
        with pytest.warns(RuntimeWarning, match="is restarted"):
            infos = env.step(np.array([3]))[3]
    assert infos[0]["failed"] is True
    assert infos[0].get("is_success") is expected


def test_failure_of_reporting_task_counts() -> None:
    """Once a task has reported, an episode whose environment fails counts as no success."""
    suite = single_task(COUNTER, kwargs={"report": True})
    with closing(SuiteVecEnv(suite, 1, workers=0, max_restarts=1)) as env:
        env.reset()
        assert env.step(np.array([1]))[3][0]["is_success"] is True
        with pytest.warns(RuntimeWarning, match="is restarted"):
            infos = env.step(np.array([3]))[3]
    assert infos[0]["is_success"] is False


def test_mixed_suite_keeps_tasks_apart() -> None:
    """In one suite, some tasks can report success and others not."""
    tasks = (
        TaskConfig(name="grid", env_id="ToyReporting-v0", kwargs={"reports": "last"}),
        TaskConfig(name="own", env_id="ToyReporting-v0", kwargs={"reports": "none"}),
    )
    with closing(SuiteVecEnv(SuiteConfig(name="mixed", tasks=tasks), 4, workers=0)) as env:
        env.reset()
        infos = env.step(np.array([1, 2, 1, 2]))[3]
    assert [info.get("is_success") for info in infos] == [True, False, None, None]
