"""The process of a job waits for a run directory that another one still has."""

import os
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from mirl.agents.jobs import process
from mirl.agents.jobs.local import OWNER
from mirl.agents.jobs.process import STOP, job_process, wait_for_lock
from mirl.agents.runs.run_directory import LOCK


def test_log_holds_output_and_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"

    def work() -> None:
        with job_process(path, tmp_path / STOP) as log:
            log("logged")
            sys.stdout.write("printed\n")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    text = path.read_text()
    assert text.startswith("logged\nprinted\nTraceback")
    assert capsys.readouterr() == ("", "")


def test_job_waits_for_another(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / LOCK, thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    wait_for_lock(tmp_path, tmp_path / STOP)
    assert not lock.is_locked
    timer.join()


@pytest.mark.parametrize("by", ["file", "time"])
def test_waiting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """A job of this machine waits for a limited time, and any until it is stopped."""
    monkeypatch.setattr(process, "LOCK_SECONDS", 0)
    if by == "file":
        monkeypatch.delenv(OWNER, raising=False)
        (tmp_path / STOP).touch()
    else:
        monkeypatch.setenv(OWNER, str(os.getppid()))
    with FileLock(tmp_path / LOCK):
        wait_for_lock(tmp_path, tmp_path / STOP)
    wait_for_lock(tmp_path / "none", tmp_path / STOP)
