"""Policies are loaded ready to act, without an environment."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from gymnasium import spaces
from run_setup import start_run
from safetensors.torch import load_file

from mirl.agents import load_policy, train
from mirl.agents.builder import build_agent
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


def test_policy_is_loaded_ready_to_act(tiny: Build, make_agent: Agents) -> None:
    config = tiny("total_timesteps=128")
    checkpoint = train(config).checkpoint
    policy = load_policy(config.run_dir, "last", "cpu")
    assert checkpoint.name == "step_000000128"
    assert not policy.training
    for name, weight in load_file(checkpoint.policy_path).items():
        assert torch.equal(policy.state_dict()[name], weight)
    assert policy.observation_space == make_agent(config).observation_space


def test_load_policy_needs_no_environment(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spaces come from the checkpoint: no environment is created."""
    config = tiny("total_timesteps=128")
    train(config)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an environment was created")

    monkeypatch.setattr("mirl.envs.suite_spaces.make_env", refuse)
    monkeypatch.setattr("mirl.envs.env_attributes.make_env", refuse)
    policy = load_policy(str(config.run_dir))
    assert not policy.training


def test_other_spaces_are_rejected(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("total_timesteps=128")
    result = train(config)
    with closing(SuiteVecEnv(config.task, 1)) as env:
        assert isinstance(env.observation_space, spaces.Dict)
        changed = spaces.Dict({**env.observation_space.spaces, "direction": spaces.Discrete(5)})
        monkeypatch.setattr(env, "observation_space", changed)
        with pytest.raises(ConfigError, match=r"other spaces .* differ in observation 'direction'"):
            restore_policy(result.run.config, result.checkpoint, "cpu", env)


def test_flattened_pixels_load_as_trained(tmp_path: Path) -> None:
    """A policy that flattens pixels is loaded with the axes that it was trained with."""
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
    run = start_run(config)
    with closing(SuiteVecEnv(config.task, 2, backend="gymnasium")) as env:
        agent = build_agent(run.config, env)
        checkpoint = run.save_checkpoint(agent)
        policies = [
            agent.policy,
            load_policy(config.run_dir, "last", "cpu"),
            restore_policy(run.config, checkpoint, "cpu", env),
        ]
        observation = env.reset()
    expected, *loaded = [
        policy.predict_values(policy.obs_to_tensor(observation)[0])  # type: ignore[operator]
        for policy in policies
    ]
    for values in loaded:
        torch.testing.assert_close(values, expected)


def test_unknown_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a run directory"):
        RunDirectory.open(tmp_path)
