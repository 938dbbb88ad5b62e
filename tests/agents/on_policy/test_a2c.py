"""A2C's parameters."""

from collections.abc import Callable

import pytest
from multitask_setup import build_multitask_agent
from on_policy_checks import assert_contains_sb3s_parameters
from stable_baselines3 import A2C as SB3A2C

from mirl.agents import A2C, PPO
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


def test_signature_contains_sb3s_parameters() -> None:
    """A2C lists every parameter of SB3's A2C with the same default, and takes no others by **."""
    assert_contains_sb3s_parameters(A2C, SB3A2C)


def test_options_reach_a2c(tiny: Build, make_agent: Agents) -> None:
    """Every option of the command line reaches A2C."""
    agent = make_agent(
        tiny(
            "agent=a2c",
            "agent.rms_prop_eps=0.001",
            "agent.anneal=false",
            "agent.learning_rate=0.002",
        )
    )
    assert isinstance(agent, A2C)
    assert agent.policy.optimizer.defaults["eps"] == 0.001
    assert agent.lr_schedule(0.5) == 0.002


def test_advantages_per_task_needs_normalization() -> None:
    """advantages_per_task without normalize_advantage is an error."""
    with pytest.raises(ConfigError, match="normalize_advantage must be true"):
        build_multitask_agent(A2C, 1.0, 1.0, advantages_per_task=True)
