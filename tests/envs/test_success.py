"""Tests of the success rules."""

import numpy as np
import pytest
from suites import COUNTER, single_task

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import Success, TaskConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.pools.backend import NOT_REPORTED
from mirl.envs.success import is_success


def test_info_decides_success() -> None:
    """With success=info, the info of the last timestep decides."""
    env = SuiteVecEnv(single_task(COUNTER, success="info", kwargs={"report": True}), 3)
    env.reset()
    _, _, dones, infos = env.step(np.array([0, 1, 2]))
    assert dones.tolist() == [False, True, True]
    assert [info.get("is_success") for info in infos] == [None, True, False]
    env.close()


def test_missing_report_names_the_task() -> None:
    """An info without a success is an error that names the task."""
    env = SuiteVecEnv(single_task(COUNTER, success="info"), 1)
    env.reset()
    message = r"task 'toy' has success=info.*neither 'is_success' nor 'success'; use success=reward"
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


@pytest.mark.parametrize(
    ("rule", "last_reward", "last_report", "best_report", "expected"),
    [
        ("reward", 0.5, 0, 0, True),
        ("reward", 0.0, 1, 1, False),
        ("auto", 0.0, 1, 1, True),
        ("auto", 0.5, 0, 1, False),
        ("auto", 0.5, NOT_REPORTED, NOT_REPORTED, True),
        ("auto", 0.0, NOT_REPORTED, 1, False),
        ("info", 0.5, 0, 1, False),
        ("any_step", 0.0, 0, 1, True),
    ],
)
def test_rules(
    rule: Success, last_reward: float, last_report: int, best_report: int, expected: bool
) -> None:
    """Each rule reads the reward or the report that it names."""
    task = TaskConfig(name="toy", env_id=COUNTER, success=rule)
    assert is_success(task, last_reward, last_report, best_report) is expected
