"""The command train.py --multirun, run as a process on an environment of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_processes import environment, kill_after_first_record
from comparison_setup import TINY
from sweep_setup import InProcessEngine

from mirl import train as train_command
from mirl.agents.sweeps import grid
from mirl.agents.sweeps.grid import GridJob
from mirl.configs.compose import compose_train
from mirl.configs.errors import RunError

ROOT = Path(__file__).parents[1]
WORDS = ("--multirun", *TINY, "fusion=concat,film", "jobs=1")
COMMAND = [sys.executable, str(ROOT / "train.py"), *WORDS]


def test_killed_sweep_goes_on(tmp_path: Path) -> None:
    """The same command after a kill keeps the finished run and trains the other."""
    variables = environment(ROOT / "tests")
    [record] = kill_after_first_record(COMMAND, tmp_path, "sweeps/*/records/*.json", variables)
    written = record.stat().st_mtime_ns
    done = subprocess.run(
        COMMAND,
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 2 runs are finished already." in done.stdout
    assert record.stat().st_mtime_ns == written
    [results] = tmp_path.glob("sweeps/*/results.json")
    rows = json.loads(results.read_text())["runs"]
    assert [row["settings"] for row in rows] == [{"fusion": "concat"}, {"fusion": "film"}]
    for row in rows:
        # as a single command names it, whose configuration it has
        run_dir = compose_train(row["words"]).run_dir
        assert (tmp_path / run_dir / "checkpoints").is_dir()
        assert str(run_dir) in done.stdout


@pytest.mark.parametrize("failing", [True, False])
def test_exit_code_names_failures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: bool,
) -> None:
    """A run that fails does not stop the others, and is reported in one line at the end."""

    def end(job: GridJob, folder: Path) -> bool:
        if failing and "concat" in job.name:
            raise RunError("the simulator\nbroke")
        return False

    monkeypatch.setattr(grid, "train_and_record", end)
    monkeypatch.setattr(grid, "build_engine", lambda *_: InProcessEngine())
    monkeypatch.setattr(sys, "argv", ["train.py", *WORDS, f"out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as caught:
        train_command.main()
    out, err = capsys.readouterr()
    if not failing:
        assert caught.value.code == 130
        assert "Stopped, 2 runs are missing; run the same command again to go on." in out
        return
    assert caught.value.code == 1
    name = "corridor_env-ToyCorridor-v0-concat-ppo-seed0"
    message = "error: runs failed; the same command tries them again\n"
    assert err == f"{message}{name}: the simulator broke\n"


def test_mistake_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for word, message in (
        ("fusion=film,flim", "fusion=flim: unknown fusion 'flim'"),
        ("slurm.partition=x", "slurm.partition: expected engine=slurm"),
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *WORDS, word])
        with pytest.raises(SystemExit) as caught:
            train_command.main()
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
