"""A run directory belongs to one configuration, and the same command resumes its run."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_setup import start_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirl.agents import PPO, train
from mirl.agents.callbacks.schedule import stop_signals
from mirl.agents.runs.run import Run
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
ITERATIONS = [128, 256, 384, 512]


def fail_in_iteration(patch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something before the update of an iteration, counted from one."""
    update, calls = PPO.train, []

    def counted(agent: PPO) -> None:
        calls.append(1)
        if len(calls) == number:
            act()
        update(agent)

    patch.setattr(PPO, "train", counted)


def killed() -> None:
    raise SystemError("as if the power failed")


def csv_steps(config: TrainConfig) -> list[int]:
    """The timesteps of the rows that iterations wrote."""
    with (config.run_dir / "metrics.csv").open(newline="") as file:
        return [
            int(row["time/total_timesteps"]) for row in csv.DictReader(file) if row["train/loss"]
        ]


def event_steps(config: TrainConfig) -> list[int]:
    events = EventAccumulator(str(config.run_dir), size_guidance={"scalars": 0}).Reload()
    return [point.step for point in events.Scalars("train/loss")]


def test_config_is_written_first(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is written before the first step."""
    monkeypatch.setattr("mirl.agents.training._learn", lambda *_: killed())
    config = tiny()
    with pytest.raises(SystemError):
        train(config)
    assert {path.name for path in config.run_dir.iterdir()} == {"config.yaml", ".lock"}
    assert Run.open(config.run_dir).config.model_dump() == config.model_dump()


@pytest.mark.parametrize("checkpoint_every", [256, 10_000])
def test_killed_run_resumes_its_log(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, checkpoint_every: int
) -> None:
    """A killed run resumes without lost or doubled points in its log."""
    config = tiny(f"checkpoint_every={checkpoint_every}")
    with monkeypatch.context() as patch:
        fail_in_iteration(patch, 4, killed)  # 384 timesteps are logged; 256 or none are saved
        with pytest.raises(SystemError):
            train(config)
    assert csv_steps(config) == ITERATIONS[:3]
    assert train(config)[:2] == (512, True)
    assert csv_steps(config) == ITERATIONS
    assert event_steps(config) == ITERATIONS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_and_saves(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A signal stops the run after the iteration and saves it."""
    config, handler = tiny(), signal.getsignal(number)
    with monkeypatch.context() as patch:
        fail_in_iteration(patch, 2, lambda: os.kill(os.getpid(), number))
        assert train(config)[:2] == (256, False)
    assert signal.getsignal(number) is handler
    index = Run.open(config.run_dir).checkpoints.load_index()
    assert index == {"last": "step_000000256"}
    assert csv_steps(config) == [128, 256]
    assert train(config)[:2] == (512, True)
    assert csv_steps(config) == event_steps(config) == ITERATIONS


HOLD = """
import sys, time
from pathlib import Path
from mirl.agents.runs.run import Run
with Run.open(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_lock_keeps_other_processes_out(tiny: Build) -> None:
    """Two processes do not train in one run directory, and a lock ends with its process."""
    config = tiny("total_timesteps=128")
    start_run(config)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config.run_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(
            ConfigError, match=r"another process is training in .*; wait for it, or choose a name="
        ):
            train(config)
        assert not (config.run_dir / "metrics.csv").exists()
    finally:
        other.kill()
        other.communicate()
    assert train(config).finished


def test_second_signal_acts_at_once() -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job starts without
    try:
        with stop_signals() as asked:
            assert not asked()
            os.kill(os.getpid(), signal.SIGINT)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_finished_run_is_unchanged(tiny: Build) -> None:
    config = tiny("total_timesteps=128")
    train(config)
    before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    assert train(config)[:2] == (128, True)
    assert {
        path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()
    } == before


def test_free_fields_may_change(tiny: Build, tmp_path: Path) -> None:
    """A run may be resumed elsewhere, and with more patience."""
    first = tiny("name=mine")
    start_run(first)
    moved = first.run_dir.rename(tmp_path / "moved")
    patient = ("on_fault=skip", "max_restarts=99", "env_timeout=1e4", "progress=true")
    run = start_run(tiny(f"name={moved.name}", f"runs_dir={moved.parent}", *patient))
    assert not run.is_new


def test_other_configuration_lists_differences(tiny: Build) -> None:
    """Another configuration under the same name lists every difference."""
    start_run(tiny("name=mine", "agent.gamma=0.99"))
    with pytest.raises(ConfigError) as caught:
        start_run(
            tiny(
                "name=mine",
                "fusion=low_rank",
                "fusion.rank=9",
                "seed=4",
                "agent.gamma=0.9",
                "evaluation.episodes=5",
            )
        )
    first, *differences = str(caught.value).splitlines()
    assert first.endswith("holds a run of another configuration; choose another name=…")
    assert differences == [
        "  agent.gamma: 0.99 there, 0.9 now",
        "  evaluation.episodes: 4 there, 5 now",
        "  fusion.kind: 'bilinear' there, 'low_rank' now",
        "  fusion.rank: None there, 9 now",
        "  seed: 0 there, 4 now",
    ]


def test_device_and_progress_may_change(tiny: Build) -> None:
    assert start_run(tiny()).is_new is True
    assert start_run(tiny("device=auto", "progress=true")).is_new is False


def test_foreign_folder_is_refused(tiny: Build) -> None:
    """A folder that is not a run directory is refused and left unchanged."""
    config = tiny()
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists and is not a run directory"):
        start_run(config)
    assert [path.name for path in config.run_dir.iterdir()] == ["thesis.tex"]


def test_impossible_directory_is_refused(tiny_in: Build, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be created: Not a directory"):
        start_run(tiny_in(tmp_path / "file"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory"),
        (b"\xff\xfe\x00", "is not a run directory"),
        (b"a: [", "is not a run directory"),
        (b"a: 1", "unknown option 'a'"),
        (b"[1]", "valid dictionary"),
        (b"", "valid dictionary"),
        (b"!!python/object/apply:os.system ['true']", "is not a run directory"),
    ],
)
def test_invalid_config_file_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "words", [["backend=envpool", "task=CartPole-v1"], ["task=MiniGrid-Nowhere-v0"]]
)
def test_missing_environments_leave_no_folder(tiny: Build, words: list[str]) -> None:
    config = tiny(*words)
    with pytest.raises(ConfigError):
        train(config)
    assert not config.run_dir.exists()


def test_environments_close_after_failure(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr("mirl.envs.SuiteVecEnv.close", lambda env: closed.append(env.seed_split))
    monkeypatch.setattr("mirl.agents.training._learn", lambda *_: killed())
    with pytest.raises(SystemError):
        train(tiny())
    assert sorted(closed) == ["train", "validation"]
