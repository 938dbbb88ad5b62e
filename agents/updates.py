"""The losses of PPO and A2C as pure functions of what the policy says about a minibatch."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mirl.agents.rollouts import Samples

PerSample = Float[Tensor, " batch"]
Metrics = dict[str, Tensor]
"""Scalars on the device, under the names that SB3 logs."""


class Judgement(NamedTuple):
    """What the policy says about the actions of a minibatch."""

    values: PerSample
    log_probs: PerSample
    entropy: PerSample | None
    """None where the distribution has no closed form of it."""


@dataclass(frozen=True)
class LossWeights:
    """What PPO and A2C share."""

    ent_coef: float
    vf_coef: float
    normalize_advantage: bool

    def advantages(self, samples: Samples) -> PerSample:
        """The advantages of a minibatch, to mean 0 and deviation 1 if asked for."""
        advantages = samples.advantages
        if self.normalize_advantage and len(advantages) > 1:  # see SB3's issue 325
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return advantages

    def combine(self, judgement: Judgement, policy_loss: Tensor, value_loss: Tensor) -> tuple[Tensor, Metrics]:
        """L = L_policy + ent_coef · L_entropy + vf_coef · L_value."""
        entropy = -judgement.log_probs if judgement.entropy is None else judgement.entropy
        entropy_loss = -entropy.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        return loss, {
            "train/entropy_loss": entropy_loss.detach(),
            "train/policy_gradient_loss": policy_loss.detach(),
            "train/value_loss": value_loss.detach(),
            "train/loss": loss.detach(),
        }


def ppo_loss(
    judgement: Judgement, samples: Samples, weights: LossWeights, clip_range: float, clip_range_vf: float | None = None
) -> tuple[Tensor, Metrics]:
    """The clipped objective (Schulman et al., 2017), with ρ = π(a|s) / π_old(a|s) and ε the clip range:

    L_policy = −mean min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)
    L_value  = mean (R − V)², where V stays within ``clip_range_vf`` of the old value if that is given
    """
    advantages = weights.advantages(samples)
    log_ratio = judgement.log_probs - samples.old_log_prob
    ratio = log_ratio.exp()
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()
    values = judgement.values
    if clip_range_vf is not None:
        values = samples.old_values + (values - samples.old_values).clamp(-clip_range_vf, clip_range_vf)
    loss, metrics = weights.combine(judgement, policy_loss, F.mse_loss(samples.returns, values))
    with torch.no_grad():
        metrics["train/clip_fraction"] = ((ratio - 1).abs() > clip_range).float().mean()
        metrics["train/approx_kl"] = (log_ratio.expm1() - log_ratio).mean()  # joschu.net/blog/kl-approx.html
    return loss, metrics


def a2c_loss(judgement: Judgement, samples: Samples, weights: LossWeights) -> tuple[Tensor, Metrics]:
    """Advantage actor-critic (Mnih et al., 2016):  L_policy = −mean A log π(a|s),  L_value = mean (R − V)²."""
    policy_loss = -(weights.advantages(samples) * judgement.log_probs).mean()
    loss, metrics = weights.combine(judgement, policy_loss, F.mse_loss(samples.returns, judgement.values))
    metrics["train/policy_loss"] = metrics.pop("train/policy_gradient_loss")  # the name that SB3's A2C logs
    del metrics["train/loss"]
    return loss, metrics


def explained_variance(values: Float[Tensor, "*rollout"], returns: Float[Tensor, "*rollout"]) -> Tensor:
    """1 − var(R − V) / var(R), and no number where the returns do not vary."""
    variance = returns.var(correction=0)
    return torch.where(variance > 0, 1 - (returns - values).var(correction=0) / variance, torch.nan)
