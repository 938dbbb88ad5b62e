"""One run of a comparison: its record, its log, and how it stops."""

import os
import signal
from pathlib import Path

import pytest
from comparison_setup import TINY

from mirl.agents.comparison.worker import RECORDS, PlannedRun, train_and_evaluate
from mirl.agents.jobs.execution import LOGS, log_path
from mirl.agents.jobs.local import OWNER
from mirl.agents.jobs.process import STOP
from mirl.agents.runs.atomic_files import load_json
from mirl.configs.errors import ConfigError

PLANNED = PlannedRun("film", "corridor_env:ToyCorridor-v0", 3, (*TINY, "fusion=film"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a comparison."""
    for name in (RECORDS, LOGS):
        (tmp_path / name).mkdir()
    return tmp_path


def test_record_holds_the_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    assert train_and_evaluate(PLANNED, folder)
    record = load_json(PLANNED.record_path(folder))
    assert (record["setting"], record["task"], record["seed"]) == ("film", PLANNED.task, 3)
    assert record["timesteps"] == 128
    assert record["parameters"] > 0
    [task] = record["tasks"]
    # the corridor reports no success
    assert (task["episodes"], task["success_rate"]) == (8, None)
    assert [step for step, _ in record["return_curve"]] == [64, 128]
    assert record["success_curve"] == []
    log = log_path(folder, PLANNED).read_text()
    assert log.startswith("Training for 128 timesteps")
    assert capsys.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("by", ["file", "owner"])
def test_run_stops_and_saves(folder: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """The run saves a checkpoint and ends when the file appears, or when its owner has died."""
    monkeypatch.setattr("mirl.agents.jobs.process.POLL_SECONDS", 0.001)
    longer = PlannedRun("film", PLANNED.task, 3, (*PLANNED.options, "total_timesteps=100_000"))
    if by == "file":
        (folder / STOP).touch()
    else:
        monkeypatch.setenv(OWNER, str(os.getppid() + 1))
    assert not train_and_evaluate(longer, folder)
    assert not longer.record_path(folder).exists()
    run_dir = folder / "runs" / longer.name
    assert list((run_dir / "checkpoints").glob("step_*"))
    assert "Traceback" not in log_path(folder, longer).read_text()


def test_log_holds_the_traceback(folder: Path) -> None:
    broken = PlannedRun("film", PLANNED.task, 0, (*PLANNED.options, "task.kwargs.none=1"))
    with pytest.raises(ConfigError, match="none"):
        train_and_evaluate(broken, folder)
    assert "Traceback" in log_path(folder, broken).read_text()
