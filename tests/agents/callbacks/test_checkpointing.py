"""Checkpoints and videos: the best is kept, and a full disk does not end a run early."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirl.agents import train
from mirl.agents.runs import logger
from mirl.agents.runs.atomic_files import verify_manifest
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
FULL = """
import resource, sys
from mirl import train
from mirl.agents.runs import checkpoint
write = checkpoint._write_files
calls = []

def limited(*arguments):
    calls.append(1)
    if len(calls) > 1:  # a disk that is full from the second checkpoint on
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    write(*arguments)

checkpoint._write_files = limited
train.main()
"""


def test_full_disk_does_not_stop_training(tiny: Build, tmp_path: Path) -> None:
    """A full disk costs checkpoints and curves, but training continues."""
    words = ["total_timesteps=512", "checkpoint_every=128", "evaluation.every=10000", "name=full"]
    small = [
        "encoder.channels=8",
        "encoder.features_dim=16",
        "context.dim=8",
        "agent.net_arch=[8]",
        "device=cpu",
    ]
    sizes = [
        "agent.n_envs=4",
        "agent.n_steps=32",
        "agent.batch_size=64",
        "agent.n_epochs=2",
        "progress=false",
    ]
    others = [
        "precision=fp32",
        "videos=false",
        "evaluation.episodes=4",
        "evaluation.max_steps=20",
        f"runs_dir={tmp_path}",
        "evaluation.test_episodes=4",
        "evaluation.context_use=false",
    ]
    argv = [*words, *small, *sizes, *others]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *argv],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    for timesteps in (256, 384):
        expected = f"the checkpoint of {timesteps} timesteps cannot be written"
        assert expected in done.stderr
    assert "that of 128 timesteps is kept; training continues until the next one" in done.stderr
    assert "events in" in done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("error: the checkpoint of 512 timesteps cannot be written")
    assert done.stderr.count("Traceback") <= done.stderr.count(
        "Thread-"
    )  # a thread of TensorBoard has one
    checkpoints = tmp_path / "full" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir() if path.name != "index.json"] == [
        "step_000000128"
    ]
    run = RunDirectory.open(tmp_path / "full")
    last = run.latest_valid_checkpoint()
    assert last is not None
    verify_manifest(last.folder)
    config = tiny(*words, "evaluation.test_episodes=4")
    assert train(config).finished  # once there is room again
    assert run.checkpoints.load_index()["last"] == run.checkpoint("512").name


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_read_only_folder_is_rejected(tiny: Build, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="cannot be created: Permission denied"):
            train(tiny())
    finally:
        tmp_path.chmod(0o700)


def test_unsaved_checkpoint_is_not_best(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that cannot be saved is not the best one."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = tiny("checkpoint_every=256", "evaluation.every=128")
    monkeypatch.setattr("mirl.agents.runs.checkpoint._write_files", full)
    with (
        pytest.warns(
            UserWarning,
            match="timesteps cannot be written .*No space left on device.*there is none yet",
        ),
        pytest.raises(RunError, match="the checkpoint of 512 timesteps cannot be written"),
    ):
        train(config)
    assert RunDirectory.open(config.run_dir).checkpoints.load_index() == {}
    assert not list((config.run_dir / "checkpoints").iterdir())
    monkeypatch.undo()
    assert train(config).finished


@pytest.mark.parametrize("writer", [logger.MetricsCsv, logger.TensorBoard])
def test_unwritable_log_warns_once(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, writer: type
) -> None:
    """A log that cannot be written causes one warning and does not end the run."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.__mro__[2], "write", full)  # Stable-Baselines3's own
    with pytest.warns(
        UserWarning, match="cannot be written .*training continues without"
    ) as warned:
        assert train(tiny()).finished
    assert len([each for each in warned if "training continues without" in str(each.message)]) == 1


def test_best_checkpoint_follows_validation_success(
    tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best checkpoint is that of the highest validation success, of equal ones the later."""
    rates = iter([0.25, 0.75, 0.5, 0.75])

    def scripted(*_: Any, **__: Any) -> list[TaskResult]:
        success = np.arange(4) < next(rates) * 4
        return [TaskResult("goto_door", success, success.astype(float), np.full(4, 5))]

    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", scripted)
    run = train(tiny("evaluation.every=128")).run
    assert not list(rates)
    assert run.checkpoints.load_index() == {
        "last": "step_000000512",
        "best": "step_000000512",
        "best_score": 0.75,
    }
    assert run.checkpoint("best").name == "step_000000512"


@pytest.mark.parametrize(
    ("words", "recorded_at"),
    [
        (("videos=true",), [256, 512]),
        (("videos=384",), [384, 512]),
        (("videos=false",), []),
    ],
)
def test_videos_come_as_often_as_asked(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], recorded_at: list[int]
) -> None:
    """Videos are recorded at checkpoints, at intervals, or never, and their time is said."""

    def slow(*_: Any, **__: Any) -> None:
        time.sleep(0.01)

    module = "mirl.agents.callbacks.checkpointing"
    monkeypatch.setattr(f"{module}.record_episode", slow)
    monkeypatch.setattr(f"{module}.SLOW_VIDEOS", 0.001)
    monkeypatch.setattr(f"{module}.NOTICEABLE_SHARE", 0.0001)
    lines: list[str] = []
    config = tiny("checkpoint_every=256", "evaluation.every=10_000", *words)
    run = train(config, lines.append).run
    with (run.path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("speed/video_seconds")]
    # logged in the row after them, so that the last ones are in none
    assert len(rows) == len(recorded_at[:-1])
    said = [line for line in lines if "videos=false records none" in line]
    assert len(said) == (2 if recorded_at else 0)
    # a run may be resumed without them
    assert train(tiny("checkpoint_every=256", "evaluation.every=10_000")).finished


@pytest.mark.parametrize("part", ["record_episode", "encode_gif"])
def test_no_rendering_means_no_videos(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Training goes on without videos if an environment renders nothing, or no pictures."""
    asked: list[int] = []

    def broken(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise OSError("no display")

    monkeypatch.setattr(f"mirl.agents.callbacks.checkpointing.{part}", broken)
    config = tiny("checkpoint_every=128", "videos=true")
    with pytest.warns(
        UserWarning, match="no videos, because task 'goto_door' cannot be rendered here: no display"
    ):
        assert train(config).finished
    assert len(asked) == 1
