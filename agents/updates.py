"""The losses of PPO and A2C as pure functions of what the policy says about a minibatch.

Each gives the loss of every sample, so that a task's part of the whole is the sum over its samples; the loss that is
stepped along is their mean.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

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
    value_scale: PerSample | None = None
    """σ of each sample's task, the unit in which values are compared with returns (PopArt); None for 1."""


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

    def combine(
        self, judgement: Judgement, policy_losses: PerSample, value_losses: PerSample
    ) -> tuple[PerSample, Metrics]:
        """L = L_policy + ent_coef · L_entropy + vf_coef · L_value, and the mean of each."""
        entropy_losses = judgement.log_probs if judgement.entropy is None else -judgement.entropy
        losses = policy_losses + self.ent_coef * entropy_losses + self.vf_coef * value_losses
        return losses, {
            "train/entropy_loss": entropy_losses.detach().mean(),
            "train/policy_gradient_loss": policy_losses.detach().mean(),
            "train/value_loss": value_losses.detach().mean(),
            "train/loss": losses.detach().mean(),
        }


def squared_errors(judgement: Judgement, samples: Samples, clip_range_vf: float | None = None) -> PerSample:
    """((R − V) / σ)², where V stays within ``clip_range_vf`` · σ of the old value if that is given."""
    values, scale = judgement.values, judgement.value_scale
    if clip_range_vf is not None:
        limit = clip_range_vf * (torch.ones_like(values) if scale is None else scale)
        values = samples.old_values + (values - samples.old_values).clamp(-limit, limit)
    errors = samples.returns - values
    return (errors if scale is None else errors / scale).square()


def ppo_losses(
    judgement: Judgement, samples: Samples, weights: LossWeights, clip_range: float, clip_range_vf: float | None = None
) -> tuple[PerSample, Metrics]:
    """The clipped objective (Schulman et al., 2017), with ρ = π(a|s) / π_old(a|s) and ε the clip range:

    L_policy = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)
    L_value  = ``squared_errors``
    """
    advantages = weights.advantages(samples)
    log_ratio = judgement.log_probs - samples.old_log_prob
    ratio = log_ratio.exp()
    policy_losses = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    losses, metrics = weights.combine(judgement, policy_losses, squared_errors(judgement, samples, clip_range_vf))
    with torch.no_grad():
        metrics["train/clip_fraction"] = ((ratio - 1).abs() > clip_range).float().mean()
        metrics["train/approx_kl"] = (log_ratio.expm1() - log_ratio).mean()  # joschu.net/blog/kl-approx.html
    return losses, metrics


def a2c_losses(judgement: Judgement, samples: Samples, weights: LossWeights) -> tuple[PerSample, Metrics]:
    """Advantage actor-critic (Mnih et al., 2016):  L_policy = −A log π(a|s),  L_value = ``squared_errors``."""
    policy_losses = -weights.advantages(samples) * judgement.log_probs
    losses, metrics = weights.combine(judgement, policy_losses, squared_errors(judgement, samples))
    metrics["train/policy_loss"] = metrics.pop("train/policy_gradient_loss")  # the name that SB3's A2C logs
    del metrics["train/loss"]
    return losses, metrics


def explained_variance(values: Float[Tensor, "*rollout"], returns: Float[Tensor, "*rollout"]) -> Tensor:
    """1 − var(R − V) / var(R), and no number where the returns do not vary."""
    variance = returns.var(correction=0)
    return torch.where(variance > 0, 1 - (returns - values).var(correction=0) / variance, torch.nan)
