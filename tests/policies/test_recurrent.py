"""Recurrent policy: acting outside of training, and errors."""

from typing import Any

import numpy as np
import pytest
import torch
from recall_setup import (
    MEMORIES,
    RecallEnv,
    build_recurrent_agent,
    recall_envs,
)
from stable_baselines3 import PPO as SB3PPO

from mirl.agents import PPO
from mirl.configs.errors import ConfigError
from mirl.policies import FusionPolicy, RecurrentFusionPolicy, specialize


def test_missing_hidden_state_raises() -> None:
    """Calls that need a hidden state or a recurrent policy raise and say so."""
    with pytest.raises(ConfigError, match="sequence_length and burn_in are for a recurrent policy"):
        PPO(FusionPolicy, recall_envs(), sequence_length=8)
    with pytest.raises(ConfigError, match=r"memory=… is for mirl\.policies\.RecurrentFusionPolicy"):
        PPO(FusionPolicy, recall_envs(), policy_kwargs={"memory": "lstm"})
    with pytest.raises(TypeError, match=r"train it with mirl\.agents\.PPO or A2C"):
        SB3PPO(RecurrentFusionPolicy, recall_envs(), n_steps=16).learn(64)
    policy = build_recurrent_agent(n_steps=16).policy
    with pytest.raises(TypeError, match="expected a hidden state and got none"):
        policy.evaluate_actions({}, torch.zeros(1))
    for stateless in (policy.get_distribution, policy._predict):
        with pytest.raises(TypeError, match="expected a hidden state and got none"):
            stateless({})


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("share", [True, False], ids=["one trunk", "two trunks"])
def test_predict_matches_forward(memory: str, share: bool) -> None:
    """``predict`` acts as the rollout does."""
    model = build_recurrent_agent(
        memory=memory, n_steps=16, batch_size=64, policy_kwargs={"share_features_extractor": share}
    )
    model.train = lambda: None
    model.learn(16 * 4)
    policy, env = model.policy, recall_envs()
    env.seed(1)
    observation, state, starts = env.reset(), None, np.ones(4, np.bool_)
    hidden_state = torch.zeros(4, policy.state_dim)
    for _ in range(20):
        actions, state = policy.predict(observation, state, starts, deterministic=True)
        obs_tensor = policy.obs_to_tensor(observation)[0]
        with torch.no_grad():
            expected, _, _, hidden_state = policy(
                obs_tensor, hidden_state, torch.from_numpy(starts[None]), deterministic=True
            )
        np.testing.assert_array_equal(actions, expected.numpy())
        observation, _, starts, _ = env.step(actions)


@pytest.mark.parametrize("use_sde", [False, True])
def test_predict_clips_actions(use_sde: bool) -> None:
    """``predict`` returns actions inside the action space."""
    model, env = (
        build_recurrent_agent(n_steps=16, continuous=True, use_sde=use_sde),
        recall_envs(continuous=True),
    )
    with torch.no_grad():
        model.policy.log_std.fill_(4.0)  # samples are far outside
    if use_sde:
        model.policy.reset_noise(4)
    observation, state = env.reset(), None
    for _ in range(5):
        actions, state = model.predict(observation, state)
        assert np.abs(actions).max() == 1.0
        observation, *_ = env.step(actions)


def test_predict_takes_single_observation() -> None:
    model = build_recurrent_agent(n_steps=16)
    action, state = model.predict(RecallEnv().reset(seed=0)[0])
    assert np.shape(action) == ()
    action, state = model.predict(RecallEnv().reset(seed=0)[0], state)
    assert np.shape(action) == ()


@pytest.mark.parametrize(
    ("state", "starts", "message"),
    [
        ((), None, r"a tuple of one array \(4, 256\)"),
        (np.zeros((4, 16)), None, r"a tuple of one array \(4, 256\)"),
        ((np.zeros((4, 8)), np.zeros((4, 8))), None, r"a tuple of one array \(4, 256\)"),
        (
            None,
            np.zeros(3, np.bool_),
            r"expected episode_start for 4 environments, got shape \(3,\)",
        ),
    ],
)
def test_predict_checks_the_state(state: Any, starts: Any, message: str) -> None:
    """``predict`` rejects a state of another form and says what it expects."""
    with pytest.raises(ValueError, match=message):
        build_recurrent_agent(n_steps=16).predict(recall_envs().reset(), state, starts)


def test_recurrent_policy_is_not_specialized() -> None:
    """A recurrent policy has no form for one context alone."""
    with pytest.raises(ConfigError, match="memory=lstm has no form for one context alone"):
        specialize(build_recurrent_agent(n_steps=16).policy, 0)
