"""Minibatches of sequences, their hidden states and their burn-in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recall_setup import (
    build_recurrent_agent,
    recall_envs,
)

from mirl.agents import PPO
from mirl.configs.errors import ConfigError

close = torch.testing.assert_close


def test_burn_in_uses_current_weights() -> None:
    """The burn-in recomputes hidden states with the current weights and without gradient."""
    model = build_recurrent_agent(n_steps=32, batch_size=128, sequence_length=8, burn_in=8)
    model.train = lambda: None
    model.learn(32 * 4)
    policy, buffer = model.policy, model.rollout_buffer
    samples = buffer.full_batch()
    sequences = samples.sequences
    assert sequences.burn_in.sequences.tolist() == list(range(4, 16)), (
        "the first of each environment has none"
    )
    with torch.no_grad():
        for weight in policy.core.parameters():
            weight.mul_(1.5)
        recomputed = [buffer.hidden_states[0]]
        for begin in (
            0,
            8,
            16,
        ):  # burn-in is as long as a sequence here: it begins where the one before does
            observations, inverse = buffer._unique_observations(
                np.arange(begin * 4, (begin + 8) * 4)
            )
            features = policy.extract_features(observations).index_select(
                0, torch.from_numpy(inverse), keep_order=False
            )
            starts = torch.from_numpy(buffer.host_episode_starts[begin : begin + 8])
            recomputed.append(
                policy.run_cores(features, buffer.hidden_states[begin // 8 + 1], starts)[1]
            )
        features = policy.extract_features(samples.observations)
        outputs = [
            policy.run_sequences(
                features, samples.inverse, sequences._replace(burn_in=burn_in, state=state)
            ).vector
            for burn_in, state in (
                (sequences.burn_in, sequences.state),
                (None, torch.cat(recomputed)),
                (None, sequences.state),
            )
        ]
    close(outputs[0], outputs[1])
    by_burn_in, by_state = (
        torch.autograd.grad(
            policy.run_sequences(
                policy.extract_features(samples.observations), samples.inverse, each
            ).vector.sum(),
            list(policy.core.parameters()),
        )
        for each in (sequences, sequences._replace(burn_in=None, state=torch.cat(recomputed)))
    )
    close(by_burn_in, by_state)  # no gradient flows through the burn-in
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3, "the burn-in has an effect"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 32, "sequence_length": 5}, "sequence_length must divide n_steps=32, got 5"),
        (
            {"n_steps": 32, "sequence_length": 8, "burn_in": 9},
            "burn_in reads timesteps of the sequence before, at most 8, got 9",
        ),
        (
            {"n_steps": 32, "burn_in": 1},
            "burn_in reads timesteps of the sequence before, at most 0, got 1; "
            "a sequence_length below n_steps=32",
        ),
        (
            {"n_steps": 32, "sequence_length": 16, "batch_size": 8},
            "got 8; use batch_size=16 or sequence_length=8",
        ),
        (
            {"n_steps": 32, "sequence_length": -8},
            "sequence_length must be a whole number of timesteps, 0 or more, got -8",
        ),
        (
            {"n_steps": 32, "burn_in": -3},
            "burn_in must be a whole number of timesteps, 0 or more, got -3",
        ),
    ],
)
def test_incomplete_sequences_raise(options: dict[str, Any], message: str) -> None:
    """Rollouts that do not consist of whole sequences are rejected."""
    with pytest.raises(ConfigError, match=message):
        build_recurrent_agent(**{"batch_size": 64, **options})


def test_short_minibatches_shorten_sequences() -> None:
    """With PPO's defaults, 2048 timesteps and minibatches of 64, a sequence has 64 timesteps."""
    buffer = build_recurrent_agent(n_steps=2048, batch_size=64).rollout_buffer
    assert buffer.sequence_length == 64  # type: ignore[attr-defined]


def test_later_batch_size_is_checked() -> None:
    """A batch size that is changed later is checked as well."""
    model = build_recurrent_agent(n_steps=8, batch_size=32)
    model.batch_size = 12
    with pytest.raises(
        ConfigError, match="batch_size must be a multiple of a sequence's 8 timesteps, got 12"
    ):
        model.learn(32)


def test_loaded_agent_starts_new_episodes(tmp_path: Path) -> None:
    model = build_recurrent_agent(n_steps=6, batch_size=24)
    model.learn(6 * 4)
    model.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", recall_envs(), force_reset=False)
    loaded.train = lambda: None  # type: ignore[method-assign]
    loaded.learn(6 * 4, reset_num_timesteps=False)
    assert loaded.rollout_buffer.host_episode_starts[0].all()  # type: ignore[attr-defined]
