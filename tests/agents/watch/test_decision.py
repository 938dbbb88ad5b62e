"""Decisions are those of ``predict``, and the numbers behind them those of the policy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mirl.agents import A2C, PPO
from mirl.agents.watch.decision import decide
from mirl.configs.schema import TrainConfig
from mirl.policies import RecurrentFusionPolicy

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


@pytest.mark.parametrize("words", [(), ("memory=lstm",), ("agent.share_features_extractor=false",)])
def test_actions_are_those_of_predict(
    tiny: Build, make_agent: Agents, words: tuple[str, ...]
) -> None:
    """Over several timesteps, the most probable actions and hidden states are those of SB3."""
    agent = make_agent(tiny(*words))
    policy = agent.policy
    policy.set_training_mode(False)
    assert agent.env is not None
    observation = agent.env.reset()
    state = None
    predict_state = None
    for start in (True, False, False):
        one = {key: values[:1] for key, values in observation.items()}
        decision = decide(policy, one, state, deterministic=True)
        expected, predict_state = policy.predict(
            one, predict_state, np.array([start]), deterministic=True
        )
        assert decision.action == expected[0]
        state = decision.state
        if isinstance(policy, RecurrentFusionPolicy):
            assert state is not None
            torch.testing.assert_close(state.cpu().numpy(), predict_state[0])
        observation, *_ = agent.env.step(np.repeat(expected, agent.env.num_envs))


def test_numbers_are_those_of_policy(tiny: Build, make_agent: Agents) -> None:
    """Probabilities and value are SB3's, and the shares of the cells sum to 1."""
    # channels for the attributes of the cells, whose similarities are shown
    agent = make_agent(tiny("encoder.channels=32"))
    assert agent.env is not None
    one = {key: values[:1] for key, values in agent.env.reset().items()}
    agent.policy.set_training_mode(False)
    decision = decide(agent.policy, one, None, deterministic=True)
    tensors, _ = agent.policy.obs_to_tensor(one)
    distribution = agent.policy.get_distribution(tensors).distribution
    np.testing.assert_allclose(decision.probabilities, distribution.probs[0].detach(), rtol=1e-6)
    value = float(agent.policy.predict_values(tensors).detach())
    assert decision.value == pytest.approx(value)
    assert decision.shares is not None
    assert decision.shares.shape == (7, 7)
    assert decision.shares.sum() == pytest.approx(1, rel=1e-5)
