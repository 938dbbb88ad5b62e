"""Tests of worker processes that die, hang, are killed, or lose their owner."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from suites import COUNTER, EMPTY, FRAGILE, counters, fragile, single_task

from mirl.envs import EnvironmentFailedError, SuiteVecEnv
from mirl.envs.pools import worker_process
from mirl.envs.seeds import replacement_seed

GO_ON, SUCCEED, RAISE, DIE, HANG = 0, 1, 3, 4, 5


@contextmanager
def started(*args: Any, **kwargs: Any) -> Iterator[SuiteVecEnv]:
    """Yield a ``SuiteVecEnv`` that has been reset."""
    with closing(SuiteVecEnv(*args, **kwargs)) as env:
        env.reset()
        yield env


def counts_after(env: SuiteVecEnv, actions: Sequence[int]) -> list[int]:
    """Return the counts that the environments observe after a step."""
    return [int(row[0]) for row in env.step(np.array(actions))[0]["observation"]]


def first_process(before: set[BaseProcess]) -> BaseProcess:
    """Return the process with the lowest id that was not there before."""
    processes = set(multiprocessing.active_children()) - before
    return min(processes, key=lambda process: process.pid or 0)


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize(("workers", "action"), [(0, RAISE), (2, RAISE), (2, DIE), (2, HANG)])
def test_failed_episode_is_truncated(workers: int, action: int) -> None:
    """The episode of a failed environment ends at its last observation, without a reward."""
    # a busy machine may take seconds to answer
    with started(fragile(), 4, workers=workers, max_restarts=1, timeout=5.0) as env:
        assert counts_after(env, [GO_ON] * 4) == [1, 1, 1, 1]
        message = rf"task 'task0' \({FRAGILE}, .*restart 1 of 1"
        with pytest.warns(RuntimeWarning, match=message) as warned:
            obs, rewards, dones, infos = env.step(np.array([SUCCEED, GO_ON, GO_ON, action]))
        assert len(warned) == 1
        assert (dones[3], rewards[3], obs["observation"][3, 0]) == (True, 0.0, 0.0)
        assert infos[3]["terminal_observation"]["observation"].tolist() == [1.0, 1.0]
        assert infos[3]["TimeLimit.truncated"] is True
        assert infos[3]["failed"] is True
        assert infos[3]["is_success"] is False
        assert (rewards[0], dones[1], infos[0]["is_success"]) == (1.0, False, True)
        assert "failed" not in infos[0]
        assert counts_after(env, [GO_ON] * 4) == [1, 3, 3 if action == RAISE else 1, 1]
        message = rf"{FRAGILE}.* not restarted, because all 1 restarts are used up"
        with pytest.raises(EnvironmentFailedError, match=message):
            env.step(np.array([GO_ON, GO_ON, GO_ON, action]))


def test_tasks_share_a_lost_process() -> None:
    """The tasks that share a process lose their episodes with it, the others lose nothing.

    Tasks 0, 2 and 4 share the process. Task 0 has replied before it dies, so its loss shows in
    the next timestep.
    """
    with started(fragile(5), 5, workers=2, max_restarts=1) as env:
        counts_after(env, [GO_ON] * 5)
        with pytest.warns(RuntimeWarning, match=r"'task2' .* a worker process died, exit code 7"):
            _, _, dones, infos = env.step(np.array([GO_ON, GO_ON, DIE, GO_ON, GO_ON]))
        assert dones.tolist() == [info.get("failed", False) for info in infos]
        assert dones.tolist() == [False, False, True, False, True]
        assert counts_after(env, [GO_ON] * 5) == [0, 3, 1, 3, 1]
        assert counts_after(env, [GO_ON] * 5) == [1, 4, 2, 4, 2]
        assert env.reset()["observation"].tolist() == [[0.0, 0.0]] * 5


@pytest.mark.parametrize("command", ["step", "reset"])
def test_killed_process_is_restarted(command: str) -> None:
    """A process that was killed from outside is restarted, and its episodes are lost."""
    before = set(multiprocessing.active_children())
    with started(fragile(), 4, workers=2, max_restarts=1) as env:
        counts_after(env, [GO_ON] * 4)
        kill(first_process(before))
        with pytest.warns(RuntimeWarning, match="a worker process died, exit code -9"):
            obs = env.reset() if command == "reset" else env.step(np.zeros(4, int))[0]
        # A step continues the episodes of the other process, a reset starts all anew.
        expected = [0] * 4 if command == "reset" else [0, 0, 2, 2]
        assert obs["observation"][:, 0].tolist() == expected
        assert counts_after(env, [GO_ON] * 4) == [count + 1 for count in expected]
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("command", ["step", "reset"])
def test_killed_process_is_an_error(command: str) -> None:
    """Without restarts, a process that was killed from outside is an error."""
    before = set(multiprocessing.active_children())
    env = SuiteVecEnv(counters(5), 5, workers=2)
    env.reset()
    kill(first_process(before))
    message = r"task 'task[01]' .*: a worker process died, exit code -9"
    with pytest.raises(EnvironmentFailedError, match=message):
        env.step(np.full(5, GO_ON)) if command == "step" else env.reset()
    assert set(multiprocessing.active_children()) == before


def test_dead_process_does_not_hang() -> None:
    """A process that dies is an error at once that names the task and the seeds."""
    env = SuiteVecEnv(single_task(COUNTER), 4, workers=2)
    env.reset()
    start = time.perf_counter()
    message = rf"task 'toy' \({COUNTER}, one of the seeds .*\): a worker process died, exit code 7"
    with pytest.raises(EnvironmentFailedError, match=message):
        env.step(np.array([0, 0, 0, 4]))
    assert time.perf_counter() - start < 30
    env.close()


def test_death_at_start_is_an_error() -> None:
    """A process that dies before its first reply is not restarted."""
    message = r"exit code 7, at its start\. The script .*__main__"
    with (
        closing(SuiteVecEnv(fragile(resets="die"), 4, workers=2, max_restarts=5)) as env,
        pytest.raises(EnvironmentFailedError, match=message),
    ):
        env.reset()


def test_no_seed_is_used_twice() -> None:
    """Neither a seed that failed nor its replacement in a process that was lost is used again."""
    with started(fragile(), 2, workers=1, max_restarts=3) as env:
        seeds = [env.seed(0)[1]]
        env.reset()
        with pytest.warns(RuntimeWarning, match=rf"seed {seeds[0]}\)"):
            env.step(np.array([GO_ON, RAISE]))
        for _ in range(2):
            seeds.append(replacement_seed(int(seeds[-1] or 0)))
            with pytest.warns(RuntimeWarning, match=rf"seeds \d+, {seeds[-1]}\)"):
                env.step(np.array([GO_ON, DIE]))
    assert len(set(seeds)) == 3


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_workers_ignore_termination_signals() -> None:
    """A signal to the whole process group does not end the workers; their owner decides."""
    before = set(multiprocessing.active_children())
    with started(fragile(), 4, workers=2) as env:
        for process in set(multiprocessing.active_children()) - before:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
        assert counts_after(env, [GO_ON] * 4) == [1] * 4
    assert set(multiprocessing.active_children()) == before


def test_closing_leaves_no_process() -> None:
    before = set(multiprocessing.active_children())
    env = SuiteVecEnv(single_task(COUNTER), 4, workers=2)
    env.reset()
    assert len(set(multiprocessing.active_children()) - before) == 2
    env.close()
    assert set(multiprocessing.active_children()) == before


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize(("length", "method"), [(10, "forkserver"), (110, "spawn")])
def test_long_temporary_folder_has_no_server(
    monkeypatch: pytest.MonkeyPatch, length: int, method: str
) -> None:
    """A fork server listens at a path below the temporary folder, which may be too long for it."""
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * length)
    assert worker_process._context().get_start_method() == method


def test_workers_end_with_a_killed_owner(tmp_path: Path) -> None:
    """No worker process outlives an owner that was killed."""
    script = tmp_path / "owner.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from mirl.configs.tasks import SuiteConfig, TaskConfig\n"
        "from mirl.envs import SuiteVecEnv\n"
        "if __name__ == '__main__':\n"
        f"    task = TaskConfig(name='toy', env_id='{EMPTY}')\n"
        "    suite = SuiteConfig(name='suite', tasks=(task,))\n"
        "    env = SuiteVecEnv(suite, 2, backend='gymnasium', workers=2)\n"
        "    env.reset()\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    workers = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(workers) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(pid) for pid in workers)
