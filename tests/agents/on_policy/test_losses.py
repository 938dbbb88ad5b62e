"""Loss terms that PPO and A2C share."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from on_policy_checks import logged_updates
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from toy_goal_envs import FlipTaskEnv

from mirl.agents import A2C
from mirl.agents.on_policy.action_evaluation import ActionEvaluation
from mirl.agents.on_policy.losses import LossWeights, value_losses_of
from mirl.agents.on_policy.minibatch import (
    Samples,
)

close = torch.testing.assert_close


def make_samples(**given: Tensor) -> Samples:
    """Return two samples; everything that is not given is zero."""
    names = ("actions", "old_values", "old_log_prob", "advantages", "returns")
    return Samples(None, **{name: given.get(name, torch.zeros(2)) for name in names})


def test_value_loss_uses_task_scale() -> None:
    """Errors of values are divided by σ of their task."""
    evaluation = ActionEvaluation(
        torch.tensor([1.0, 1.0]), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 100.0])
    )
    close(
        value_losses_of(evaluation, make_samples(returns=torch.tensor([3.0, 201.0]))),
        torch.tensor([4.0, 4.0]),
    )


def test_value_clipping_uses_task_scale() -> None:
    """The clipping range of values is in units of σ of their task."""
    evaluation = ActionEvaluation(
        torch.tensor([1.0, 500.0]), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 100.0])
    )
    given = make_samples(old_values=torch.zeros(2), returns=torch.tensor([2.0, 200.0]))
    close(value_losses_of(evaluation, given, clip_range_vf=0.5), torch.tensor([1.5**2, 1.5**2]))


def unrewarded() -> gym.Env[Any, Any]:
    """Return episodes of one timestep without a reward: each return is zero."""
    return gym.wrappers.TransformReward(FlipTaskEnv(), lambda _: 0.0)


@pytest.mark.parametrize(
    ("env", "n_steps"), [(unrewarded, 8), (FlipTaskEnv, 1)], ids=["equal returns", "one return"]
)
def test_constant_returns_explain_nothing(env: Callable[[], Any], n_steps: int) -> None:
    """The explained variance of constant returns is NaN, as in SB3."""
    for algorithm in (A2C, SB3A2C):
        model = algorithm(
            "MultiInputPolicy", DummyVecEnv([env]), n_steps=n_steps, device="cpu", seed=0
        )
        (update,) = logged_updates(model, n_steps)
        assert np.isnan(update["train/explained_variance"])


@pytest.mark.parametrize(("smallest_std", "divisor"), [(None, 0.1), (0.05, 0.1), (2.0, 2.0)])
def test_small_advantages_divided_by_floor(smallest_std: float | None, divisor: float) -> None:
    """Advantages are divided by their standard deviation, or by the lower bound if it is larger."""
    smallest = None if smallest_std is None else torch.tensor(smallest_std)
    weights = LossWeights(0.0, 0.5, normalize_advantage=True, smallest_std=smallest)
    # mean 5, standard deviation 0.1
    samples = make_samples(advantages=torch.tensor([4.9, 5.0, 5.1]))
    expected = torch.tensor([-0.1, 0.0, 0.1]) / divisor
    close(weights.advantages(samples), expected, rtol=1e-4, atol=1e-5)


def test_floor_follows_the_rollout() -> None:
    """The lower bound is the given share of the root mean square of the rollout's returns."""
    agent = A2C(
        "MultiInputPolicy", FlipTaskEnv(), normalize_advantage=True, advantage_floor=0.5, seed=0
    )
    agent.learn(8)
    returns = agent.rollout_buffer.returns
    smallest = agent.begin_update().weights.smallest_std
    assert smallest is not None
    close(smallest, 0.5 * returns.square().mean().sqrt())
