"""The losses of PPO and A2C as pure functions of what the policy says about a minibatch.

Each gives the loss of every sample, so that a task's part of the whole is the sum over its samples; the loss that is
stepped along is their mean.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mirl.agents.on_policy.rollout_buffer import Samples

PerSample = Float[Tensor, " batch"]
Metrics = dict[str, Tensor]
"""Scalars on the device, under the names that SB3 logs."""


class ActionEvaluation(NamedTuple):
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
        self, evaluation: ActionEvaluation, policy_losses: PerSample, value_losses: PerSample
    ) -> tuple[PerSample, Metrics]:
        """L = L_policy + ent_coef · L_entropy + vf_coef · L_value, and the mean of each."""
        entropy_losses = evaluation.log_probs if evaluation.entropy is None else -evaluation.entropy
        losses = policy_losses + self.ent_coef * entropy_losses + self.vf_coef * value_losses
        return losses, {
            "train/entropy_loss": entropy_losses.detach().mean(),
            "train/policy_gradient_loss": policy_losses.detach().mean(),
            "train/value_loss": value_losses.detach().mean(),
            "train/loss": losses.detach().mean(),
        }


def value_losses_of(
    evaluation: ActionEvaluation, samples: Samples, clip_range_vf: float | None = None
) -> PerSample:
    """((R − V) / σ)², where V stays within ``clip_range_vf`` · σ of the old value if that is given."""
    values, scale = evaluation.values, evaluation.value_scale
    if clip_range_vf is not None:
        limit = clip_range_vf * (torch.ones_like(values) if scale is None else scale)
        values = samples.old_values + (values - samples.old_values).clamp(-limit, limit)
    errors = samples.returns - values
    return (errors if scale is None else errors / scale).square()


def explained_variance(
    values: Float[Tensor, "*rollout"], returns: Float[Tensor, "*rollout"]
) -> Tensor:
    """1 − var(R − V) / var(R), and no number where the returns do not vary."""
    variance = returns.var(correction=0)
    return torch.where(variance > 0, 1 - (returns - values).var(correction=0) / variance, torch.nan)
