"""Training of recurrent policies: against sb3-contrib, in whole runs, and what is learned."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from recall_setup import (
    MEMORIES,
    recall_envs,
)
from run_setup import adapt_at, evaluate_at, export_at
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from mirl.agents import A2C, PPO, evaluate, load_policy, train
from mirl.agents.builder import build_policy, resolve_auto
from mirl.configs.compose import compose_train
from mirl.configs.networks import (
    LstmConfig,
)
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionExtractor, FusionPolicy, RecurrentFusionPolicy

close = torch.testing.assert_close
Build = Callable[..., TrainConfig]

SIZE = 8
SHARED: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 128,
    "n_epochs": 1,
    "seed": 3,
    "device": "cpu",
    "ent_coef": 0.01,
}
NETWORKS: dict[str, Any] = {"net_arch": [16], "share_features_extractor": False}
RUN = ("task=memory_s7", "memory=mi_lstm", "memory.size=8", "total_timesteps=256")
LEARNING: dict[str, Any] = {
    "n_steps": 15,
    "learning_rate": 3e-3,
    "gamma": 0.9,
    "ent_coef": 0.01,
    "seed": 0,
}
MINIBATCHES = {"batch_size": 240, "n_epochs": 4}


def build_both(**options: Any) -> tuple[PPO, RecurrentPPO]:
    """Build our agent and sb3-contrib's, with the same weights."""
    shared, envs = {**SHARED, **options}, [recall_envs(truncate=True) for _ in range(2)]
    of_ours = {**NETWORKS, "sites": ("vector",), "memory": LstmConfig(size=SIZE, normalize=False)}
    of_theirs = {**NETWORKS, "features_extractor_class": FusionExtractor, "lstm_hidden_size": SIZE}
    ours = PPO(RecurrentFusionPolicy, envs[0], policy_kwargs=of_ours, **shared)
    theirs = RecurrentPPO("MultiInputLstmPolicy", envs[1], policy_kwargs=of_theirs, **shared)
    names = set(theirs.policy.state_dict())
    assert names == {contrib_name(name) for name in ours.policy.state_dict()}
    ours.policy.load_state_dict(
        {n: theirs.policy.state_dict()[contrib_name(n)] for n in ours.policy.state_dict()}
    )
    return ours, theirs


def contrib_name(name: str) -> str:
    """Return sb3-contrib's name of one of our weights."""
    for our_part, their_part in (
        ("critic_core.network", "lstm_critic"),
        ("core.network", "lstm_actor"),
        ("action_net.linear", "action_net"),
        ("value_net.linear", "value_net"),
    ):
        name = name.replace(our_part, their_part)
    return name


