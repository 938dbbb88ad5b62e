"""Loss terms that PPO and A2C share, as pure functions of a minibatch and the policy's outputs.

Each function returns one loss per sample, so that the share of a task is the sum over its samples.
The gradient step follows the mean.

Shapes: B samples of a minibatch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mirl.agents.on_policy.action_evaluation import ActionEvaluation, PerSample
from mirl.agents.on_policy.advantages import EPSILON
from mirl.agents.on_policy.minibatch import Samples

Metrics = dict[str, Tensor]
"""Scalars on the training device, under the names that SB3 logs."""


@dataclass(frozen=True)
class LossWeights:
    """Coefficients of the loss."""

    ent_coef: float
    """Weight of the entropy loss."""
    vf_coef: float
    """Weight of the value loss."""
    normalize_advantage: bool
    """Normalize the advantages of each minibatch."""
    smallest_std: Tensor | None = None
    """Lower bound of the standard deviation that the normalization divides by, a scalar; None for
    none."""

    def advantages(self, samples: Samples) -> PerSample:
        """Return the advantages of a minibatch, normalized if enabled.

        They have mean 0 and standard deviation 1, or less if it was below ``smallest_std``.

        Args:
            samples: the minibatch.

        Returns:
            (B,), the advantages.
        """
        advantages = samples.advantages
        # Statistics of the whole minibatch, whichever ranks have its samples.
        every = advantages if samples.all_advantages is None else samples.all_advantages
        # The standard deviation of one sample is NaN: SB3 issue #325.
        if self.normalize_advantage and len(every) > 1:
            std = every.std()
            if self.smallest_std is not None:
                std = std.maximum(self.smallest_std)
            advantages = (advantages - every.mean()) / (std + EPSILON)
        return advantages

    def combine(
        self, evaluation: ActionEvaluation, policy_losses: PerSample, value_losses: PerSample
    ) -> tuple[PerSample, Metrics]:
        """Combine the loss terms:  L = L_policy + ent_coef · L_entropy + vf_coef · L_value.

        Args:
            evaluation: the policy's outputs.
            policy_losses: (B,), L_policy.
            value_losses: (B,), L_value.

        Returns:
            (B,), L; and the means of L and of its terms.
        """
        # −E[log π] is the entropy, so that the log-probability of the sample estimates −H.
        entropy_losses = evaluation.log_probs
        if evaluation.entropy is not None:
            entropy_losses = -evaluation.entropy
        losses = policy_losses + self.ent_coef * entropy_losses + self.vf_coef * value_losses
        # Detached, because the metrics live for the whole update and would keep the graphs alive.
        return losses, {
            "train/entropy_loss": entropy_losses.detach().mean(),
            "train/policy_gradient_loss": policy_losses.detach().mean(),
            "train/value_loss": value_losses.detach().mean(),
            "train/loss": losses.detach().mean(),
        }


def value_losses_of(
    evaluation: ActionEvaluation, samples: Samples, clip_range_vf: float | None = None
) -> PerSample:
    """Return the value losses ((R − V) / σ)², where σ is 1 without PopArt.

    Args:
        evaluation: the policy's outputs, V and σ.
        samples: the minibatch, with the returns R and the values at the time of the rollout.
        clip_range_vf: V stays within ``clip_range_vf`` · σ of its value at the time of the rollout;
            None for no limit.

    Returns:
        (B,), the losses.
    """
    values = evaluation.values
    scale = evaluation.value_scale
    if clip_range_vf is not None:
        # Clip in units of σ, because the returns of different tasks have different scales.
        unit = scale
        if unit is None:
            unit = torch.ones_like(values)
        limit = clip_range_vf * unit
        values = samples.old_values + (values - samples.old_values).clamp(-limit, limit)
    errors = samples.returns - values
    if scale is not None:
        # In normalized units, so that no task dominates the value loss (PopArt).
        errors = errors / scale
    return errors.square()


def explained_variance(
    values: Float[Tensor, "*rollout"], returns: Float[Tensor, "*rollout"]
) -> Tensor:
    """Return 1 − var(R − V) / var(R); NaN if the returns do not vary.

    Args:
        values: V, the predictions.
        returns: R, the targets, of the same shape.

    Returns:
        A scalar on the device: 1 for perfect predictions, 0 for a constant one.
    """
    # Population variance: SB3 computes it with NumPy, whose default is ddof=0.
    variance = returns.var(correction=0)
    unexplained = (returns - values).var(correction=0)
    return torch.where(variance > 0, 1 - unexplained / variance, torch.nan)
