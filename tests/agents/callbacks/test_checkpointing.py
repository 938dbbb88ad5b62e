"""Where nothing more can be written, training goes on as long as it may, says so, and keeps what it has."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mirl.agents import train
from mirl.agents.runs import metric_names as metrics
from mirl.agents.runs.atomic_files import verify_manifest
from mirl.agents.runs.checkpoint import find_checkpoint, latest_valid_checkpoint, load_index
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
FULL = """
import resource, sys
from mirl import train
from mirl.agents import checkpoint
write, calls = checkpoint._write, []

def limited(*arguments):
    calls.append(1)
    if len(calls) > 1:  # from the second checkpoint on, as on a disk that fills up, no file may have so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    write(*arguments)

checkpoint._write = limited
train.main()
"""


def test_a_disk_that_fills_up_costs_checkpoints_and_curves_but_no_training(
    tiny: Build, tmp_path: Path
) -> None:
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
        "evaluation.episodes=4",
        f"runs_dir={tmp_path}",
        "evaluation.test_episodes=4",
    ]
    argv = [*words, *small, *sizes, *others]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *argv],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    for timesteps in (256, 384):
        expected = f"the checkpoint of {timesteps} timesteps cannot be written"
        assert expected in done.stderr
    assert (
        "the one of 128 timesteps stands; training goes on and tries again at the next"
        in done.stderr
    )
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
    last = latest_valid_checkpoint(checkpoints)
    assert last is not None
    verify_manifest(last)
    config = tiny(*words, "evaluation.test_episodes=4")
    assert train(config).finished  # once there is room again
    assert load_index(checkpoints)["last"] == find_checkpoint(checkpoints, "512").name


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written_to_is_a_message(tiny: Build, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="cannot be made: Permission denied"):
            train(tiny())
    finally:
        tmp_path.chmod(0o700)


def test_a_checkpoint_that_cannot_be_saved_is_no_best(
    tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = tiny("checkpoint_every=256", "evaluation.every=128")
    monkeypatch.setattr("mirl.agents.runs.checkpoint._write", full)
    with (
        pytest.warns(
            UserWarning,
            match="timesteps cannot be written .*No space left on device.*there is none yet",
        ),
        pytest.raises(RunError, match="the checkpoint of 512 timesteps cannot be written"),
    ):
        train(config)
    assert load_index(config.run_dir / "checkpoints") == {}
    assert not list((config.run_dir / "checkpoints").iterdir())
    monkeypatch.undo()
    assert train(config).finished


@pytest.mark.parametrize("log", [metrics.MetricsCsv, metrics.TensorBoard])
def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, log: type
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log.__mro__[2], "write", full)  # Stable-Baselines3's own
    with pytest.warns(UserWarning, match="cannot be written .*training goes on without") as warned:
        assert train(tiny()).finished
    assert len([each for each in warned if "training goes on without" in str(each.message)]) == 1
