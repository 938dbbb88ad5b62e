"""Runs of SAC, TD3, TQC and DQN: built, logged, saved, stopped, resumed and evaluated."""

import copy
import csv
import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from killing import assert_kills_change_nothing
from nested_states import same
from off_policy_setup import (
    LIMIT,
    make_agent_fixture,  # noqa: F401  (a fixture)
    tiny_fixture,  # noqa: F401  (a fixture)
)
from run_setup import checkpoint_of, resolve
from safetensors.torch import load_file
from sb3_contrib import TQC
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from toy_goal_envs import FlipGoalEnv

from mirl.agents import evaluate, load_policy, train
from mirl.agents import training as training_module
from mirl.agents.builder import build_policy
from mirl.agents.faults import NonFiniteError
from mirl.agents.off_policy import MaskedDQN
from mirl.agents.on_policy.rollback import are_finite
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.agents.runs.replay_buffer import REPLAY_BUFFER
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

KINDS: dict[str, type[OffPolicyAlgorithm]] = {"sac": SAC, "td3": TD3, "tqc": TQC, "dqn": DQN}
Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], Any]


# ----------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("kind", KINDS)
def test_options_reach_sb3_algorithms(tiny: Build, make_agent: Agents, kind: str) -> None:
    """The algorithms are SB3's own, with the options of the configuration."""
    words = (
        "agent.learning_rate=0.002",
        "agent.tau=0.03",
        "agent.gamma=0.9",
        "agent.train_freq=2",
        "seed=3",
    )
    agent = make_agent(tiny(kind, *words, "agent.gradient_steps=4"))
    assert type(agent) is KINDS[kind]
    assert (agent.learning_rate, agent.tau, agent.gamma, agent.seed) == (0.002, 0.03, 0.9, 3)
    assert (
        agent.train_freq.frequency,
        agent.gradient_steps,
        agent.batch_size,
        agent.learning_starts,
    ) == (2, 4, 16, 20)


def test_options_of_single_algorithms(tiny: Build, make_agent: Agents) -> None:
    """Options that only one algorithm has reach it."""
    assert make_agent(tiny("sac", "agent.ent_coef=0.3")).ent_coef_tensor == pytest.approx(0.3)
    td3 = make_agent(tiny("td3", "agent.action_noise=0.4", "agent.policy_delay=3"))
    assert td3.policy_delay == 3
    np.testing.assert_array_equal(td3.action_noise._sigma, [0.4])
    assert make_agent(tiny("td3", "agent.action_noise=0")).action_noise is None
    tqc = make_agent(
        tiny("tqc", "agent.n_critics=3", "agent.n_quantiles=7", "agent.top_quantiles_to_drop=1")
    )
    assert (tqc.critic.n_critics, tqc.critic.n_quantiles, tqc.top_quantiles_to_drop_per_net) == (
        3,
        7,
        1,
    )
    dqn = make_agent(
        tiny("dqn", "agent.exploration_fraction=0.5", "agent.exploration_final_eps=0.2")
    )
    assert (dqn.exploration_fraction, dqn.exploration_final_eps) == (0.5, 0.2)


@pytest.mark.parametrize("kind", ["sac", "td3", "tqc"])
def test_critics_have_their_own_rate(tiny: Build, make_agent: Agents, kind: str) -> None:
    """The critics' optimizer has a rate of its own, and all others the common one."""
    words = ("agent.learning_rate=0.002", "agent.critic_learning_rate=0.01")
    agent = make_agent(tiny(kind, *words))
    assert isinstance(agent, KINDS[kind])
    agent.learn(40)
    rates = {}
    for name, optimizer in optimizers(agent).items():
        rates[name] = optimizer.param_groups[0]["lr"]
    assert rates.pop("critic") == 0.01
    assert set(rates.values()) == {0.002}


def test_dqn_target_interval_covers_environments(tiny: Build, make_agent: Agents) -> None:
    """DQN with several environments does not warn about its target network."""
    assert make_agent(tiny("dqn", "agent.n_envs=3")).target_update_interval == 3


def test_too_many_dropped_quantiles(tiny: Build, make_agent: Agents) -> None:
    """Dropping all quantiles is rejected."""
    with pytest.raises(ConfigError, match=r"must leave some of agent\.n_quantiles=2, got 2"):
        make_agent(tiny("tqc", "agent.n_quantiles=2", "agent.top_quantiles_to_drop=2"))


