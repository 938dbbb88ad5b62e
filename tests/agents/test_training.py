"""A command goes through its configuration, its run and its checkpoint once."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

import mirl.eval
import mirl.train
from mirl.agents import PPO, builder, training
from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.configs.schema import ResolvedConfig, TrainConfig

TINY = (
    "agent.n_envs=4",
    "agent.n_steps=32",
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "total_timesteps=256",
    "evaluation.episodes=2",
    "evaluation.test_episodes=2",
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
    "agent.net_arch=[8]",
    "progress=false",
    "device=cpu",
    "precision=fp32",
    "task=doors",
    "context=task_id",
    "split.name=rooms",
    "split.tasks=[goto_door_8x8]",
    "name=tiny",
)
FRESH = {"TrainConfig": 1, "ResolvedConfig": 1, "auto": 1}
"""Calls of a command that starts a run."""
RESUMED = {"config.yaml": 1, "TrainConfig": 1, "ResolvedConfig": 2, "auto": 1, "checkpoint": 1}
"""Calls of a command that resumes a run: its own configuration, and that of the directory."""
EVALUATED = {"config.yaml": 1, "ResolvedConfig": 1, "checkpoint": 1}
"""Calls of a command that opens a run for reading."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of reads of config.yaml, validations, resolutions of ``auto`` and look-ups."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, key: str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[key] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    read_text = Path.read_text

    def counted_read(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "config.yaml":
            counts["config.yaml"] += 1
        return read_text(path, *args, **kwargs)

    model_validate = pydantic.BaseModel.model_validate.__func__  # type: ignore[attr-defined]
    construct = pydantic.BaseModel.__init__

    def counted_validate(model: type[pydantic.BaseModel], *args: Any, **kwargs: Any) -> Any:
        if issubclass(model, TrainConfig):
            counts[model.__name__] += 1
        return model_validate(model, *args, **kwargs)

    def counted_construct(model: pydantic.BaseModel, **values: Any) -> None:
        if isinstance(model, TrainConfig):
            counts[type(model).__name__] += 1
        construct(model, **values)

    monkeypatch.setattr(Path, "read_text", counted_read)
    monkeypatch.setattr(pydantic.BaseModel, "model_validate", classmethod(counted_validate))
    monkeypatch.setattr(pydantic.BaseModel, "__init__", counted_construct)
    count(training, "resolve_auto", "auto")
    count(builder, "resolve_network", "networks")
    count(CheckpointDirectory, "find", "checkpoint")
    latest_valid = CheckpointDirectory.latest_valid

    def counted_latest(directory: CheckpointDirectory) -> Any:
        if not directory.is_empty:
            counts["checkpoint"] += 1
        return latest_valid(directory)

    monkeypatch.setattr(CheckpointDirectory, "latest_valid", counted_latest)
    return counts


def taken(calls: Counter[str]) -> dict[str, int]:
    """Return the counts of a command and start counting anew."""
    counts = dict(calls)
    # one resolution of the networks belongs to each resolution of "auto"
    assert counts.pop("networks", 0) == counts.get("auto", 0)
    calls.clear()
    return counts


def test_commands_open_everything_once(
    calls: Counter[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command validates, resolves, opens and looks up at most once."""
    words = [*TINY, f"runs_dir={tmp_path}"]
    run = f"run={tmp_path / 'tiny'}"
    few = ["episodes=2", "n_envs=2", "device=cpu", "checkpoint=last"]
    assert mirl.train.run(words) == 0
    assert taken(calls) == FRESH
    assert mirl.train.run(words) == 0  # a finished run is only evaluated
    assert taken(calls) == RESUMED
    assert mirl.eval.run([run, *few]) == 0
    assert taken(calls) == EVALUATED
    assert mirl.eval.run([run, *few, "adapt=context", "adapt_episodes=4"]) == 0
    assert taken(calls) == EVALUATED
    assert mirl.eval.run([run, *few, "export=goto_door_5x5"]) == 0
    assert taken(calls) == EVALUATED
    assert "goto_door_5x5" in capsys.readouterr().out


def test_stopped_run_resumes_once(
    calls: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A resumed run reads the stored configuration and looks for a checkpoint once."""
    words = [*TINY, f"runs_dir={tmp_path}"]
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(PPO, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mirl.train.run(words)
    assert taken(calls) == FRESH
    assert mirl.train.run(words) == 0
    # there is no checkpoint yet
    assert taken(calls) == {key: n for key, n in RESUMED.items() if key != "checkpoint"}
    assert "After 256 timesteps" in capsys.readouterr().out


def test_result_holds_run_and_checkpoint(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("total_timesteps=128")
    result = training.train(config)
    assert result.finished
    assert result.run.path == config.run_dir
    assert type(result.run.config) is ResolvedConfig
    assert result.checkpoint.folder == config.run_dir / "checkpoints" / "step_000000128"
    assert result.run.is_new
    again = training.train(config)
    assert again[:2] == result[:2]
    assert again.checkpoint.folder == result.checkpoint.folder
    assert not again.run.is_new
