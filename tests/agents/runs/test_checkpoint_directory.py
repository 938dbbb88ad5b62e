"""The directory of checkpoints finds the last, the best and the newest valid one."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_setup import resolve, start_run
from safetensors.torch import load_file

from mirl.agents import train
from mirl.agents.builder import build_agent
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs.checkpoint import Criterion, parse_criterion
from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

Build = Callable[..., TrainConfig]
LAST_POLICY = "step_000000512/policy.safetensors"


@pytest.fixture(scope="module")
def agent(tiny_in: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPO]:
    """Yield an agent after one iteration; tests do not change it."""
    config = tiny_in(tmp_path_factory.mktemp("unused"))
    env = SuiteVecEnv(config.task, config.agent.n_envs, seed=config.seed)
    agent = build_agent(resolve(config), env)
    assert isinstance(agent, PPO)
    yield agent.learn(128)
    env.close()


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    """Return an empty directory of checkpoints."""
    return CheckpointDirectory(tmp_path / "checkpoints")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


# --------------------------------------------------------------------------------------------- find


def test_saved_checkpoint_is_not_rewritten(agent: PPO, directory: CheckpointDirectory) -> None:
    folder = directory.save(agent).folder
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    directory.save(agent, score=0.5)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert directory.load_index() == {"last": folder.name, "best": folder.name, "best_score": 0.5}


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("last", "step_000000256"),
        ("128", "step_000000128"),
        ("00128", "step_000000128"),
        ("step_000000128", "step_000000128"),
        ("step_000000128/", "step_000000128"),
    ],
)
def test_find_by_name_and_timesteps(
    agent: PPO,
    directory: CheckpointDirectory,
    monkeypatch: pytest.MonkeyPatch,
    which: str,
    name: str,
) -> None:
    directory.save(agent)
    monkeypatch.setattr(agent, "num_timesteps", 256)
    directory.save(agent)
    assert directory.find(which).name == name


@pytest.mark.parametrize(
    ("which", "hint"),
    [
        ("lst", "Did you mean 'last'?"),
        ("9" * 5000, "no checkpoint '9999"),
        ("129", "Did you mean '128'?"),
        ("best", "chosen by the first evaluation (evaluation.every=); use 'last'"),
        ("??", "Valid: 128"),
    ],
)
def test_unknown_checkpoint_names_nearest(
    agent: PPO, directory: CheckpointDirectory, which: str, hint: str
) -> None:
    directory.save(agent)
    with pytest.raises(ConfigError) as caught:
        directory.find(which)
    assert str(caught.value).startswith(f"no checkpoint '{which}' in {directory.path}.")
    assert hint in str(caught.value)


def test_empty_directory_is_reported(directory: CheckpointDirectory) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint 'best' in .*\. It holds none\.$"):
        directory.find("best")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".", 3, None])
def test_index_cannot_point_elsewhere(
    agent: PPO, directory: CheckpointDirectory, name: Any
) -> None:
    folder = directory.save(agent).folder
    shutil.copytree(folder, directory.path.parent / "x")
    (directory.path / "index.json").write_text(json.dumps({"last": name}))
    with pytest.raises(ConfigError, match="'last' must name a folder beside it"):
        directory.find("last")


@pytest.mark.parametrize("name", ["..", "", "index.json", "step_000000999"])
def test_index_without_checkpoint_finds_none(
    agent: PPO, directory: CheckpointDirectory, name: str
) -> None:
    """An index that names something else than a checkpoint finds none."""
    directory.save(agent)
    (directory.path / "index.json").write_text(json.dumps({"last": name}))
    with pytest.raises(ConfigError, match="no checkpoint 'last'"):
        directory.find("last")


def test_delete_after_removes_later_checkpoints(
    agent: PPO, directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (100, 1000):
        monkeypatch.setattr(agent, "num_timesteps", steps)
        directory.save(agent)
    directory.delete_after(100)
    assert [path.name for path in directory.path.glob("step_*")] == ["step_000000100"]


# ------------------------------------------------------------------- one billion timesteps and more

LONG_RUN = (999_999_999, 1_000_000_000)
"""Timesteps whose folders sort the other way round by name."""


@pytest.fixture
def long_run(
    agent: PPO, directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> CheckpointDirectory:
    """Return a directory with a checkpoint at each of ``LONG_RUN``."""
    for timesteps in LONG_RUN:
        monkeypatch.setattr(agent, "num_timesteps", timesteps)
        directory.save(agent)
    return directory


def test_latest_valid_compares_timesteps(long_run: CheckpointDirectory) -> None:
    newest = long_run.latest_valid()
    assert newest is not None
    assert newest.name == "step_1000000000"
    flip(newest.policy_path)
    with pytest.warns(UserWarning, match="a damaged checkpoint is skipped"):
        before = long_run.latest_valid()
    assert before is not None
    assert before.name == "step_999999999"


def test_delete_after_compares_timesteps(long_run: CheckpointDirectory) -> None:
    long_run.delete_after(999_999_999)
    assert [path.name for path in long_run.path.glob("step_*")] == ["step_999999999"]


def test_delete_after_keeps_earlier_checkpoints(long_run: CheckpointDirectory) -> None:
    long_run.delete_after(1_000_000_000)
    assert {path.name for path in long_run.path.glob("step_*")} == {
        "step_999999999",
        "step_1000000000",
    }


def test_rebuilt_index_compares_timesteps(long_run: CheckpointDirectory) -> None:
    (long_run.path / "index.json").unlink()
    with pytest.warns(UserWarning, match="names no last checkpoint"):
        assert long_run.latest_valid() is not None
    assert long_run.load_index()["last"] == "step_1000000000"


@pytest.mark.parametrize("name", ["step_" + "9" * 5000, "step_", "step_x", "index.json"])
def test_unusable_index_is_rebuilt(long_run: CheckpointDirectory, name: str) -> None:
    """A name that no checkpoint can have counts as a missing one."""
    (long_run.path / "index.json").write_text(json.dumps({"last": name}))
    with pytest.warns(UserWarning, match="names no last checkpoint"):
        newest = long_run.latest_valid()
    assert newest is not None
    assert newest.name == "step_1000000000"


def test_other_folders_are_no_checkpoints(long_run: CheckpointDirectory) -> None:
    copy = long_run.path / "step_999999999_copy"
    shutil.copytree(long_run.path / "step_999999999", copy)
    long_run.delete_after(1)
    assert list(long_run.path.glob("step_*")) == [copy]


# ------------------------------------------------------------------------------------- latest valid


def test_training_resumes_from_newest_valid(tiny: Build) -> None:
    """Training resumes from the newest checkpoint that is not damaged."""
    config = tiny("checkpoint_every=128", "evaluation.every=10000")
    train(config)
    checkpoints = config.run_dir / "checkpoints"
    saved = load_file(checkpoints / LAST_POLICY)
    # load_file maps the file, which is to change
    expected = {name: weight.clone() for name, weight in saved.items()}
    flip(checkpoints / LAST_POLICY)
    cut(checkpoints / "step_000000384" / "state.json")
    with pytest.warns(UserWarning, match="a damaged checkpoint is skipped") as warned:
        assert train(config)[:2] == (512, True)
    assert [str(warning.message).count("step_000000") for warning in warned] == [1, 1]
    again = load_file(checkpoints / LAST_POLICY)
    assert all(torch.equal(again[name], weight) for name, weight in expected.items())


def test_damaged_index_is_rebuilt(tiny: Build) -> None:
    config = tiny("checkpoint_every=128", "evaluation.every=128")
    run = train(config).run
    path = config.run_dir / "checkpoints" / "index.json"
    whole = json.loads(path.read_text())
    assert {"last", "best", "best_score"} <= set(whole)
    cut(path)
    with pytest.warns(UserWarning, match=r"index\.json cannot be read.*rebuilt"):
        last = run.latest_valid_checkpoint()
    assert last is not None
    assert last.name == "step_000000512"
    assert json.loads(path.read_text()) == whole


def test_missing_index_is_rebuilt(tiny: Build) -> None:
    config = tiny("checkpoint_every=128")
    train(config)
    (config.run_dir / "checkpoints" / "index.json").unlink()
    with pytest.warns(UserWarning, match="names no last checkpoint"):
        assert train(config)[:2] == (512, True)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step_000000128"])
def test_run_with_links_is_not_resumed(tiny: Build, tmp_path: Path, name: str) -> None:
    config = tiny("checkpoint_every=128")
    train(config)
    elsewhere = (config.run_dir / name).rename(tmp_path / "elsewhere")
    (config.run_dir / name).symlink_to(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    with pytest.raises(ConfigError, match="is a link; a run directory must not contain links"):
        train(config)
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


def test_all_damaged_deletes_nothing(tiny: Build) -> None:
    """If every checkpoint is damaged, training refuses to start and deletes nothing."""
    config = tiny("total_timesteps=128")
    train(config)
    flip(config.run_dir / "checkpoints" / "step_000000128" / "policy.safetensors")
    with (
        pytest.warns(UserWarning, match="SHA-256 differs"),
        pytest.raises(
            ConfigError, match=r"every checkpoint in .* is damaged; choose another name="
        ),
    ):
        train(config)
    assert (config.run_dir / "checkpoints" / "step_000000128").exists()


def test_run_without_checkpoints_has_none(tmp_path: Path, tiny: Build) -> None:
    run = start_run(tiny())
    assert run.latest_valid_checkpoint() is None
    assert run.checkpoints.is_empty
    assert run.checkpoints.best_score is None


def test_rebuilt_index_keeps_the_criterion(
    agent: PPO, directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of different criteria are not compared; that of the later ones is in force."""
    saved: list[tuple[int, float, Criterion]] = [
        (100, 0.75, "success"),
        (200, -9.0, "return"),
        (300, -3.0, "return"),
        (400, -5.0, "return"),
    ]
    for timesteps, score, criterion in saved:
        monkeypatch.setattr(agent, "num_timesteps", timesteps)
        directory.save(agent, score=score, criterion=criterion)
    (directory.path / "index.json").unlink()
    with pytest.warns(UserWarning, match="names no last checkpoint"):
        directory.latest_valid()
    assert directory.load_index() == {
        "last": "step_000000400",
        "best": "step_000000300",
        "best_score": -3.0,
        "best_criterion": "return",
    }


def test_success_needs_no_criterion(agent: PPO, directory: CheckpointDirectory) -> None:
    """Indexes and checkpoints without a criterion, as all once were, select by success."""
    checkpoint = directory.save(agent, score=0.5)
    assert "best_criterion" not in directory.load_index()
    assert "best_criterion" not in checkpoint.state
    assert checkpoint.criterion == directory.best_criterion == "success"


@pytest.mark.parametrize("value", ["length", 3, None, ["return"]])
def test_unknown_criterion_is_success(value: Any) -> None:
    assert parse_criterion(value) == "success"
