"""The command compare.py, run as a process on an environment and a fusion of one's own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comparison_records import FakeEngine
from comparison_setup import TINY

from mirl import compare as compare_command
from mirl.agents.comparison import experiment

ROOT = Path(__file__).parents[1]
OWN = (ROOT / "tests", ROOT / "docs" / "extending" / "template")
"""Folders of the modules corridor_env and ownparts."""
WORDS = (*TINY, "fusion=concat,ownparts:BoundedFilm", "seeds=1", "jobs=1")
COMMAND = [sys.executable, str(ROOT / "compare.py")]


def environment() -> dict[str, str]:
    """Return the variables of a process that finds the user's modules."""
    path = [os.environ.get("PYTHONPATH", ""), *map(str, OWN)]
    changes = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "COLUMNS": "200"}
    return {**os.environ, **changes, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def kill_after_first_record(folder: Path) -> list[Path]:
    """Start the command, kill it and its processes when a run is finished; return the records."""
    process = subprocess.Popen(
        [*COMMAND, *WORDS], cwd=folder, env=environment(), start_new_session=True
    )
    records = folder / "comparisons" / "corridor_env-ToyCorridor-v0" / "records"
    try:
        deadline = time.monotonic() + 200
        while not list(records.glob("*.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline, "no run was finished"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return list(records.glob("*.json"))


def test_killed_comparison_goes_on(tmp_path: Path) -> None:
    """The same command after a kill keeps the finished runs and trains the others."""
    finished = kill_after_first_record(tmp_path)
    assert len(finished) == 1
    times = [path.stat().st_mtime_ns for path in finished]
    done = run(tmp_path, *WORDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 2 runs are finished already." in done.stdout
    assert [path.stat().st_mtime_ns for path in finished] == times
    folder = finished[0].parents[1]
    report = json.loads((folder / "results.json").read_text())
    assert report["command"].startswith("compare.py task=corridor_env:ToyCorridor-v0")
    assert [row["setting"] for row in report["results"]] == ["concat", "ownparts-BoundedFilm"]
    assert {row["seeds"] for row in report["results"]} == {1}
    assert "ownparts-BoundedFilm − concat" in done.stdout
    assert (folder / "curves.pdf").stat().st_size > 0


def test_mistake_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "fusion=concat,flim")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: setting 'flim': unknown fusion 'flim'")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_failed_run_has_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails does not stop the others, and is reported in one line at the end."""
    name = "film-corridor_env-ToyCorridor-v0-seed0"
    engine = FakeEngine(tmp_path, failing=(name,))
    monkeypatch.setattr(experiment, "build_engine", lambda *_: engine)
    words = [*TINY, "fusion=concat,film", "seeds=1", f"out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    with pytest.raises(SystemExit) as caught:
        compare_command.main()
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    message = "error: runs failed; the same command tries them again\n"
    assert err == f"{message}{name}: the simulator broke\n"
    assert "concat" in out
