"""The commands train.py and eval.py, run as processes where that makes a difference."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirl import eval as eval_command
from mirl import train as train_command

ROOT = Path(__file__).parents[1]
TINY = (
    "agent.n_envs=8",
    "agent.n_steps=16",
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "evaluation.test_episodes=12",
    "precision=fp32",
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
)
"""Arguments of a run that takes seconds."""
SETTINGS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
ENVIRONMENT = {**os.environ, **SETTINGS}


def command(script: str, *argv: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *argv]


def run(folder: Path, script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, without a GPU."""
    return subprocess.run(
        command(script, *argv),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,  # a run takes seconds, but not on a busy machine
    )


def run_here(folder: Path, module: ModuleType, *argv: str) -> str:
    """Run a command in a folder, in this process, which has loaded torch; return its output."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("COLUMNS", SETTINGS["COLUMNS"])
        patch.chdir(folder)
        assert module.run(list(argv)) == 0
    return output.getvalue()


def refuse_here(
    folder: Path, module: ModuleType, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run a command that is refused, in this process; return its exit code, output and errors."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module.__name__, *argv])
        with pytest.raises(SystemExit) as caught:
            module.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code, *capsys.readouterr()


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_one_message(code: int, out: str, err: str, message: str) -> None:
    """Check that a command reported an invalid argument, in one message and nothing else."""
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert message in err


def test_invalid_argument_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "train.py", "fusoin=film")
    message = "unknown option 'fusoin'. Did you mean 'fusion'?\n"
    assert_one_message(done.returncode, done.stdout, done.stderr, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sites=[map]", "encoder=vector"], "encoder=vector has none; use sites=[vector]\n"),
        (["task=MiniGrid-GoToDor-5x5-v0"], "Did you mean 'MiniGrid-GoToDoor-5x5-v0'?"),
        (["device=cuda"], "device=cuda: torch finds no CUDA device here"),
    ],
)
def test_missing_requirement_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    """Without a part that the networks or the machine need, no run is created."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = refuse_here(tmp_path, train_command, argv, capsys)
    assert_one_message(code, "", err, message)
    assert not list(tmp_path.iterdir())


