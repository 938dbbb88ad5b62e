"""Equal observations share one forward pass, without any other effect."""

from typing import Any

import numpy as np
import pytest
import torch
from multitask_setup import evaluate_samples
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from mirl.agents import PPO
from mirl.agents.on_policy.action_evaluation import ActionEvaluation, treats_rows_alike
from mirl.envs import make_vec_env
from mirl.policies import FusionPolicy

TWO_TASKS = ("MiniGrid-GoToDoor-5x5-v0", "MiniGrid-Empty-5x5-v0")
OPTIONS: dict[str, dict[str, Any]] = {
    "every site": {"sites": ("map", "vector", "heads")},
    "heads alone": {"sites": ("heads",)},
    "task id": {"context": "task_id"},
    "value per task": {"popart": True},
    "scaled values": {"scale_values": True},
    "two trunks": {"share_features_extractor": False},
    "attention": {"fusion": "attention", "sites": ("map", "heads")},
}


def evaluate_rollout(agent: PPO, *, share: bool) -> tuple[ActionEvaluation, list[Tensor]]:
    """Return the evaluation of the whole rollout in its own order, and a gradient of it."""
    buffer = agent.rollout_buffer
    kept, buffer.hashes = buffer.hashes, buffer.hashes if share else None
    rows = np.arange(buffer.buffer_size * buffer.n_envs)
    samples, order = buffer.minibatch(rows), buffer._sort(rows).order
    buffer.hashes = kept
    assert (samples.inverse is not None) is share
    evaluation = evaluate_samples(agent, samples)
    assert evaluation.entropy is not None
    inverse = torch.from_numpy(np.argsort(order))
    in_order = ActionEvaluation(*(part[inverse] for part in evaluation if part is not None))
    weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(0))
    loss = ((in_order.values + in_order.log_probs) * weights + evaluation.entropy).sum()
    parameters = list(agent.policy.parameters())
    return in_order, list(
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sharing_changes_nothing(options: dict[str, Any]) -> None:
    """Sharing changes neither the evaluation nor its gradient."""
    env = make_vec_env(TWO_TASKS, 8, backend="gymnasium")
    agent = PPO(
        FusionPolicy,
        env,
        n_steps=16,
        batch_size=64,
        n_epochs=1,
        policy_kwargs=options,
        seed=0,
        device="cpu",
    )
    agent.learn(128)
    shared, shared_gradients = evaluate_rollout(agent, share=True)
    own, own_gradients = evaluate_rollout(agent, share=False)
    assert agent.rollout_buffer.n_unique < agent.rollout_buffer.n_samples  # some were equal
    torch.testing.assert_close(tuple(shared), tuple(own), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared_gradients, own_gradients, rtol=1e-4, atol=1e-4)
    env.close()


class Overridden(ActorCriticPolicy):
    """A policy with its own ``evaluate_actions``."""

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize("reason", ["own evaluate_actions", "dropout", "batch norm", "none"])
def test_row_dependent_policy_shares_nothing(reason: str) -> None:
    """A policy that may treat equal observations differently shares nothing."""
    activation: dict[str, Any] = {
        "dropout": {"activation_fn": nn.Dropout},
        "batch norm": {"activation_fn": lambda: nn.BatchNorm1d(64)},
    }
    policy = Overridden if reason == "own evaluate_actions" else "MlpPolicy"
    agent = PPO(
        policy,
        "Taxi-v4",
        n_steps=8,
        batch_size=8,
        policy_kwargs=activation.get(reason),
        device="cpu",
    )
    assert treats_rows_alike(agent.policy) is (reason == "none")
    assert (agent.rollout_buffer.hashes is not None) is (reason == "none")
