"""Checkpoints hold everything, appear whole or not at all, and run no code."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mirl.agents import load_policy, train
from mirl.agents.builder import build_agent
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs import checkpoint as checkpoints
from mirl.agents.runs.atomic_files import write_manifest
from mirl.agents.runs.checkpoint import (
    delete_checkpoints_after,
    find_checkpoint,
    latest_valid_checkpoint,
    load_agent,
    load_index,
    load_weights,
    save_checkpoint,
)
from mirl.agents.runs.run import load_config, open_run
from mirl.agents.statistics import TaskResult
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

Build = Callable[..., TrainConfig]
GOLDEN = Path(__file__).parent.parent / "golden"
"""What earlier versions wrote."""
Agents = Callable[[TrainConfig], PPO | A2C]


@pytest.fixture(scope="module")
def agent(tiny_in: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPO | A2C]:
    """Has learned for one iteration, so that the optimizer has a state; tests leave it at that."""
    config = tiny_in(tmp_path_factory.mktemp("unused"))
    env = SuiteVecEnv(config.task, config.agent.n_envs, seed=config.seed)
    yield build_agent(config, env).learn(128)
    env.close()


@pytest.fixture
def learner(tiny: Build, make_agent: Agents) -> PPO | A2C:
    """An agent after one iteration that may go on."""
    return make_agent(tiny()).learn(128)


def same(first: Any, second: Any) -> bool:
    """Equality of nested dicts and lists with tensors in them."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            same(a, b) for a, b in zip(first, second, strict=True)
        )
    return bool(first == second)


@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("kind", ["ppo", "a2c"])
def test_a_loaded_agent_equals_the_saved_one(
    tiny: Build, make_agent: Agents, tmp_path: Path, kind: str, shared: str
) -> None:
    words = (f"agent={kind}", f"agent.share_features_extractor={shared}")
    saved, loaded = make_agent(tiny(*words)), make_agent(tiny(*words, "seed=1"))
    saved.learn(256)
    assert not same(saved.policy.state_dict(), loaded.policy.state_dict())
    load_agent(save_checkpoint(tmp_path, saved), loaded)
    assert same(saved.policy.state_dict(), loaded.policy.state_dict())
    assert saved.policy.optimizer.state_dict()["state"]
    assert same(saved.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    assert (loaded.num_timesteps, loaded._n_updates) == (256, saved._n_updates)


def test_a_loaded_agent_takes_the_same_gradient_step(
    tiny: Build, make_agent: Agents, tmp_path: Path
) -> None:
    saved, loaded = make_agent(tiny()).learn(128), make_agent(tiny())
    load_agent(save_checkpoint(tmp_path, saved), loaded)
    for agent in (saved, loaded):
        agent.policy.optimizer.zero_grad()
        sum(parameter.sum() for parameter in agent.policy.parameters()).backward()
        agent.policy.optimizer.step()
    assert same(saved.policy.state_dict(), loaded.policy.state_dict())


def test_a_run_of_the_first_schema_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN / "schema_1", tmp_path / "runs" / "schema_1")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("runs/schema_1")).model_copy(update={"name": "schema_1"})
    with closing(SuiteVecEnv(config.task, 4)) as env:
        policy, folder = load_policy(
            config.run_dir, "best", env.observation_space, env.action_space, "cpu"
        )
    for name, weight in load_file(folder / "policy.safetensors").items():
        assert torch.equal(policy.state_dict()[name], weight)
    last = latest_valid_checkpoint(config.run_dir / "checkpoints")
    assert last == folder
    assert train(config) == (256, True)  # it was finished, and is left as it is


def test_which_task_comes_next_is_part_of_a_checkpoint(tiny: Build, tmp_path: Path) -> None:
    tasks = (
        "[{name: a, env_id: MiniGrid-GoToDoor-5x5-v0}, {name: b, env_id: MiniGrid-GoToDoor-6x6-v0}]"
    )
    config = tiny("task.name=two", f"task.tasks={tasks}", "sampling=lowest_success")
    envs = [SuiteVecEnv(config.task, 4, sampling=config.sampling, seed=seed) for seed in (0, 1)]
    with closing(envs[0]), closing(envs[1]):
        saved, loaded = (build_agent(config, env) for env in envs)
        saved.learn(512)
        assert envs[0].sampling_state() != envs[1].sampling_state()
        load_agent(save_checkpoint(tmp_path, saved), loaded)
        assert envs[0].sampling_state() == envs[1].sampling_state()


