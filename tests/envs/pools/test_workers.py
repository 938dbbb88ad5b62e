"""Tests of the worker processes that the tasks of a suite share."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import text_envs  # noqa: F401  (registers its ids)
import toy_envs
from suites import COUNTER, counters, single_task

from mirl.configs import imports
from mirl.configs.schema import SamplingName
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import EnvironmentFailedError, SuiteVecEnv
from mirl.envs.pools.workers import WorkerBackend, Workers, available_cpus
from mirl.envs.texts import codec

GO_ON = 0
KILL = 4
FIVE_GRIDS = SuiteConfig(
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


def all_equal(first: Any, second: Any) -> bool:
    """Return True if nested dicts and lists with arrays are equal."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return False
        return all(all_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return False
        return all(all_equal(a, b) for a, b in zip(first, second, strict=True))
    return np.array_equal(first, second)


def without_time(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the infos without the seconds since the start."""
    stripped = []
    for info in infos:
        copy = dict(info)
        if info:
            copy["episode"] = {"r": info["episode"]["r"], "l": info["episode"]["l"]}
        stripped.append(copy)
    return stripped


@pytest.mark.parametrize(
    ("workers", "n_envs", "expected"), [(2, 5, 2), (2, 13, 2), (3, 20, 3), (1, 10, 1)]
)
def test_tasks_share_the_processes(workers: int, n_envs: int, expected: int) -> None:
    """Five tasks share the processes, and closing leaves none."""
    before = set(multiprocessing.active_children())
    with closing(SuiteVecEnv(counters(5), n_envs, workers=workers)) as env:
        assert env.reset()["task"].tolist() == env.task_index.tolist()
        env.step(np.full(n_envs, GO_ON))
        assert len(set(multiprocessing.active_children()) - before) == expected
    assert set(multiprocessing.active_children()) == before


def test_workers_are_assigned_equally_often() -> None:
    workers = Workers(3)
    assigned = [worker for n in (2, 1, 2, 3, 1) for worker in workers.assign(n)]
    assert len(set(assigned)) == 3
    assert [assigned.count(worker) for worker in dict.fromkeys(assigned)] == [3, 3, 3]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_workers_do_not_change_trajectories(workers: int) -> None:
    """The trajectory does not depend on the number of workers."""
    suite = single_task("MiniGrid-DoorKey-5x5-v0")
    plain = SuiteVecEnv(suite, 5, backend="gymnasium", workers=0, seed=2)
    spread = SuiteVecEnv(suite, 5, backend="gymnasium", workers=workers, seed=2)
    np.testing.assert_array_equal(plain.reset()["image"], spread.reset()["image"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(7, size=5)
        expected = plain.step(actions)[0]["image"]
        np.testing.assert_array_equal(expected, spread.step(actions)[0]["image"])
    plain.close()
    spread.close()


@pytest.mark.parametrize("sampling", ["fixed", "uniform"])
@pytest.mark.parametrize("n_envs", [5, 13])
def test_replies_reach_their_environments(sampling: SamplingName, n_envs: int) -> None:
    """Everything is the same with shared workers, also after a reset during a step."""
    plain, spread = (
        SuiteVecEnv(
            FIVE_GRIDS, n_envs, backend="gymnasium", workers=workers, seed=3, sampling=sampling
        )
        for workers in (0, 2)
    )
    rng = np.random.default_rng(0)
    n_ended = 0
    with closing(plain), closing(spread):
        assert all_equal(plain.reset(), spread.reset())
        for t in range(60):
            actions = rng.integers(7, size=n_envs)
            if t % 20 == 7:  # a reset drops the replies of a running step
                for env in (plain, spread):
                    env.step_async(actions)
                assert all_equal(plain.reset(), spread.reset())
            first = plain.step(actions)
            second = spread.step(actions)
            assert all_equal(first[:3], second[:3])
            assert all_equal(without_time(first[3]), without_time(second[3]))
            n_ended += int(first[2].sum())
    assert n_ended > 3


def test_workers_know_late_registrations() -> None:
    """An id that only the owner has registered reaches the workers."""
    gym.register("ToyLate-v0", entry_point=toy_envs.CounterEnv, kwargs={"size": 3})
    env = SuiteVecEnv(single_task("ToyLate-v0"), 2, workers=1)
    assert env.reset()["observation"].shape == (2, 3)
    env.close()
    del gym.registry["ToyLate-v0"]


def test_text_warnings_reach_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two words in one bucket are one warning, however many workers meet them."""
    monkeypatch.setattr(codec, "_shown", {})
    task = TaskConfig(name="says", env_id="TextSays-v0", kwargs={"texts": ("iron", "cow")})
    suite = SuiteConfig(name="says", tasks=(task,), vocabulary=(), text_length=8)
    env = SuiteVecEnv(suite, 8, workers=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(20):
            env.reset()
    [warning] = caught
    assert "'cow' and 'iron' share one token id" in str(warning.message)
    env.close()
    drawn = suite.model_copy(update={"vocabulary": None})
    env = SuiteVecEnv(drawn, 8, workers=2)
    assert env.suite.vocabulary == ("cow", "iron")
    for _ in range(20):
        env.reset()  # a warning would be an error
    env.close()


@pytest.mark.parametrize("task", range(5))
def test_death_names_its_task(task: int) -> None:
    """Of the tasks that share a worker, the error names the one that killed it."""
    before = set(multiprocessing.active_children())
    env = SuiteVecEnv(counters(5), 5, workers=2)
    env.reset()
    actions = np.full(5, GO_ON)
    actions[task] = KILL
    message = rf"task 'task{task}' \({COUNTER}, seed .*\): a worker process died, .* 7"
    with pytest.raises(EnvironmentFailedError, match=message):
        env.step(actions)
    assert set(multiprocessing.active_children()) == before, "no process is left"
    env.close()


def test_early_death_names_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies before the next command is reported for the task that killed it."""
    env = SuiteVecEnv(counters(3), 3, workers=1)
    env.reset()
    [process] = set(multiprocessing.active_children())
    send = WorkerBackend.send

    def send_and_wait(backend: WorkerBackend, env_indices: Any, actions: Any) -> None:
        send(backend, env_indices, actions)
        if KILL in actions:
            process.join()

    monkeypatch.setattr(WorkerBackend, "send", send_and_wait)
    message = r"task 'task1' .*: a worker process died, exit code 7"
    with pytest.raises(EnvironmentFailedError, match=message):
        env.step(np.array([GO_ON, KILL, GO_ON]))


OWN_MODULE = """
import sys
import gymnasium as gym
import numpy as np

class Own(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.float32(["own_extra" in sys.modules]), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, True, False, {}

class Invert(gym.ObservationWrapper):
    def observation(self, observation):
        return 1 - observation

gym.register("Own-v0", entry_point=Own)
"""


def test_workers_import_what_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the modules of ids, of wrappers and of import=."""
    monkeypatch.setattr(imports, "_allowed", set())
    monkeypatch.setattr(imports, "_imported", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_module.py").write_text(OWN_MODULE)
    (tmp_path / "own_wraps.py").write_text("from own_module import Invert")
    (tmp_path / "own_extra.py").write_text("")
    imports.import_modules(["own_extra"])
    imports.allow_imports("own_module", "own_wraps")
    suite = single_task("own_module:Own-v0", wrappers=("own_wraps:Invert", "own_wraps:Invert"))
    with closing(SuiteVecEnv(suite, 4, workers=2)) as env:
        np.testing.assert_array_equal(env.reset()["observation"], np.ones((4, 1)))
    for name in ("own_module", "own_wraps", "own_extra"):
        del sys.modules[name]
    gym.registry.pop("Own-v0")


SCRIPT = """
import numpy as np
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv

if __name__ == "__main__":
    task = TaskConfig(name="empty", env_id="MiniGrid-Empty-5x5-v0")
    suite = SuiteConfig(name="suite", tasks=(task,))
    env = SuiteVecEnv(suite, 2, backend="gymnasium", workers=1)
    env.reset()
    env.step(np.zeros(2, np.int64))
    env.close()
    print("stepped")
"""
SHADOWING = ("gymnasium", "minigrid", "numpy", "selectors", "socket", "struct", "tempfile")
"""Modules that the processes import, from the standard library and from others."""


def test_workers_ignore_the_current_folder(tmp_path: Path) -> None:
    """Modules of the working folder do not take the place of those that a worker imports."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in SHADOWING:
        text = f"open({str(tmp_path / 'marker')!r}, 'w').close()"
        (folder / f"{name}.py").write_text(text)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    # without empty entries, which stand for the current folder
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "stepped\n"), done.stderr
    assert not (tmp_path / "marker").exists()


def test_comparison_shares_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of comparisons sets this variable in the processes of its runs."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert available_cpus() == 1
