"""Rollouts: truncated episodes, and hidden states from one timestep to the next."""

from typing import Any

import numpy as np
import pytest
import torch
from recall_setup import (
    MEMORIES,
    build_recurrent_agent,
    evaluate_minibatches,
)
from stable_baselines3.common.callbacks import (
    BaseCallback,
)
from stable_baselines3.common.env_util import make_vec_env as sb3_vec_env

from mirl.agents import PPO
from mirl.agents.on_policy.rollout import Truncation, bootstrap_values, find_truncations
from mirl.policies import grouped_matmul

close = torch.testing.assert_close


class StopInThirdTimestep(BaseCallback):
    """A callback that stops the rollout in its third timestep."""

    def _on_step(self) -> bool:
        return self.n_calls < 3


def test_stopped_rollout_keeps_hidden_state() -> None:
    """After a stopped rollout the hidden state is that before the current observation."""
    model = build_recurrent_agent(n_steps=8, batch_size=32, sequence_length=1)
    model.learn(32, callback=StopInThirdTimestep())
    close(model.hidden_state, model.rollout_buffer.hidden_states[2])  # of the third timestep


def test_hidden_state_continues_between_rollouts() -> None:
    """A rollout starts with the hidden states that the last one ended with."""
    model = build_recurrent_agent(n_steps=6, batch_size=24)
    model.train = lambda: None
    model.learn(6 * 4)
    left = model.hidden_state.clone()
    model.learn(6 * 4, reset_num_timesteps=False)
    close(model.rollout_buffer.hidden_states[0], left)
    assert left.abs().min() > 0
    assert not model.rollout_buffer.host_episode_starts[0].all()


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("share", [True, False], ids=["one trunk", "two trunks"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence_length": 8},
        {"sequence_length": 8, "burn_in": 5},
        {"precision": "bf16"},
        {"skip_connection": True},
        {"continuous": True, "use_sde": True, "sde_sample_freq": 4},
    ],
    ids=str,
)
def test_evaluation_matches_the_rollout(
    monkeypatch: pytest.MonkeyPatch, memory: str, share: bool, options: dict[str, Any]
) -> None:
    """The update evaluates the actions of a rollout as the rollout did."""
    # so that a minibatch computes by groups of contexts, and a timestep does not
    monkeypatch.setattr(grouped_matmul, "GROUP_OVERHEAD", 0)
    model = build_recurrent_agent(
        memory=memory,
        n_steps=32,
        batch_size=64,
        policy_kwargs={"share_features_extractor": share},
        **options,
    )
    model.train = lambda: None
    model.learn(2 * 32 * 4)
    n_samples = 0
    tolerance = 1e-2 if "precision" in options else 1e-5
    for samples, evaluation in evaluate_minibatches(model):
        close(evaluation.log_probs, samples.old_log_prob, rtol=10 * tolerance, atol=tolerance)
        close(evaluation.values, samples.old_values, rtol=10 * tolerance, atol=tolerance)
        n_samples += len(samples.actions)
    assert n_samples == 32 * 4


def test_truncations_are_found() -> None:
    """Only truncated episodes with a terminal observation are bootstrapped."""
    infos = [
        {"TimeLimit.truncated": True, "terminal_observation": np.array([1.0])},
        {"TimeLimit.truncated": False, "terminal_observation": np.array([2.0])},
        {"TimeLimit.truncated": True},
        {"TimeLimit.truncated": True, "terminal_observation": np.array([3.0])},
    ]
    states = torch.arange(8.0).view(4, 2)
    found = find_truncations(5, np.array([0, 1, 2]), infos, states)
    assert [(each.timestep, each.env_index) for each in found] == [(5, 0)]
    assert found[0].hidden_state is not None
    close(found[0].hidden_state, states[0])


def test_truncation_bootstraps_value() -> None:
    """The values of terminal observations are those of separate forward passes, as in SB3."""
    agent = PPO("MlpPolicy", sb3_vec_env("CartPole-v1", 4), n_steps=8, batch_size=32, device="cpu")
    observations = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    truncations = [Truncation(0, 0, observation, None) for observation in observations[:3]]
    with torch.no_grad():
        terminal, last = bootstrap_values(agent.policy, truncations, observations[3:], None)
        expected = agent.policy.predict_values(torch.from_numpy(observations)).flatten()
    close(torch.cat([terminal, last]), expected)
    assert last.shape == (4,)