def test_a_policy_is_loaded_ready_to_act(tiny: Build, make_agent: Agents) -> None:
    config = tiny("total_timesteps=128")
    train(config)
    fresh = make_agent(config)
    policy, folder = load_policy(
        config.run_dir, "last", fresh.observation_space, fresh.action_space, "cpu"
    )
    assert folder.name == "step_000000128"
    assert not policy.training
    for name, weight in load_file(folder / "policy.safetensors").items():
        assert torch.equal(policy.state_dict()[name], weight)


def test_nothing_in_a_checkpoint_is_a_pickle(agent: PPO, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, agent)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {"policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".safetensors":  # a length, and a JSON header of that length
            size = int.from_bytes(data[:8], "little")
            json.loads(data[8 : 8 + size])
        else:
            json.loads(data)
        assert not data.startswith((b"PK", b"\x80")), path


def test_no_loader_can_unpickle(
    agent: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    folder = save_checkpoint(tmp_path, agent)
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    load_agent(folder, agent)


@pytest.mark.parametrize("writer", ["save_model", "save_file", "write_json"])
def test_a_crash_while_writing_leaves_the_last_checkpoint(
    learner: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    first = save_checkpoint(tmp_path, learner)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    real = getattr(checkpoints, writer)

    def half_written(*arguments: Any) -> None:
        for argument in arguments:
            if isinstance(argument, str | Path):
                Path(argument).write_bytes(b"half")
        raise OSError("no space left on device")

    learner.learn(128, reset_num_timesteps=False)
    monkeypatch.setattr(checkpoints, writer, half_written)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, learner)
    assert [path.name for path in tmp_path.glob("step_*")] == [first.name]
    assert find_checkpoint(tmp_path, "last") == first

    monkeypatch.setattr(checkpoints, writer, real)
    second = save_checkpoint(tmp_path, learner)  # over what the crash left
    assert find_checkpoint(tmp_path, "last") == second
    assert not list(tmp_path.glob(".*"))
    load_agent(first, learner)
    assert same(before, learner.policy.state_dict())


def test_a_saved_checkpoint_is_not_written_again(agent: PPO, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, agent)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    save_checkpoint(tmp_path, agent, best=0.5)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert load_index(tmp_path) == {"last": folder.name, "best": folder.name, "best_score": 0.5}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change_state(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


NOT_WHOLE = "is missing|bytes, expected|SHA-256 differs|cannot be read|does not hold"


@pytest.mark.parametrize(
    "damage", [cut, grow, flip, Path.unlink, lambda path: path.write_bytes(b"")]
)
@pytest.mark.parametrize(
    "name", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_file_is_a_message(
    agent: PPO, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = save_checkpoint(tmp_path, agent)
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    damage(folder / name)
    with pytest.raises(ConfigError, match=NOT_WHOLE):
        load_agent(folder, agent)
    assert same(before, agent.policy.state_dict())


def resealed(folder: Path) -> None:
    """As one would who means it."""
    (folder / "manifest.json").unlink()
    write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_state(schema_version=3), "has schema version 3, this MIRL reads 1 and 2"),
        (change_state(schema_version=None), "has schema version None"),
        (change_state(schema_version=[1]), "has schema version .1., this MIRL"),
        (change_state(optimizer_groups=[]), "does not hold the state of this agent"),
        (change_state(num_timesteps="many"), "does not hold the state of this agent"),
        (change_state(windows=[1]), "does not hold the state of this agent"),
        (change_state(precision="fp8"), "does not hold the state of this agent"),
        (
            lambda folder: (folder / "state.json").write_text("[1]"),
            "should hold a JSON object, got list",
        ),
        (
            lambda folder: (folder / "state.json").write_text("[" * 10**6),
            "state.json cannot be read",
        ),
        (
            lambda folder: (folder / "state.json").write_bytes(b"\x80\x04K\x01."),
            "state.json cannot be read",
        ),
        (
            lambda folder: (folder / "policy.safetensors").write_bytes(b"PK\x03\x04" * 9),
            "does not hold the weights",
        ),
    ],
)
def test_a_checkpoint_that_was_sealed_with_what_does_not_fit_is_a_message(
    agent: PPO, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = save_checkpoint(tmp_path, agent)
    damage(folder)
    resealed(folder)
    with pytest.raises(ConfigError, match=message):
        load_agent(folder, agent)


def test_training_goes_on_from_the_newest_checkpoint_that_is_whole(tiny: Build) -> None:
    config = tiny("checkpoint_every=128", "evaluation.every=10000")
    train(config)
    checkpoints = config.run_dir / "checkpoints"
    saved = load_file(checkpoints / "step_000000512" / "policy.safetensors")
    expected = {
        name: weight.clone() for name, weight in saved.items()
    }  # load_file maps the file, which is to change
    flip(checkpoints / "step_000000512" / "policy.safetensors")
    cut(checkpoints / "step_000000384" / "state.json")
    with pytest.warns(UserWarning, match="a damaged checkpoint is passed over") as warned:
        assert train(config) == (512, True)
    assert [str(each.message).count("step_000000") for each in warned] == [1, 1]
    again = load_file(checkpoints / "step_000000512" / "policy.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in expected.items())


def test_an_index_that_is_damaged_is_made_again(tiny: Build) -> None:
    config = tiny("checkpoint_every=128", "evaluation.every=128")
    train(config)
    path = config.run_dir / "checkpoints" / "index.json"
    whole = json.loads(path.read_text())
    assert {"last", "best", "best_score"} <= set(whole)
    cut(path)
    with pytest.warns(UserWarning, match=r"index\.json cannot be read.*made again"):
        last = latest_valid_checkpoint(path.parent)
    assert last is not None
    assert last.name == "step_000000512"
    assert json.loads(path.read_text()) == whole


def test_an_index_that_is_gone_is_made_again(tiny: Build) -> None:
    config = tiny("checkpoint_every=128")
    train(config)
    (config.run_dir / "checkpoints" / "index.json").unlink()
    with pytest.warns(UserWarning, match="names no last checkpoint"):
        assert train(config) == (512, True)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step_000000128"])
def test_a_run_with_a_link_in_it_does_not_go_on(tiny: Build, tmp_path: Path, name: str) -> None:
    config = tiny("checkpoint_every=128")
    train(config)
    elsewhere = (config.run_dir / name).rename(tmp_path / "elsewhere")
    (config.run_dir / name).symlink_to(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    with pytest.raises(ConfigError, match="is a link; nothing of a run directory may be"):
        train(config)
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


def test_where_every_checkpoint_is_damaged_nothing_is_deleted(tiny: Build) -> None:
    config = tiny("total_timesteps=128")
    train(config)
    flip(config.run_dir / "checkpoints" / "step_000000128" / "policy.safetensors")
    with (
        pytest.warns(UserWarning, match="SHA-256 differs"),
        pytest.raises(
            ConfigError, match=r"no checkpoint in .* is what was written; choose another name="
        ),
    ):
        train(config)
    assert (config.run_dir / "checkpoints" / "step_000000128").exists()


def test_weights_of_another_network_are_a_message(
    agent: PPO, tiny: Build, make_agent: Agents, tmp_path: Path
) -> None:
    other = make_agent(tiny("agent.net_arch=[4]"))
    with pytest.raises(ConfigError, match="does not hold the weights of this policy"):
        load_weights(save_checkpoint(tmp_path, agent), other.policy)


def test_what_a_cut_off_run_saved_behind_its_last_checkpoint_is_forgotten(
    agent: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (100, 1000):
        monkeypatch.setattr(agent, "num_timesteps", steps)
        save_checkpoint(tmp_path, agent)
    delete_checkpoints_after(tmp_path, 100)
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_000000100"]


def test_a_policy_that_flattens_pixels_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    words = [
        "task.observation=rgb",
        "encoder=vector",
        "encoder.hidden=[4]",
        "sites=[vector]",
        "backend=gymnasium",
    ]
    sizes = [
        "agent.n_envs=2",
        "agent.n_steps=4",
        "agent.batch_size=8",
        "total_timesteps=8",
        "evaluation.episodes=1",
    ]
    config = compose_train([*words, *sizes, f"runs_dir={tmp_path}", "device=cpu", "progress=false"])
    with closing(SuiteVecEnv(config.task, 2, backend="gymnasium")) as env:
        agent = build_agent(config, env)
        directory = config.run_dir / "checkpoints"
        save_checkpoint(directory, agent)
        open_run(config.model_copy(update={"name": "elsewhere"}))
        (config.run_dir / "config.yaml").write_bytes(
            (tmp_path / "elsewhere" / "config.yaml").read_bytes()
        )
        policy, _ = load_policy(
            config.run_dir, "last", env.observation_space, env.action_space, "cpu"
        )
        observation = env.reset()
        tensors = [each.obs_to_tensor(observation)[0] for each in (agent.policy, policy)]
        expected, got = (
            each.predict_values(o) for each, o in zip((agent.policy, policy), tensors, strict=True)
        )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".", 3, None])
def test_an_index_that_points_elsewhere_is_refused(agent: PPO, tmp_path: Path, name: Any) -> None:
    save_checkpoint(tmp_path / "checkpoints", agent)
    shutil.copytree(tmp_path / "checkpoints" / "step_000000128", tmp_path / "x")
    (tmp_path / "checkpoints" / "index.json").write_text(json.dumps({"last": name}))
    with pytest.raises(ConfigError, match="'last' must name a folder beside it"):
        find_checkpoint(tmp_path / "checkpoints", "last")


@pytest.mark.parametrize("name", ["..", "", "index.json", "step_000000999"])
def test_an_index_that_points_at_no_checkpoint_finds_none(
    agent: PPO, tmp_path: Path, name: str
) -> None:
    save_checkpoint(tmp_path / "checkpoints", agent)
    (tmp_path / "checkpoints" / "index.json").write_text(json.dumps({"last": name}))
    with pytest.raises(ConfigError, match="no checkpoint 'last'"):
        find_checkpoint(tmp_path / "checkpoints", "last")


@pytest.mark.parametrize(
    ("which", "name"),
    [("last", "step_000000256"), ("128", "step_000000128"), ("00128", "step_000000128")],
)
def test_checkpoints_are_found_by_name_and_by_timesteps(
    learner: PPO, tmp_path: Path, which: str, name: str
) -> None:
    save_checkpoint(tmp_path, learner)
    save_checkpoint(tmp_path, learner.learn(128, reset_num_timesteps=False))
    assert find_checkpoint(tmp_path, which).name == name


@pytest.mark.parametrize(
    ("which", "hint"),
    [
        ("lst", "Did you mean 'last'?"),
        ("129", "Did you mean '128'?"),
        ("best", "Did you mean 'last'?"),
        ("??", "Valid: 128"),
    ],
)
def test_an_unknown_checkpoint_names_those_there_are(
    agent: PPO, tmp_path: Path, which: str, hint: str
) -> None:
    save_checkpoint(tmp_path, agent)
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(tmp_path, which)
    assert str(caught.value).startswith(f"no checkpoint '{which}' in {tmp_path}.")
    assert hint in str(caught.value)


def test_no_checkpoint_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint 'best' in .*\. It holds none\.$"):
        find_checkpoint(tmp_path, "best")


def test_the_best_checkpoint_is_kept_by_validation_success(
    tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.25, 0.75, 0.5, 0.75])  # of the two best, the later is kept

    def scripted(*_: Any, **__: Any) -> list[TaskResult]:
        success = np.arange(4) < next(rates) * 4
        return [TaskResult("goto_door", success, success.astype(float), np.full(4, 5))]

    monkeypatch.setattr("mirl.agents.callbacks.evaluation.evaluate", scripted)
    config = tiny("evaluation.every=128")
    train(config)
    assert not list(rates)
    folder = config.run_dir / "checkpoints"
    assert load_index(folder) == {
        "last": "step_000000512",
        "best": "step_000000512",
        "best_score": 0.75,
    }
    assert find_checkpoint(folder, "best").name == "step_000000512"
