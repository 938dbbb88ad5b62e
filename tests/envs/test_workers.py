"""A few processes step all tasks of a suite: every answer goes where it belongs, and a death is told of whom it met."""

import multiprocessing
import os
import signal
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)

from mirl.configs.schema import SamplingName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import EnvironmentFailedError, SuiteVecEnv
from mirl.envs.pools.workers import WorkerBackend, Workers

COUNTER = "ToyCounter-v0"
GO_ON, KILL = 0, 4
GRIDS = SuiteConfig(
    name="grids",
    tasks=tuple(
        TaskConfig(name=env_id, env_id=env_id)
        for env_id in (
            "MiniGrid-GoToDoor-5x5-v0",
            "MiniGrid-Empty-Random-5x5-v0",
            "BabyAI-GoToLocalS5N2-v0",
            "MiniGrid-DoorKey-5x5-v0",
            "BabyAI-GoToObj-v0",
        )
    ),
)


def counters(n: int) -> SuiteConfig:
    return SuiteConfig(
        name="counters", tasks=tuple(TaskConfig(name=f"task{i}", env_id=COUNTER) for i in range(n))
    )


def same(first: Any, second: Any) -> bool:
    """Equality of nested dicts and lists with arrays in them."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            same(a, b) for a, b in zip(first, second, strict=True)
        )
    return np.array_equal(first, second)


def without_time(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The infos, but for how long an episode took."""
    return [
        {**info, "episode": {key: value for key, value in info["episode"].items() if key != "t"}}
        if info
        else {}
        for info in infos
    ]


@pytest.mark.parametrize(
    ("workers", "n_envs", "expected"), [(2, 5, 2), (2, 13, 2), (3, 20, 3), (1, 10, 1)]
)
def test_five_tasks_share_the_processes_and_closing_leaves_none(
    workers: int, n_envs: int, expected: int
) -> None:
    before = set(multiprocessing.active_children())
    with closing(SuiteVecEnv(counters(5), n_envs, workers=workers)) as env:
        assert env.reset()["task"].tolist() == env.task_index.tolist()
        env.step(np.full(n_envs, GO_ON))
        assert len(set(multiprocessing.active_children()) - before) == expected
    assert set(multiprocessing.active_children()) == before


def test_workers_are_taken_equally_often() -> None:
    workers = Workers(3)
    taken = [worker for n in (2, 1, 2, 3, 1) for worker in workers.take(n)]
    assert len(set(taken)) == 3
    assert [taken.count(worker) for worker in dict.fromkeys(taken)] == [3, 3, 3]


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
@pytest.mark.parametrize("n_envs", [5, 13])
def test_answers_reach_their_own_slots_whoever_steps_them(
    sampling: SamplingName, n_envs: int
) -> None:
    plain, spread = (
        SuiteVecEnv(GRIDS, n_envs, backend="gymnasium", workers=workers, seed=3, sampling=sampling)
        for workers in (0, 2)
    )
    rng, ended = np.random.default_rng(0), 0
    with closing(plain), closing(spread):
        assert same(plain.reset(), spread.reset())
        for step in range(60):
            actions = rng.integers(7, size=n_envs)
            if step % 20 == 7:  # a reset drops the answers of a step under way
                for env in (plain, spread):
                    env.step_async(actions)
                assert same(plain.reset(), spread.reset())
            first, second = plain.step(actions), spread.step(actions)
            assert same(first[:3], second[:3])
            assert same(without_time(first[3]), without_time(second[3]))
            ended += int(first[2].sum())
    assert ended > 3


@pytest.mark.parametrize("task", range(5))
def test_of_tasks_that_share_a_worker_a_death_names_the_one_that_caused_it(task: int) -> None:
    before = set(multiprocessing.active_children())
    env = SuiteVecEnv(counters(5), 5, workers=2)
    env.reset()
    actions = np.full(5, GO_ON)
    actions[task] = KILL
    with pytest.raises(
        EnvironmentFailedError,
        match=rf"task 'task{task}' \({COUNTER}, seed .*\): a worker process died, .* 7",
    ):
        env.step(actions)
    assert set(multiprocessing.active_children()) == before, "nothing is left to wait for"
    env.close()


def test_a_worker_that_is_gone_before_the_next_task_is_sent_is_told_of_the_task_that_killed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = SuiteVecEnv(counters(3), 3, workers=1)
    env.reset()
    [process] = set(multiprocessing.active_children())
    send = WorkerBackend.send

    def slow(pool: WorkerBackend, slots: Any, actions: Any) -> None:
        send(pool, slots, actions)
        if KILL in actions:
            process.join()

    monkeypatch.setattr(WorkerBackend, "send", slow)
    with pytest.raises(
        EnvironmentFailedError, match=r"task 'task1' .*: a worker process died, exit code 7"
    ):
        env.step(np.array([GO_ON, KILL, GO_ON]))


@pytest.mark.parametrize("command", ["step", "reset"])
def test_a_worker_that_was_killed_from_outside_is_an_error_and_no_hang(command: str) -> None:
    before = set(multiprocessing.active_children())
    env = SuiteVecEnv(counters(5), 5, workers=2)
    env.reset()
    process = min(set(multiprocessing.active_children()) - before, key=lambda each: each.pid or 0)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(
        EnvironmentFailedError, match=r"task 'task[01]' .*: a worker process died, exit code -9"
    ):
        env.step(np.full(5, GO_ON)) if command == "step" else env.reset()
    assert set(multiprocessing.active_children()) == before