def test_missing_run_is_one_message(tmp_path: Path) -> None:
    done = run(tmp_path, "eval.py", "run=runs/nowhere")
    assert_one_message(
        done.returncode, done.stdout, done.stderr, "runs/nowhere is not a run directory"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """Return a function: backend -> run directory and output of train.py, one run per backend.

    The command trains the run on gymnasium, which has worker processes, in a process of its own.
    """
    made: dict[str, tuple[Path, str]] = {}

    def train(backend: str) -> tuple[Path, str]:
        if backend not in made:
            folder = tmp_path_factory.mktemp(backend)
            words = ("name=mine", f"backend={backend}", "total_timesteps=512", "progress=false")
            if backend == "gymnasium":
                done = run(folder, "train.py", *TINY, *words)
                assert (done.returncode, done.stderr) == (0, "")
                output = done.stdout
            else:
                output = run_here(folder, train_command, *TINY, *words)
            made[backend] = folder / "runs" / "mine", output
        return made[backend]

    return train


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_training_writes_files_and_table(
    trained: Callable[[str], tuple[Path, str]], backend: str
) -> None:
    folder, output = trained(backend)
    found: set[str] = set()
    for path in folder.rglob("*"):
        if path.is_file():  # the names of TensorBoard's files end with the time and the host
            name = str(path.relative_to(folder))
            found.add(re.sub(r"tfevents\..*", "tfevents", name))
    assert found == {
        ".lock",
        "config.yaml",
        "metrics.csv",
        "events.out.tfevents",
        "checkpoints/index.json",
        "checkpoints/step_000000512/policy.safetensors",
        "checkpoints/step_000000512/optimizer.safetensors",
        "checkpoints/step_000000512/state.json",
        "checkpoints/step_000000512/manifest.json",
        "videos/goto_door_000000512.gif",
        f"eval/step_000000512-{backend}-seed0-12ep.json",
    }
    assert re.search(r"\(12 episodes\)\s*\n", output)
    assert re.search(r"│ goto_door +│ +\d+\.\d% │", output)
    assert "tensorboard --logdir runs" in output
    assert "mirl-eval run=runs/mine checkpoint=last" in output


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_run_can_be_evaluated(trained: Callable[[str], tuple[Path, str]], backend: str) -> None:
    folder, _ = trained(backend)
    words = (f"run={folder}", "episodes=12", "seed=3", "gif=true", f"backend={backend}")
    if backend == "gymnasium":
        done = run(folder.parent, "eval.py", *words)
        assert (done.returncode, done.stderr) == (0, "")
        output = done.stdout
    else:
        output = run_here(folder.parent, eval_command, *words)
    assert re.search(r"\(12 episodes\)\s*\n", output)
    assert re.search(r"│ goto_door +│ +\d+\.\d% │", output)
    [line] = [line for line in output.splitlines() if line.startswith("Context use")]
    rate = r"-?\d+\.\d%"
    assert re.fullmatch(
        rf"Context use: {rate} \(success {rate} with its own mission, {rate} with that of other "
        rf"episodes, 95 % interval {rate} – {rate}\)",
        line,
    )
    path = folder / "eval" / f"step_000000512-{backend}-seed3-12ep.json"
    (task,) = json.loads(path.read_text())["tasks"]
    assert (task["task"], task["episodes"]) == ("goto_door", 12)
    gifs = list(path.parent.glob(f"{path.stem}-goto_door-*.gif"))
    assert gifs
    assert all(gif.read_bytes().startswith(b"GIF89a") for gif in gifs)


def test_run_can_be_exported(trained: Callable[[str], tuple[Path, str]]) -> None:
    folder, _ = trained("envpool")
    words = ("run=mine", "checkpoint=last", "export=go to the red door")
    output = run_here(folder.parent, eval_command, *words)
    found = re.fullmatch(
        r"Written: mine/exports/go-to-the-red-door\.pt2 "
        r"\(([\d,]+) parameters of ([\d,]+)\)\n"
        r"Checked: outputs within \de-\d\d of the policy's on 256 random observations, 100\.0% of "
        r"the actions equal, and all [\d,]+ actions of [\d,]+ played episodes\n",
        output,
    )
    assert found is not None, output
    after, before = (int(number.replace(",", "")) for number in found.groups())
    assert after < before
    description = json.loads((folder / "exports" / "go-to-the-red-door.pt2.json").read_text())
    assert description["mission"] == "go to the red door"
    assert description["checkpoint"] == "step_000000512"
    assert (folder / "exports" / "go-to-the-red-door.pt2").stat().st_size > 4 * after


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["checkpoint=lst"], "no checkpoint 'lst' in {checkpoints}. Did you mean 'last'?\n"),
        (["checkpoint=511"], "Did you mean '512'?\n"),
        (["checkpoint=../../x"], "no checkpoint '../../x'"),
        (["backend=envpol"], "Did you mean 'envpool'?\n"),
        (["episodes=0"], "episodes: input should be greater than 0"),
        (["export=go to the red door", "checkpoint=511"], "Did you mean '512'?\n"),
    ],
)
def test_invalid_evaluation_changes_nothing(
    trained: Callable[[str], tuple[Path, str]],
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    folder, _ = trained("envpool")
    before = hashes(folder)
    words = [f"run={folder}", *argv]
    code, out, err = refuse_here(folder.parent, eval_command, words, capsys)
    assert_one_message(code, out, err, message.format(checkpoints=folder / "checkpoints"))
    assert hashes(folder) == before


def iteration_steps(folder: Path) -> list[int]:
    """Return the timesteps of the iterations in metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [int(row["time/total_timesteps"]) for row in rows]


def event_steps(folder: Path) -> list[int]:
    """Return the timesteps of the iterations in the TensorBoard events."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [point.step for point in events.Scalars("train/loss")]


def stopped_by(number: signal.Signals, folder: Path, run_dir: Path, argv: list[str]) -> str:
    """Train until two iterations are logged, send a signal to the process group, return the output.

    Args:
        number: signal to send.
        folder: folder to run the command in.
        run_dir: directory of the run.
        argv: arguments of train.py.
    """
    process = subprocess.Popen(
        command("train.py", *argv),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        table = run_dir / "metrics.csv"
        while not (table.exists() and table.read_text().count("\n") > 3):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the training did not start"
            time.sleep(0.01)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 130, output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return output


def assert_resumed_without_gap(folder: Path) -> None:
    """Check that metrics.csv and the events have every iteration once."""
    expected = list(range(128, 4097, 128))
    assert iteration_steps(folder) == expected
    assert event_steps(folder) == expected


def test_ctrl_c_saves_and_resumes(tmp_path: Path) -> None:
    """Ctrl-C saves a checkpoint, and the same command resumes the run."""
    argv = [*TINY, "name=mine", "backend=gymnasium", "total_timesteps=4096", "videos=false"]
    folder = tmp_path / "runs" / "mine"
    output = stopped_by(signal.SIGINT, tmp_path, folder, argv)
    assert "Traceback" not in output
    (stopped_at,) = re.findall(
        r"Stopped and saved at ([\d,]+) timesteps; run the same command again to resume\.", output
    )
    assert iteration_steps(folder) == list(range(128, int(stopped_at.replace(",", "")) + 1, 128))
    rows = [row.rstrip(",") for row in (folder / "metrics.csv").read_text().splitlines()[1:]]

    again = run(tmp_path, "train.py", *argv)
    assert (again.returncode, again.stderr) == (0, "")
    assert "After 4,096 timesteps" in again.stdout
    state = json.loads((folder / "checkpoints" / "step_000004096" / "state.json").read_text())
    assert state["num_timesteps"] == 4096
    after = [row.rstrip(",") for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert after[: len(rows)] == rows
    assert_resumed_without_gap(folder)


def test_sigterm_saves_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM saves a checkpoint, and the same arguments resume the run, here in-process."""
    argv = [
        *TINY,
        "backend=envpool",
        "total_timesteps=4096",
        f"runs_dir={tmp_path}",
        "name=mine",
        "progress=false",
        "videos=false",
    ]
    folder = tmp_path / "mine"
    output = stopped_by(signal.SIGTERM, tmp_path, folder, argv)
    assert "Traceback" not in output
    stopped_at = iteration_steps(folder)[-1]
    message = (
        f"Stopped and saved at {stopped_at:,} timesteps; run the same command again to resume."
    )
    assert message in output
    index = json.loads((folder / "checkpoints" / "index.json").read_text())
    assert index["last"] == f"step_{stopped_at:09d}"
    assert train_command.run(argv) == 0
    assert "After 4,096 timesteps" in capsys.readouterr().out
    assert_resumed_without_gap(folder)


def test_other_configuration_is_rejected(
    trained: Callable[[str], tuple[Path, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run directory of another configuration is not changed; the error lists the differences."""
    folder, _ = trained("envpool")
    before = hashes(folder)
    words = [*TINY, "name=mine", "backend=envpool", "total_timesteps=512", "fusion=film", "seed=2"]
    code, _, err = refuse_here(folder.parents[1], train_command, words, capsys)
    assert_one_message(code, "", err, "runs/mine holds a run of another configuration")
    assert "\n  fusion.kind: 'bilinear' there, 'film' now\n  seed: 0 there, 2 now\n" in err
    assert hashes(folder) == before
