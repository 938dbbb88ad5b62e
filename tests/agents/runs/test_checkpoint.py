"""Checkpoints hold everything, appear completely or not at all, and run no code."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from nested_states import same
from run_setup import resolve

from mirl.agents.builder import build_agent
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs import checkpoint as checkpoint_module
from mirl.agents.runs.atomic_files import write_manifest
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


@pytest.fixture(scope="module")
def agent(tiny_in: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPO | A2C]:
    """Yield an agent whose optimizer has a state; tests do not change it."""
    config = tiny_in(tmp_path_factory.mktemp("unused"))
    env = SuiteVecEnv(config.task, config.agent.n_envs, seed=config.seed)
    yield build_agent(resolve(config), env).learn(128)
    env.close()


@pytest.fixture
def learner(tiny: Build, make_agent: Agents) -> PPO | A2C:
    """Return an agent after one iteration that may be trained further."""
    return make_agent(tiny()).learn(128)


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    """Return an empty directory of checkpoints."""
    return CheckpointDirectory(tmp_path)


# ------------------------------------------------------------------------------------ save and load


@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("kind", ["ppo", "a2c"])
def test_loaded_agent_equals_saved(
    tiny: Build, make_agent: Agents, directory: CheckpointDirectory, kind: str, shared: str
) -> None:
    words = (f"agent={kind}", f"agent.share_features_extractor={shared}")
    saved = make_agent(tiny(*words))
    loaded = make_agent(tiny(*words, "seed=1"))
    saved.learn(256)
    assert not same(saved.policy.state_dict(), loaded.policy.state_dict())
    directory.save(saved).load_agent(loaded)
    assert same(saved.policy.state_dict(), loaded.policy.state_dict())
    assert saved.policy.optimizer.state_dict()["state"]
    assert same(saved.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    assert (loaded.num_timesteps, loaded._n_updates) == (256, saved._n_updates)


def test_loaded_agent_takes_same_gradient_step(
    tiny: Build, make_agent: Agents, directory: CheckpointDirectory
) -> None:
    saved = make_agent(tiny()).learn(128)
    loaded = make_agent(tiny())
    directory.save(saved).load_agent(loaded)
    for agent in (saved, loaded):
        agent.policy.optimizer.zero_grad()
        sum(parameter.sum() for parameter in agent.policy.parameters()).backward()
        agent.policy.optimizer.step()
    assert same(saved.policy.state_dict(), loaded.policy.state_dict())


def test_checkpoint_holds_task_sampling_state(tiny: Build, directory: CheckpointDirectory) -> None:
    """The state that decides which task an environment plays next is part of a checkpoint."""
    tasks = (
        "[{name: a, env_id: MiniGrid-GoToDoor-5x5-v0}, {name: b, env_id: MiniGrid-GoToDoor-6x6-v0}]"
    )
    config = resolve(tiny("task.name=two", f"task.tasks={tasks}", "sampling=lowest_success"))
    envs = [SuiteVecEnv(config.task, 4, sampling=config.sampling, seed=seed) for seed in (0, 1)]
    with closing(envs[0]), closing(envs[1]):
        saved, loaded = (build_agent(config, env) for env in envs)
        saved.learn(512)
        assert envs[0].sampling_state() != envs[1].sampling_state()
        directory.save(saved).load_agent(loaded)
        assert envs[0].sampling_state() == envs[1].sampling_state()


def test_checkpoint_holds_the_spaces(agent: PPO, directory: CheckpointDirectory) -> None:
    """A checkpoint holds the spaces that the policy was trained on, with the order of the keys."""
    spaces = directory.save(agent).spaces()
    assert spaces is not None
    assert spaces.observation == agent.observation_space
    assert list(spaces.observation) == list(agent.observation_space)  # type: ignore[call-overload]
    assert spaces.action == agent.action_space


def test_other_network_is_rejected(
    agent: PPO, tiny: Build, make_agent: Agents, directory: CheckpointDirectory
) -> None:
    other = make_agent(tiny("agent.net_arch=[4]"))
    with pytest.raises(ConfigError, match="does not hold the weights of this policy"):
        directory.save(agent).load_weights(other.policy)


def test_missing_weight_is_rejected(agent: PPO, directory: CheckpointDirectory) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = directory.save(agent)
    weights = load_file(checkpoint.policy_path)
    name = next(iter(weights))
    del weights[name]
    save_file(weights, checkpoint.policy_path)
    reseal(checkpoint.folder)
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    with pytest.raises(ConfigError, match=f"the weight '{name}' is missing"):
        Checkpoint.open(checkpoint.folder).load_weights(agent.policy)
    assert same(before, agent.policy.state_dict())


# ----------------------------------------------------------------------------------------- security


def test_no_file_is_a_pickle(agent: PPO, directory: CheckpointDirectory) -> None:
    checkpoint = directory.save(agent)
    files = [path for path in directory.path.rglob("*") if path.is_file()]
    names = {"policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in checkpoint.folder.iterdir()} == names
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".safetensors":  # a length, and a JSON header of that length
            size = int.from_bytes(data[:8], "little")
            json.loads(data[8 : 8 + size])
        else:
            json.loads(data)
        assert not data.startswith((b"PK", b"\x80")), path


def test_loading_never_unpickles(
    agent: PPO, directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    checkpoint = directory.save(agent)
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    checkpoint.load_agent(agent)


# ------------------------------------------------------------------------------------ atomic writes


@pytest.mark.parametrize("writer", ["save_model", "save_file", "write_json"])
def test_crash_while_writing_keeps_last(
    learner: PPO, directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """A crash while a checkpoint is written leaves the last one, and the next save succeeds."""
    first = directory.save(learner)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    real = getattr(checkpoint_module, writer)

    def half_written(*arguments: Any) -> None:
        for argument in arguments:
            if isinstance(argument, str | Path):
                Path(argument).write_bytes(b"half")
        raise OSError("no space left on device")

    learner.learn(128, reset_num_timesteps=False)
    monkeypatch.setattr(checkpoint_module, writer, half_written)
    with pytest.raises(OSError, match="no space left"):
        directory.save(learner)
    assert [path.name for path in directory.path.glob("step_*")] == [first.name]
    assert directory.find("last").folder == first.folder

    monkeypatch.setattr(checkpoint_module, writer, real)
    second = directory.save(learner)  # over what the crash left
    assert directory.find("last").folder == second.folder
    assert not list(directory.path.glob(".*"))
    Checkpoint.open(first.folder).load_agent(learner)
    assert same(before, learner.policy.state_dict())


# ------------------------------------------------------------------------------------ damaged files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_state(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def write_file(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def reseal(folder: Path) -> None:
    """Write a manifest that fits the damaged files, as an attacker would."""
    (folder / "manifest.json").unlink()
    write_manifest(folder)


DAMAGED = "is missing|bytes, expected|SHA-256 differs|cannot be read|does not hold"


@pytest.mark.parametrize("damage", [cut, grow, flip, Path.unlink, empty])
@pytest.mark.parametrize(
    "name", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_damaged_file_is_rejected(
    agent: PPO, directory: CheckpointDirectory, name: str, damage: Callable[[Path], None]
) -> None:
    folder = directory.save(agent).folder
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    damage(folder / name)
    with pytest.raises(ConfigError, match=DAMAGED):
        Checkpoint.open(folder).load_agent(agent)
    assert same(before, agent.policy.state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_state(schema_version=4), "has schema version 4, expected one from 1 to 3"),
        (change_state(schema_version=None), "has schema version None"),
        (change_state(schema_version=[1]), "has schema version .1., expected"),
        (change_state(optimizer_groups=[]), "does not hold the state of this agent"),
        (change_state(num_timesteps="many"), "does not hold the state of this agent"),
        (change_state(num_timesteps=-1), "its num_timesteps must be a number of at least 0"),
        (change_state(n_updates=float("inf")), "its n_updates must be a number of at least 0"),
        (change_state(windows=[1]), "does not hold the state of this agent"),
        (change_state(precision="fp8"), "does not hold the state of this agent"),
        (write_file("state.json", b"[1]"), "should hold a JSON object, got list"),
        (write_file("state.json", b"[" * 10**6), "state.json cannot be read"),
        (write_file("state.json", b"\x80\x04K\x01."), "state.json cannot be read"),
        (write_file("policy.safetensors", b"PK\x03\x04" * 9), "does not hold the weights"),
    ],
)
def test_resealed_damage_is_rejected(
    agent: PPO, directory: CheckpointDirectory, damage: Callable[[Path], None], message: str
) -> None:
    """Files that do not fit are rejected although their manifest fits them."""
    folder = directory.save(agent).folder
    damage(folder)
    reseal(folder)
    with pytest.raises(ConfigError, match=message):
        Checkpoint.open(folder).load_agent(agent)


def test_damaged_spaces_are_rejected(agent: PPO, directory: CheckpointDirectory) -> None:
    folder = directory.save(agent).folder
    change_state(observation_space={"kind": "Box"})(folder)
    reseal(folder)
    with pytest.raises(ConfigError, match=r"state\.json: it does not describe a space"):
        Checkpoint.open(folder).spaces()