@pytest.mark.parametrize("her", [True, False])
def test_her_is_optional(tiny: Build, make_agent: Agents, her: bool) -> None:
    """Goals are relabeled if the option says so."""
    words = ("agent.n_sampled_goal=3", "agent.goal_selection_strategy=final")
    buffer = make_agent(tiny("sac", f"agent.her={her}", *words)).replay_buffer
    assert type(buffer) is (HerReplayBuffer if her else DictReplayBuffer)
    if isinstance(buffer, HerReplayBuffer):
        assert (buffer.n_sampled_goal, buffer.goal_selection_strategy.name) == (3, "FINAL")


def test_task_without_goals_has_plain_buffer(make_agent: Agents, tmp_path: Path) -> None:
    """A task without goals has a plain replay buffer."""
    words = [
        "agent=dqn",
        "task=MiniGrid-GoToDoor-5x5-v0",
        "agent.buffer_size=50",
        "device=cpu",
        f"runs_dir={tmp_path}",
    ]
    assert type(make_agent(compose_train(words)).replay_buffer) is DictReplayBuffer


def test_replay_buffer_fits_the_run(tiny: Build, make_agent: Agents) -> None:
    """The replay buffer is no larger than the run."""
    assert make_agent(tiny("sac", "agent.n_envs=2")).replay_buffer.buffer_size == (80 + 2) // 2
    assert make_agent(tiny("sac", "agent.buffer_size=30")).replay_buffer.buffer_size == 30


@pytest.mark.parametrize("kind", ["sac", "td3", "tqc"])
def test_continuous_algorithms_reject_discrete_actions(
    tiny: Build, make_agent: Agents, kind: str
) -> None:
    words = "task.tasks=[{name: lever, env_id: ToyGoalLever-v0, success: info}]"
    with pytest.raises(
        ConfigError, match=rf"agent={kind} takes continuous actions, .*Discrete\(2\); use agent=dqn"
    ):
        make_agent(tiny(kind, "task.name=lever", words))


def test_dqn_rejects_continuous_actions(tiny: Build, make_agent: Agents) -> None:
    words = "task.tasks=[{name: reach, env_id: ToyGoalReach-v0, success: info}]"
    with pytest.raises(
        ConfigError,
        match=r"agent=dqn takes discrete actions, .*Box.*; use agent=sac, tqc, td3 or ppo",
    ):
        make_agent(tiny("dqn", "task.name=reach", words))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_learning_starts_after_first_episode(tiny: Build, make_agent: Agents, n_envs: int) -> None:
    """Learning starts once an episode can be relabeled."""
    least = n_envs * (LIMIT - 1)  # SB3 begins when more timesteps are over
    make_agent(tiny("sac", f"agent.n_envs={n_envs}", f"agent.learning_starts={least}")).learn(40)
    config = tiny("sac", f"agent.n_envs={n_envs}", f"agent.learning_starts={least - 1}")
    with pytest.raises(
        ConfigError, match=rf"agent\.learning_starts={LIMIT * n_envs}, got {least - 1}"
    ):
        make_agent(config)
    without = config.model_copy(update={"agent": config.agent.model_copy(update={"her": False})})
    make_agent(without).learn(40)


SUITE = (
    "task.name=two",
    "task.tasks=[{name: near, env_id: ToyGoalReach-v0, success: info}, "
    "{name: far, env_id: ToyGoalReach-v0, success: info}]",
    "agent.n_envs=2",
)


def test_several_tasks_train_without_relabelling(tiny: Build) -> None:
    config = tiny("sac", *SUITE, "agent.her=false", "context=task_id", "sampling=uniform")
    assert train(config).finished
    [row] = [row for row in rows_of(config) if row["train/critic_loss"]]
    assert {f"task/{task}/success_rate" for task in ("near", "far")} <= {
        key for key, value in row.items() if value
    }


def test_reward_beyond_goals_is_rejected(tmp_path: Path) -> None:
    """A reward that goals alone do not determine is rejected before the run begins."""
    suite = "task.tasks=[{name: reach, env_id: MIRL/ReachCell-v0, kwargs: {reward: time}}]"
    words = [
        "agent=dqn",
        "task.name=reach",
        suite,
        "context=goal",
        f"runs_dir={tmp_path}",
        "device=cpu",
    ]
    config = compose_train(words)
    with pytest.raises(ConfigError, match="use reward=sparse"):
        train(config)
    assert not config.run_dir.exists()


def test_her_rejects_several_tasks(tiny: Build, make_agent: Agents) -> None:
    """Relabelling over several tasks is rejected."""
    with pytest.raises(ConfigError, match=r"suite 'two' has 2 tasks; use agent\.her=false"):
        make_agent(tiny("sac", *SUITE))