def run_iteration(model: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Run one iteration and return its losses and gradients."""
    update, step, losses, gradients = (
        model.train,
        model.policy.optimizer.step,
        dict[str, float](),
        dict[str, Tensor](),
    )

    def noted_update() -> None:
        update()
        losses.update(
            {
                name: float(value)
                for name, value in model.logger.name_to_value.items()
                if "train/" in name
            }
        )

    def noted_step() -> None:
        gradients.update({n: weight.grad.clone() for n, weight in model.policy.named_parameters()})
        step()

    model.train, model.policy.optimizer.step = noted_update, noted_step
    torch.manual_seed(0)  # the actions
    model.learn(model.n_steps * model.n_envs)
    return losses, gradients


@pytest.mark.parametrize(
    "options", [{}, {"gae_lambda": 0.5, "gamma": 0.9}, {"normalize_advantage": False}], ids=str
)
def test_gradients_match_recurrent_ppo(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Losses and gradients equal those of sb3-contrib's RecurrentPPO."""
    # RecurrentPPO starts its minibatches at a random place, inside a sequence
    monkeypatch.setattr(np.random, "randint", lambda *_: 0)
    ours, theirs = build_both(**options)
    our_losses, our_gradients = run_iteration(ours)
    their_losses, their_gradients = run_iteration(theirs)
    assert ours.rollout_buffer.episode_starts[1:].any()
    close(our_losses, their_losses, rtol=1e-5, atol=1e-5)
    close(
        {contrib_name(n): g for n, g in our_gradients.items()},
        their_gradients,
        rtol=1e-5,
        atol=1e-5,
    )


def test_finished_environments_keep_no_state() -> None:
    """Evaluation drops the hidden states of environments that have finished."""
    config = compose_train(
        [
            *RUN,
            "task=MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
            "encoder.features_dim=16",
            "context.dim=8",
        ]
    )
    suite, seed, episodes = config.task, 5, 7
    with closing(SuiteVecEnv(suite, 3, seed=seed, seed_split="test")) as env:
        torch.manual_seed(2)
        resolved = resolve_auto(config, env.observation_space)
        policy = build_policy(resolved, env.observation_space, env.action_space)
        for weight in policy.parameters():
            weight.data.mul_(3.0)  # so that the hidden state decides
        [result] = evaluate(policy, env, episodes=episodes, seed=seed, deterministic=True)
    quota, lengths = [3, 2, 2], [[], [], []]
    with closing(SuiteVecEnv(suite, 3, seed=seed, seed_split="test")) as env:
        env.seed(seed)
        observation, state, starts = env.reset(), None, np.ones(3, np.bool_)
        while any(len(done) < most for done, most in zip(lengths, quota, strict=True)):
            actions, state = policy.predict(observation, state, starts, deterministic=True)
            observation, _, starts, infos = env.step(actions)
            for env_index in np.flatnonzero(starts):
                lengths[env_index].append(infos[env_index]["episode"]["l"])
    expected = [length for done, most in zip(lengths, quota, strict=True) for length in done[:most]]
    assert result.lengths.tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_recurrent_run_is_evaluated(tiny: Build, backend: str) -> None:
    """A run with a memory is trained and evaluated."""
    config = tiny(*RUN, f"backend={backend}", "agent.sequence_length=16", "agent.burn_in=4")
    assert config.run_name == "memory_s7-mi_lstm-ppo-seed0"
    train(config)
    results, written = evaluate_at(
        EvalConfig(run=config.run_dir, episodes=4, checkpoint="last", gif=True)
    )
    assert len(results[0].success) == 4
    assert written[1].suffix == ".gif"
    with closing(SuiteVecEnv(config.task, 2)) as env:
        policy = load_policy(config.run_dir, "last", "cpu")
        _, state = policy.predict(env.reset())
    assert state[0].shape == (2, 16)


def test_recurrent_run_is_adapted_and_exported(tiny: Build) -> None:
    """A run with a memory can be adapted, and exported for one mission."""
    config = tiny(*RUN, "agent.sequence_length=16", "agent.burn_in=4")
    train(config)
    few = {
        "run": config.run_dir,
        "episodes": 4,
        "adapt": "network",
        "task": "memory_s7",
        "adapt_episodes": (1,),
    }
    [(_, curve, _)] = adapt_at(EvalConfig(**few))
    assert [point.episodes >= least for point, least in zip(curve, (0, 1), strict=True)] == [
        True,
        True,
    ]
    mission = "go to the matching object at the end of the hallway"
    export = export_at(EvalConfig(run=config.run_dir, export=mission))
    assert export.check.episode_equal_actions == 1


def success_after(model: Any, timesteps: int) -> float:
    """Train, and return the success rate."""
    model.learn(timesteps)
    success, _ = evaluate_policy(model, recall_envs(), n_eval_episodes=200, warn=False)
    return float(np.mean(success))


@pytest.mark.learning
@pytest.mark.parametrize("memory", MEMORIES)
def test_ppo_recalls(memory: str) -> None:
    policy_kwargs = {"memory": memory, "sites": ("vector", "heads")}
    model = PPO(
        RecurrentFusionPolicy,
        recall_envs(64),
        policy_kwargs=policy_kwargs,
        **LEARNING,
        **MINIBATCHES,
    )
    assert success_after(model, 50_000) > 0.95


@pytest.mark.learning
def test_a2c_recalls() -> None:
    policy_kwargs = {"memory": "lstm", "sites": ("vector", "heads")}
    model = A2C(RecurrentFusionPolicy, recall_envs(64), policy_kwargs=policy_kwargs, **LEARNING)
    assert success_after(model, 200_000) > 0.95


@pytest.mark.learning
def test_without_memory_nothing_is_recalled() -> None:
    model = PPO(FusionPolicy, recall_envs(64), **LEARNING, **MINIBATCHES)
    assert success_after(model, 50_000) < 0.65
