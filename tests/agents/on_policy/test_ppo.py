"""PPO's parameters and its loss."""

from collections.abc import Callable

import pytest
import torch
from on_policy_checks import assert_contains_sb3s_parameters
from stable_baselines3 import PPO as SB3PPO
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from mirl.agents import A2C, PPO
from mirl.agents.on_policy.a2c import a2c_losses
from mirl.agents.on_policy.action_evaluation import ActionEvaluation
from mirl.agents.on_policy.losses import LossWeights
from mirl.agents.on_policy.minibatch import (
    Samples,
)
from mirl.agents.on_policy.ppo import ppo_losses
from mirl.configs.schema import TrainConfig

close = torch.testing.assert_close
Build = Callable[..., TrainConfig]
Agents = Callable[[TrainConfig], PPO | A2C]


def test_signature_contains_sb3s_parameters() -> None:
    """PPO lists every parameter of SB3's PPO with the same default, and takes no others by **."""
    assert_contains_sb3s_parameters(PPO, SB3PPO)


def test_options_reach_ppo(tiny: Build, make_agent: Agents) -> None:
    """Every option of the command line reaches PPO."""
    options = {
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "ent_coef": 0.2,
        "vf_coef": 0.3,
        "max_grad_norm": 0.4,
        "n_epochs": 3,
        "target_kl": 0.05,
    }
    agent = make_agent(
        tiny(
            *(f"agent.{name}={value}" for name, value in options.items()),
            "agent.clip_range=0.15",
            "agent.learning_rate=0.001",
        )
    )
    assert isinstance(agent, PPO)
    assert {name: getattr(agent, name) for name in options} == options
    assert (agent.n_envs, agent.n_steps, agent.batch_size, agent.clip_range(1.0)) == (
        4,
        32,
        64,
        0.15,
    )
    # 512 timesteps of 128 each: the second of four rollouts starts at 1/4
    assert agent.lr_schedule(0.5) == pytest.approx(0.75e-3)


def test_multitask_options_default_to_off() -> None:
    """The options for several tasks are off by default."""
    agent = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert (agent.advantages_per_task, agent.pcgrad, agent.conflict_every) == (False, False, 0)
    assert (agent.advantage_floor, agent.kl_coef) == (0, 0)


def test_losses_match_hand_computed_values() -> None:
    """The losses of PPO and A2C equal those computed by hand."""
    log_probs, entropy = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25])
    evaluation = ActionEvaluation(torch.tensor([1.0, 2.0]), log_probs, entropy)
    given = make_samples(
        returns=torch.tensor([2.0, 4.0]),
        advantages=torch.tensor([3.0, -1.0]),
        old_log_prob=log_probs,
    )
    weights = LossWeights(ent_coef=0.1, vf_coef=0.5, normalize_advantage=False)
    ppo, _ = ppo_losses(evaluation, given, weights, clip_range=0.2)
    a2c, _ = a2c_losses(evaluation, given, weights)
    close(ppo, torch.tensor([-3.0 - 0.05 + 0.5, 1.0 - 0.025 + 2.0]))
    close(a2c, torch.tensor([3.0 - 0.05 + 0.5, -2.0 - 0.025 + 2.0]))


def test_divergence_is_that_of_torch() -> None:
    """Over all actions, the divergence in the loss and its gradient are those of KL(old, new)."""
    old = Categorical(logits=torch.tensor([1.0, -0.5, 0.2]))
    logits = torch.tensor([0.3, 0.4, -0.9], requires_grad=True)
    new = Categorical(logits=logits)
    (expected,) = torch.autograd.grad(kl_divergence(old, new), logits, retain_graph=True)
    # one sample for each action, without advantages
    evaluation = ActionEvaluation(torch.zeros(3), new.logits, torch.zeros(3))
    zeros = {name: torch.zeros(3) for name in ("actions", "old_values", "advantages", "returns")}
    given = Samples(None, old_log_prob=old.logits, **zeros)
    weights = LossWeights(ent_coef=0.0, vf_coef=0.0, normalize_advantage=False)
    losses, metrics = ppo_losses(evaluation, given, weights, clip_range=0.2, kl_coef=0.5)
    loss = (old.probs * losses).sum()
    close(loss, 0.5 * kl_divergence(old, new))
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient, 0.5 * expected)
    close(metrics["train/loss"], losses.mean())


def test_divergence_holds_the_policy() -> None:
    """The divergence holds a policy whose advantages do not speak against the entropy bonus."""
    distances = []
    for kl_coef in (0.0, 1.0):
        agent = PPO("MlpPolicy", "CartPole-v1", 1e-2, n_steps=64, kl_coef=kl_coef, seed=0)
        agent.ent_coef, agent.vf_coef = 0.5, 0.0
        with torch.no_grad():
            agent.policy.action_net.bias[0] = 3.0
        agent.learn(64)
        agent.rollout_buffer.advantages.zero_()
        agent.train()
        distances.append(agent.logger.name_to_value["train/approx_kl"])
    assert distances[1] < 0.5 * distances[0]


def make_samples(**given: Tensor) -> Samples:
    """Return two samples; everything that is not given is zero."""
    names = ("actions", "old_values", "old_log_prob", "advantages", "returns")
    return Samples(None, **{name: given.get(name, torch.zeros(2)) for name in names})