def test_dqn_masks_differing_action_counts(tiny: Build, make_agent: Agents) -> None:
    """DQN takes available actions only where tasks have different numbers of them."""
    gym.register(
        "ToyThree-v0", lambda: gym.wrappers.TransformAction(FlipGoalEnv(), int, spaces.Discrete(3))
    )
    words = "task.tasks=[{name: two, env_id: ToyFlip-v0}, {name: three, env_id: ToyThree-v0}]"
    config = tiny(
        "dqn", "task.name=both", words, "agent.n_envs=2", "context=task_id", "sites=[heads]"
    )
    agent = make_agent(config)
    assert isinstance(agent, MaskedDQN)
    agent.learn(60)  # the environment raises on an unavailable action
    assert are_finite(agent.policy)
    observation = agent.env.reset()
    for rate in (0.0, 1.0):
        agent.exploration_rate = rate
        chosen = [agent.predict(observation)[0] for _ in range(20)]
        assert max(actions[0] for actions in chosen) < 2
    single = {key: values[0] for key, values in observation.items()}
    assert agent.predict(single)[0].shape == ()


def test_envpool_has_no_goals(tiny: Build) -> None:
    config = tiny("sac", "backend=envpool")
    with pytest.raises(ConfigError, match="backend=envpool cannot step suite"):
        train(config)
    assert not config.run_dir.exists()


# ---------------------------------------------------------------------------------------------- log


def rows_of(config: TrainConfig) -> list[dict[str, str]]:
    with (config.run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("log_every", "steps"), [(1, [20, 40, 60, 80, 90]), (2, [40, 80, 90])])
def test_rows_come_at_intervals(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, log_every: int, steps: list[int]
) -> None:
    """A row is written at every interval and at the end."""
    monkeypatch.setattr(training_module, "TIMESTEPS_PER_ROW", 20)
    config = tiny("sac", f"log_every={log_every}", "total_timesteps=90")
    train(config)
    rows = [row for row in rows_of(config) if row["speed/steps_per_second"]]
    assert [int(row["time/total_timesteps"]) for row in rows] == steps
    assert all(float(row["speed/steps_per_second"]) > 0 for row in rows)
    assert [bool(row["train/critic_loss"]) for row in rows] == [step > 20 for step in steps]


