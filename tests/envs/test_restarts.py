"""Environments that raise, die, hang or give numbers that are none: named, restarted so often, and told of."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
import toy_envs

from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import EnvironmentFailedError, SeedSplit, SuiteVecEnv
from mirl.envs.seeds import another_seed, env_seeds

FRAGILE = "ToyFragile-v0"
GO_ON, SUCCEED, RAISE, DIE, HANG, NOT_A_NUMBER, GROW = 0, 1, 3, 4, 5, 6, 7


def fragile(n: int = 1, **kwargs: Any) -> SuiteConfig:
    tasks = tuple(TaskConfig(name=f"task{i}", env_id=FRAGILE, kwargs=kwargs) for i in range(n))
    return SuiteConfig(name="fragile", tasks=tasks)


@contextmanager
def started(*args: Any, **kwargs: Any) -> Iterator[SuiteVecEnv]:
    with closing(SuiteVecEnv(*args, **kwargs)) as env:
        env.reset()
        yield env


def counts(env: SuiteVecEnv, actions: Sequence[int]) -> list[int]:
    """What the slots observe after a step."""
    return [int(row[0]) for row in env.step(np.array(actions))[0]["observation"]]


@pytest.mark.parametrize(("workers", "action"), [(0, RAISE), (2, RAISE), (2, DIE), (2, HANG)])
def test_the_episode_of_an_environment_that_fails_is_cut_off_where_it_was(
    workers: int, action: int
) -> None:
    with started(fragile(), 4, workers=workers, max_restarts=1, timeout=2.0) as env:
        assert counts(env, [GO_ON] * 4) == [1, 1, 1, 1]
        with pytest.warns(
            RuntimeWarning, match=rf"task 'task0' \({FRAGILE}, .*restart 1 of 1"
        ) as told:
            obs, rewards, dones, infos = env.step(np.array([SUCCEED, GO_ON, GO_ON, action]))
        assert len(told) == 1
        assert (dones[3], rewards[3], obs["observation"][3, 0]) == (True, 0.0, 0.0)
        assert infos[3]["terminal_observation"]["observation"].tolist() == [1.0, 1.0]
        assert infos[3]["TimeLimit.truncated"] is True
        assert infos[3]["failed"] is True
        assert infos[3]["is_success"] is False
        assert (rewards[0], dones[1], infos[0]["is_success"]) == (1.0, False, True)
        assert "failed" not in infos[0]
        assert counts(env, [GO_ON] * 4) == [1, 3, 3 if action == RAISE else 1, 1]
        with pytest.raises(
            EnvironmentFailedError, match=rf"{FRAGILE}.* not restarted: 1 restarts are used up"
        ):
            env.step(np.array([GO_ON, GO_ON, GO_ON, action]))


def test_the_tasks_that_share_a_process_lose_their_episodes_with_it_and_the_others_nothing() -> (
    None
):
    """Tasks 0, 2 and 4 do; task 0 has answered when the process dies, so that its loss shows in the next timestep."""
    with started(fragile(5), 5, workers=2, max_restarts=1) as env:
        counts(env, [GO_ON] * 5)
        with pytest.warns(RuntimeWarning, match=r"'task2' .* a worker process died, exit code 7"):
            _, _, dones, infos = env.step(np.array([GO_ON, GO_ON, DIE, GO_ON, GO_ON]))
        assert dones.tolist() == [info.get("failed", False) for info in infos]
        assert dones.tolist() == [False, False, True, False, True]
        assert counts(env, [GO_ON] * 5) == [0, 3, 1, 3, 1]
        assert counts(env, [GO_ON] * 5) == [1, 4, 2, 4, 2]
        assert env.reset()["observation"].tolist() == [[0.0, 0.0]] * 5


@pytest.mark.parametrize("command", ["step", "reset"])
def test_a_process_that_was_killed_from_outside_is_started_again(command: str) -> None:
    before = set(multiprocessing.active_children())
    with started(fragile(), 4, workers=2, max_restarts=1) as env:
        counts(env, [GO_ON] * 4)
        process = min(
            set(multiprocessing.active_children()) - before, key=lambda each: each.pid or 0
        )
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.warns(RuntimeWarning, match="a worker process died, exit code -9"):
            seen = (
                counts(env, [GO_ON] * 4)
                if command == "step"
                else env.reset()["observation"][:, 0].tolist()
            )
        assert seen == ([0, 0, 2, 2] if command == "step" else [0] * 4)
        assert counts(env, [GO_ON] * 4) == ([1, 1, 3, 3] if command == "step" else [1] * 4)
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reset_that_raises_is_tried_with_other_seeds(workers: int) -> None:
    seeds = env_seeds(0, "train", 0, 6)
    odd = sum(seed % 2 for seed in seeds)
    assert odd
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with started(fragile(resets="raise"), 6, workers=workers, max_restarts=100) as env:
            assert counts(env, [GO_ON] * 6) == [1] * 6
    assert len(told) >= odd
    assert "ValueError: an odd seed" in str(told[0].message)


def test_what_dies_at_its_start_is_not_started_for_ever() -> None:
    message = r"exit code 7, at its start\. The script .*__main__"
    with (
        closing(SuiteVecEnv(fragile(resets="die"), 4, workers=2, max_restarts=5)) as env,
        pytest.raises(EnvironmentFailedError, match=message),
    ):
        env.reset()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_no_number_stops_or_is_cut_off_as_asked(workers: int) -> None:
    actions = np.array([GO_ON, NOT_A_NUMBER])
    message = r"environment 1\) gave an observation .* no finite number"
    with (
        started(fragile(), 2, workers=workers, max_restarts=1) as env,
        pytest.raises(EnvironmentFailedError, match=message),
    ):
        env.step(actions)
    with started(fragile(), 2, workers=workers, max_restarts=1, restart_non_finite=True) as env:
        with pytest.warns(RuntimeWarning, match="no finite number.*restart 1 of 1"):
            obs, _, dones, infos = env.step(actions)
        assert dones.tolist() == [False, True]
        assert infos[1]["terminal_observation"]["observation"].tolist() == [0.0, 0.0]
        assert np.isfinite(obs["observation"]).all()
        assert counts(env, [GO_ON] * 2) == [2, 1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_another_seed_is_of_the_same_split(split: SeedSplit) -> None:
    seeds = env_seeds(0, split, 0, 200)
    lowest, highest = {
        "train": (0, 2**30),
        "validation": (2**30, 3 * 2**29),
        "test": (3 * 2**29, 2**31),
    }[split]
    others = [another_seed(seed) for seed in seeds]
    assert all(lowest <= seed < highest for seed in others)
    assert not set(others) & set(seeds)


def test_no_seed_comes_back_after_a_failure() -> None:
    """Neither the one that raised nor, when the process is lost after that, the one that took its place."""
    suite = fragile()
    with started(suite, 2, workers=1, max_restarts=3) as env:
        seeds = [env.seed(0)[1]]
        env.reset()
        with pytest.warns(RuntimeWarning, match=rf"seed {seeds[0]}\)"):
            env.step(np.array([GO_ON, RAISE]))
        for _ in range(2):
            seeds.append(another_seed(int(seeds[-1] or 0)))
            with pytest.warns(RuntimeWarning, match=rf"seeds \d+, {seeds[-1]}\)"):
                env.step(np.array([GO_ON, DIE]))
    assert len(set(seeds)) == 3


def test_a_failure_that_is_raised_is_not_hidden_by_what_closing_raises() -> None:
    with (
        started(fragile(close="raise"), 2, workers=0) as env,
        pytest.raises(EnvironmentFailedError, match="a mistake of the toy"),
    ):
        env.step(np.array([GO_ON, RAISE]))


def test_an_environment_that_cannot_be_made_anew_is_tried_again() -> None:
    toy_envs.FragileEnv.failures_to_make = 0
    with started(fragile(), 1, workers=0, max_restarts=5) as env:
        toy_envs.FragileEnv.failures_to_make = 2
        with pytest.warns(RuntimeWarning, match="restart") as told:
            env.step(np.array([RAISE]))
        assert ["failed in make()" in str(each.message) for each in told] == [False, True, True]
        assert counts(env, [GO_ON]) == [1]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_the_end_that_is_asked_of_the_whole_group_is_the_owners_to_decide() -> None:
    before = set(multiprocessing.active_children())
    with started(fragile(), 4, workers=2) as env:
        for process in set(multiprocessing.active_children()) - before:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
        assert counts(env, [GO_ON] * 4) == [1] * 4
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_observation_of_another_shape_is_told_with_its_task_and_seed(workers: int) -> None:
    told = rf"task 'task0' \({FRAGILE}, seed \d+\) gave .*'observation': array\(\[1., 1., 1.\].* not in Dict"
    with (
        started(fragile(), 4, workers=workers) as env,
        pytest.raises(EnvironmentFailedError, match=told),
    ):
        env.step(np.array([GO_ON, GO_ON, GO_ON, GROW]))
