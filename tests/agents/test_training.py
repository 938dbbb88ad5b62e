"""Training starts, stops and resumes a run, and a command opens everything once."""

import csv
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comparison_setup
import pydantic
import pytest
import tiny_runs
from corridor_env import corridor
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mirl.eval
import mirl.train
from mirl.agents import PPO, builder, train, training
from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import ResolvedConfig, TrainConfig

Build = Callable[..., TrainConfig]
ITERATIONS = [128, 256, 384, 512]
"""Timesteps after each iteration of a tiny run."""

TINY = (
    "agent.n_envs=4",
    "agent.n_steps=32",
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "total_timesteps=256",
    "evaluation.episodes=2",
    "evaluation.test_episodes=2",
    *tiny_runs.NETWORK,
    "progress=false",
    "device=cpu",
    "precision=fp32",
    "videos=false",
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
    """Count reads of config.yaml, validations, resolutions of ``auto`` and look-ups."""
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


def test_result_holds_run_and_checkpoint(tiny: Build) -> None:
    config = tiny("total_timesteps=128")
    result = train(config)
    assert result.finished
    assert result.run.path == config.run_dir
    assert type(result.run.config) is ResolvedConfig
    assert result.checkpoint.folder == config.run_dir / "checkpoints" / "step_000000128"
    assert result.run.is_new
    again = train(config)
    assert again[:2] == result[:2]
    assert again.checkpoint.folder == result.checkpoint.folder
    assert not again.run.is_new


# ------------------------------------------------------------------------------ start, stop, resume


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
    """Return the timesteps of the rows that iterations wrote."""
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
    stored = RunDirectory.open(config.run_dir).config
    # what follows from the environments: the inputs, the words of MiniGrid, and the choices
    assert stored.observation_keys == ("direction", "image")
    assert stored.task.vocabulary == ()
    assert stored.network.is_resolved
    choices = ("observation_keys", "task", "fusion", "fusion_is_chosen", "sites", "encoder")
    stored_values = stored.model_dump()
    completed = {**config.model_dump(), **{name: stored_values[name] for name in choices}}
    assert stored_values == completed
    filled = {"vocabulary": None, "text_length": None}
    assert stored.task.model_copy(update=filled) == config.task


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
    index = RunDirectory.open(config.run_dir).checkpoints.load_index()
    assert index == {"last": "step_000000256"}
    assert csv_steps(config) == [128, 256]
    assert train(config)[:2] == (512, True)
    assert csv_steps(config) == event_steps(config) == ITERATIONS


def test_finished_run_is_trained_longer(tmp_path: Path) -> None:
    """A larger total goes on with rollout, optimizer and curve, at the rate of the longer run."""
    own = ("agent.n_envs", "agent.n_steps", "agent.batch", "split", "task", "context", "total")
    options = [word for word in TINY if not word.startswith(own)]
    options += [f"runs_dir={tmp_path}", "task=goto_door"]
    short = train(compose_train([*options, "total_timesteps=512"]))
    assert short.run.config.agent.n_envs == 16
    lines: list[str] = []
    again = train(compose_train([*options, "total_timesteps=512"]), lines.append)
    assert (again.finished, again.timesteps) == (True, short.timesteps)
    [line] = lines
    assert line.endswith(
        "is finished, with 512 timesteps; to train it further, give a larger total_timesteps=…"
    )

    config = compose_train([*options, "total_timesteps=1024"])
    longer = train(config, lines.append)
    assert (longer.finished, longer.timesteps) == (True, 1024)
    assert lines[1].startswith("Resuming at 512 of 1,024 timesteps")
    assert lines[3] == (
        "Longer than before: 1,024 timesteps in place of 512. The learning rate goes on at 0.0005 "
        "and falls to zero at the new end."
    )
    assert csv_steps(config) == event_steps(config) == [512, 1024]
    assert RunDirectory.open(config.run_dir).config.total_timesteps == 1024
    # Adam has counted the gradient steps of both: one epoch of two minibatches per rollout
    state = load_file(longer.checkpoint.folder / "optimizer.safetensors")
    assert {int(value) for name, value in state.items() if name.endswith("step")} == {4}

    with pytest.raises(ConfigError, match="total_timesteps=1024, which may only grow, got 512"):
        train(compose_train([*options, "total_timesteps=512"]))


def test_finished_run_is_unchanged(tiny: Build) -> None:
    config = tiny("total_timesteps=128")
    train(config)
    before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    assert train(config)[:2] == (128, True)
    assert {
        path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()
    } == before


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


def test_impossible_holdout_writes_nothing(tiny: Build) -> None:
    """A holdout whose episodes never come is reported before anything is written."""
    config = tiny("split.name=blur", "split.missions=[blur]")
    with pytest.raises(ConfigError, match=r"no episode with a mission with one of \['blur'\] came"):
        train(config)
    assert not config.run_dir.exists()


# -------------------------------------------------- options that an environment shows to be invalid


@pytest.mark.parametrize(
    ("fields", "words", "message"),
    [
        (
            ["success: reward", ""],
            ("sampling=lowest_success",),
            "sampling=lowest_success needs the success .* task 'task1' reports none",
        ),
        (["success: info"], (), "task 'task0' has success=info, but the last info"),
    ],
)
def test_refused_success_leaves_no_run(
    tmp_path: Path, fields: list[str], words: tuple[str, ...], message: str
) -> None:
    """A run that fails at its first episode leaves nothing, so that the corrected command works."""
    sizes = ("agent.n_envs=2", "agent.n_steps=32", "agent.batch_size=64", "total_timesteps=64")
    others = ("evaluation.episodes=2", "progress=false", "device=cpu", f"runs_dir={tmp_path}")
    common = (*sizes, *others, "name=own")
    with pytest.raises(ConfigError, match=message) as caught:
        train(compose_train([*corridor(*fields), *common, *words]))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    # each of the remedies that the message names
    assert "'success=return>=X'" in str(caught.value)
    corrected = ["success: 'return>=-8'"] * len(fields)
    assert train(compose_train([*corridor(*corrected), *common, *words])).finished


def test_refused_resume_keeps_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a run with checkpoints is deleted, whatever happens when it is resumed."""
    sizes = ("agent.n_envs=2", "agent.n_steps=32", "agent.batch_size=64", "total_timesteps=128")
    others = ("evaluation.episodes=2", "progress=false", "device=cpu", f"runs_dir={tmp_path}")
    config = compose_train([*corridor(""), *sizes, *others, "checkpoint_every=64", "name=own"])

    def refuse(*_: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr(training.Evaluation, "evaluate_now", refuse)  # at the end of training
    with pytest.raises(ConfigError, match="no"):
        train(config)
    assert [path.name for path in (config.run_dir / "checkpoints").glob("step_*")] == [
        "step_000000064"
    ]
    monkeypatch.undo()
    assert train(config).finished


def test_report_stops_the_run(tmp_path: Path) -> None:
    """A run stops where the caller says so after an evaluation, and can be resumed."""
    config = compose_train([*comparison_setup.TINY, f"runs_dir={tmp_path}", "progress=false"])
    reported: list[int] = []

    def report(timesteps: int, score: float) -> bool:
        assert score < 0  # the return, because the corridor reports no success
        reported.append(timesteps)
        return True

    stopped = train(config, report=report)
    assert (stopped.timesteps, stopped.finished) == (64, False)
    # after the last evaluation there is nothing to stop
    finished = train(config, report=report)
    assert (finished.timesteps, finished.finished) == (128, True)
    assert reported == [64, 128]