def test_success_rate_counts_all_episodes(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The success rate is that of the episodes so far."""
    ended: list[dict[str, Any]] = []
    step_wait = SuiteVecEnv.step_wait

    def recorded(env: SuiteVecEnv) -> Any:
        result = step_wait(env)
        if env.seed_split == "train":
            ended.extend(info for info in result[3] if "episode" in info)
        return result

    monkeypatch.setattr(SuiteVecEnv, "step_wait", recorded)
    config = tiny("sac", "total_timesteps=200")
    train(config)
    [row] = [row for row in rows_of(config) if row["task/reach/success_rate"]]
    assert len(ended) == 200 / LIMIT
    assert float(row["task/reach/success_rate"]) == pytest.approx(
        np.mean([info["is_success"] for info in ended])
    )
    assert float(row["task/reach/return"]) == pytest.approx(
        np.mean([info["episode"]["r"] for info in ended])
    )


# -------------------------------------------------------------------------------------- checkpoints


def optimizers(agent: Any) -> dict[str, Any]:
    parts = {
        "policy": agent.policy,
        **{name: getattr(agent, name, None) for name in ("actor", "critic")},
    }
    found = {name: part.optimizer for name, part in parts.items() if hasattr(part, "optimizer")}
    return found | (
        {"entropy": agent.ent_coef_optimizer} if hasattr(agent, "ent_coef_optimizer") else {}
    )


@pytest.mark.parametrize("her", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_loaded_agent_equals_saved(
    tiny: Build, make_agent: Agents, tmp_path: Path, kind: str, her: bool
) -> None:
    words = (f"agent.her={her}", "agent.n_envs=2")
    saved, loaded = make_agent(tiny(kind, *words)), make_agent(tiny(kind, *words, "seed=1"))
    saved.learn(40)  # four whole episodes in each environment
    assert not same(saved.policy.state_dict(), loaded.policy.state_dict())
    CheckpointDirectory(tmp_path).save(saved).load_agent(loaded)
    assert same(saved.policy.state_dict(), loaded.policy.state_dict())
    assert len(optimizers(saved)) == {"sac": 3, "td3": 2, "tqc": 3, "dqn": 1}[kind]
    for name, optimizer in optimizers(saved).items():
        assert optimizer.state_dict()["state"]
        assert same(optimizer.state_dict(), optimizers(loaded)[name].state_dict()), name
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "log_ent_coef"):
        assert getattr(loaded, name, None) == getattr(saved, name, None), name
    assert saved._episode_num == 8
    contents = [
        {k: v for k, v in vars(agent.replay_buffer).items() if k != "env"}
        for agent in (saved, loaded)
    ]
    for name, value in contents[0].items():
        if isinstance(value, np.ndarray) and value.dtype != object:
            np.testing.assert_array_equal(contents[1][name], value, err_msg=name)
        elif isinstance(value, dict):
            for key in value:
                np.testing.assert_array_equal(contents[1][name][key], value[key])
    assert (loaded.replay_buffer.pos, loaded.replay_buffer.full) == (20, False)


def test_entropy_coefficient_keeps_learning(
    tiny: Build, make_agent: Agents, tmp_path: Path
) -> None:
    """The learned entropy coefficient still learns after loading."""
    saved, agent = make_agent(tiny("sac")), make_agent(tiny("sac"))
    CheckpointDirectory(tmp_path).save(saved.learn(40)).load_agent(agent)
    before = agent.log_ent_coef.item()
    agent.learn(20, reset_num_timesteps=False)
    assert agent.log_ent_coef.item() != before


def test_no_file_is_a_pickle(tiny: Build, make_agent: Agents, tmp_path: Path) -> None:
    folder = CheckpointDirectory(tmp_path).save(make_agent(tiny("sac")).learn(30)).folder
    optimizers = {
        f"{name}.safetensors"
        for name in ("actor.optimizer", "critic.optimizer", "ent_coef_optimizer")
    }
    others = {
        "policy.safetensors",
        "tensors.safetensors",
        REPLAY_BUFFER,
        "state.json",
        "manifest.json",
    }
    assert {path.name for path in folder.iterdir()} == optimizers | others
    for path in folder.glob("*.safetensors"):  # a length, and a JSON header of that length
        data = path.read_bytes()
        json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize(
    "name", [REPLAY_BUFFER, "actor.optimizer.safetensors", "tensors.safetensors"]
)
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-7])]
)
def test_damaged_file_is_rejected(
    tiny: Build, make_agent: Agents, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    agent = make_agent(tiny("sac")).learn(30)
    folder = CheckpointDirectory(tmp_path).save(agent).folder
    damage(folder / name)
    with pytest.raises(ConfigError, match=rf"{name} (is missing|has [\d,]+ bytes, expected)"):
        Checkpoint.open(folder).load_agent(agent)


# --------------------------------------------------------------------------------------------- runs


def stop_at(patch: pytest.MonkeyPatch, kind: str, step: int) -> None:
    """Send SIGINT in the update after a number of timesteps."""
    update = KINDS[kind].train

    def interrupted(agent: Any, *args: Any, **kwargs: Any) -> None:
        if agent.num_timesteps == step:
            os.kill(os.getpid(), signal.SIGINT)
        update(agent, *args, **kwargs)

    patch.setattr(KINDS[kind], "train", interrupted)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_run_resumes(tiny: Build, kind: str) -> None:
    """A run that was stopped resumes where it stopped."""
    config = tiny(kind)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, kind, 47)
        assert train(config)[:2] == (47, False)
    lines: list[str] = []
    assert train(config, lines.append)[:2] == (80, True)
    assert lines[0].startswith("Resuming at 47 of 80 timesteps on cpu (fp32) and gymnasium")
    checkpoint = checkpoint_of(config.run_dir, "last")
    assert checkpoint.name == "step_000000080"
    assert checkpoint.state["n_updates"] == 60
    assert train(config)[:2] == (80, True)  # and now there is nothing left to do


@pytest.mark.parametrize("kind", KINDS)
def test_policy_is_loaded_with_its_class(tiny: Build, make_agent: Agents, kind: str) -> None:
    """A policy is loaded with its class, ready to act."""
    config = tiny(kind)
    train(config)
    trained = make_agent(config)
    checkpoint = checkpoint_of(config.run_dir, "last")
    checkpoint.load_agent(trained)
    with closing(SuiteVecEnv(config.task, 3, seed_split="test")) as env:
        policy = load_policy(config.run_dir, "last", "cpu")
        observation = env.reset()
    assert checkpoint.name == "step_000000080"
    assert type(policy) is type(trained.policy)
    assert not policy.training
    actions = [
        each.predict(observation, deterministic=True)[0] for each in (policy, trained.policy)
    ]
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("kind", KINDS)
def test_built_policy_has_agents_shapes(tiny: Build, make_agent: Agents, kind: str) -> None:
    """A policy that is built alone has the shapes of its agent's."""
    config = tiny(kind)
    agent = make_agent(config)
    fresh = build_policy(resolve(config), agent.observation_space, agent.action_space)
    shapes = [{name: w.shape for name, w in p.state_dict().items()} for p in (agent.policy, fresh)]
    assert shapes[0] == shapes[1]


def test_best_checkpoint_is_kept(tiny: Build) -> None:
    config = tiny("dqn", "evaluation.every=40")
    train(config)
    assert checkpoint_of(config.run_dir, "best")
    evaluated = [row["time/total_timesteps"] for row in rows_of(config) if row["eval/success_rate"]]
    assert evaluated == ["40", "80"]


@pytest.mark.learning
@pytest.mark.parametrize("kind", KINDS)
def test_goal_dependent_action_is_learned(tiny: Build, make_agent: Agents, kind: str) -> None:
    """Actions that depend on the goal are learned."""
    sizes = (
        "encoder.features_dim=32",
        "agent.net_arch=[32]",
        "context.dim=16",
        "agent.batch_size=128",
    )
    explore = ("agent.exploration_fraction=0.5",) if kind == "dqn" else ()
    config = tiny(kind, *sizes, *explore, "agent.learning_starts=500", "total_timesteps=4000")
    agent = make_agent(config).learn(config.total_timesteps)
    with closing(SuiteVecEnv(config.task, 4, seed_split="test")) as env:
        [result] = evaluate(agent.policy, env, episodes=200, seed=0, deterministic=True)
    assert result.success_rate > 0.9


# ------------------------------------------------------------------------------------------- faults


def break_gradient(agent: Any, kind: str, factor: float = torch.inf) -> None:
    """Make the gradient of one weight of the critic non-finite from now on."""
    network = agent.q_net if kind == "dqn" else agent.critic
    next(network.parameters()).register_hook(lambda gradient: torch.ones_like(gradient) * factor)


@pytest.mark.parametrize(
    ("kind", "factor"), [*((kind, torch.inf) for kind in KINDS), ("sac", torch.nan), ("sac", 1e20)]
)
def test_non_finite_step_is_not_taken(
    tiny: Build, make_agent: Agents, kind: str, factor: float
) -> None:
    """A gradient step along non-finite gradients is not taken."""
    agent = make_agent(tiny(kind))
    agent.learn(30)
    break_gradient(agent, kind, factor)
    with pytest.raises(
        NonFiniteError,
        match=r"after \d+ timesteps was not taken: the gradient of '[\w.]+' \(\d+ of",
    ) as raised:
        agent.learn(30, reset_num_timesteps=False)
    assert are_finite(agent.policy)
    bad = [
        name for name, tensor in raised.value.evidence.items() if not (tensor.abs() < 1e19).all()
    ]
    assert bad
    assert all(name.startswith("gradient of ") for name in bad)
    assert {name.removeprefix("gradient of ") for name in bad} <= set(raised.value.evidence)


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_step_may_be_skipped(tiny: Build, make_agent: Agents, kind: str) -> None:
    """Training may continue without such a step."""
    agent = make_agent(tiny(kind, "on_fault=skip"))
    agent.learn(30)
    network = agent.q_net if kind == "dqn" else agent.critic
    before = copy.deepcopy(network.state_dict())
    break_gradient(agent, kind)
    with pytest.warns(UserWarning, match="training continues with the next"):
        agent.learn(30, reset_num_timesteps=False)
    assert agent.num_timesteps == 60
    assert same(before, dict(network.state_dict()))


def test_run_saves_the_evidence(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("sac")
    learn = SAC.learn

    def broken(agent: SAC, *args: Any, **kwargs: Any) -> SAC:
        break_gradient(agent, "sac")
        return learn(agent, *args, **kwargs)

    monkeypatch.setattr(SAC, "learn", broken)
    with pytest.raises(RunError, match=r"was not taken.* The tensors that caused it: .*step_"):
        train(config)
    [folder] = (config.run_dir / "faults").iterdir()
    assert "critic." in json.loads((folder / "fault.json").read_text())["message"]
    assert load_file(folder / "evidence.safetensors")


# ----------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_ends_bit_identical(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A run that was killed several times ends like one that was not."""
    often = ("checkpoint_every=20", "evaluation.every=50", "total_timesteps=160")
    assert_kills_change_nothing(
        monkeypatch, *(tiny(kind, *often, f"name={name}") for name in ("whole", "cut"))
    )
