"""The command compare.py, run as a process on an environment and a fusion of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_processes import environment, kill_after_first_record
from comparison_records import FakeEngine
from comparison_setup import TINY

from mirl import compare as compare_command
from mirl.agents.comparison import experiment

ROOT = Path(__file__).parents[1]
OWN = (ROOT / "tests", ROOT / "docs" / "extending" / "template")
"""Folders of the modules corridor_env and ownparts."""
WORDS = (*TINY, "fusion=concat,ownparts:BoundedFilm", "seeds=1", "jobs=1")
COMMAND = [sys.executable, str(ROOT / "compare.py")]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        env=environment(*OWN),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_killed_comparison_goes_on(tmp_path: Path) -> None:
    """The same command after a kill keeps the finished runs and trains the others."""
    records = "comparisons/corridor_env-ToyCorridor-v0/records/*.json"
    command = [*COMMAND, *WORDS]
    finished = kill_after_first_record(command, tmp_path, records, environment(*OWN))
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
