"""Grids of runs, on an environment of one's own."""

import json
import shutil
from pathlib import Path

import pytest
from sweep_setup import InProcessEngine, sweep

from mirl.agents.runs.atomic_files import write_json
from mirl.agents.sweeps import grid
from mirl.agents.sweeps.grid import GridJob, Record, run_grid, train_and_record
from mirl.agents.sweeps.plan import RECORDS
from mirl.configs.errors import RunError


def record_of(job: GridJob, folder: Path) -> bool:
    """Write a record in place of training; the run of seed 1 fails."""
    settings = dict(job.settings)
    if settings["seed"] == "1":
        raise RunError("the simulator broke")
    (folder.parent / "runs" / job.name).mkdir(parents=True, exist_ok=True)
    record: Record = {
        "settings": settings,
        "run_dir": "runs",
        "words": list(job.words),
        "timesteps": 128,
        "seconds": 1.0,
        "success": 0.5,
        "episode_return": -2.0,
        "tasks": [],
    }
    write_json(job.record_path(folder), record)
    return True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a sweep whose runs are in ``runs`` beside it."""
    monkeypatch.setattr(grid, "train_and_record", record_of)
    return tmp_path / "out"


def test_finished_runs_are_kept(folder: Path) -> None:
    """The same command tries the failed run again, and one whose directory was deleted."""
    config = sweep(folder, "seed=0,1,2", f"runs_dir={folder.parent / 'runs'}")
    lines: list[str] = []
    result = run_grid(config, lines.append, InProcessEngine())
    [failed] = result.failures
    assert (list(result.failures.values()), result.missing) == (["the simulator broke"], 1)
    assert lines == [
        "[1/3] seed=0: success 50.0%, return -2.000",
        "[2/3] seed=1: failed",
        "[3/3] seed=2: success 50.0%, return -2.000",
    ]
    assert failed.endswith("seed1")
    rows = json.loads(result.written.read_text())["runs"]
    assert [row["failure"] for row in rows] == ["", "the simulator broke", ""]
    assert (rows[0]["success"], rows[2]["settings"]) == (0.5, {"seed": "2"})
    assert list(result.table.columns[1].cells) == ["50.0%", "failed", "50.0%"]
    shutil.rmtree(folder.parent / "runs" / rows[2]["name"])
    engine = InProcessEngine()
    run_grid(config, lines.append, engine)
    assert [dict(job.settings)["seed"] for job in engine.executed] == ["1", "2"]
    assert lines[3] == "1 of 3 runs are finished already."


def test_run_is_trained_and_recorded(tmp_path: Path) -> None:
    """A job trains the run that a single command would, and records its evaluation."""
    words = sweep(tmp_path, "seed=0,1").words({"seed": "1"})
    job = GridJob("one", (*words, f"runs_dir={tmp_path}", "name=one"), (("seed", "1"),))
    for name in (RECORDS, "logs"):
        (tmp_path / name).mkdir()
    assert train_and_record(job, tmp_path)
    record = json.loads(job.record_path(tmp_path).read_text())
    assert (record["timesteps"], record["success"]) == (128, None)
    assert record["episode_return"] == record["tasks"][0]["return_mean"] < 0
    assert record["run_dir"] == str(tmp_path / "one")
    assert (tmp_path / "one" / "config.yaml").exists()
    assert (tmp_path / "logs" / "one.txt").read_text().startswith("Training for 128")
