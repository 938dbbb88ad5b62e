"""TODO docstring."""

import torch
from stable_baselines3 import PPO as SB3PPO

from mirl.agents.on_policy.loop import OnPolicyLoop
from mirl.agents.on_policy.losses import (
    ActionEvaluation,
    LossWeights,
    Metrics,
    PerSample,
    value_losses_of,
)
from mirl.agents.on_policy.rollout_buffer import Samples


class PPO(OnPolicyLoop, SB3PPO):
    """Proximal policy optimization (Schulman et al., 2017) with SB3's parameters and ``OnPolicyLoop``'s."""

    def train(self) -> None:
        """One update: ``n_epochs`` over the rollout in minibatches of ``batch_size``."""
        weights, parameters = self._begin_update()
        progress = self._current_progress_remaining
        clip_range = self.clip_range(progress)  # type: ignore[operator]
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        history: list[Metrics] = []
        self.history = history
        for _ in range(self.n_epochs):
            in_epoch, too_far = 0, False
            for samples in self.rollout_buffer.get(self.batch_size):
                losses, metrics = ppo_losses(
                    self._evaluate_actions(samples), samples, weights, clip_range, clip_range_vf
                )
                if not history:
                    self._log_conflict(losses, samples, parameters)
                history.append(metrics)
                in_epoch += 1
                too_far = (
                    self.target_kl is not None
                    and float(metrics["train/approx_kl"]) > 1.5 * self.target_kl
                )
                if too_far:
                    break
                self._gradient_step(losses, samples, parameters)
            self._n_updates += 1
            if too_far:
                break
        self._log_update(history, {"train/loss": 1, "train/approx_kl": in_epoch})
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)


def ppo_losses(
    evaluation: ActionEvaluation,
    samples: Samples,
    weights: LossWeights,
    clip_range: float,
    clip_range_vf: float | None = None,
) -> tuple[PerSample, Metrics]:
    """The clipped objective (Schulman et al., 2017), with ρ = π(a|s) / π_old(a|s) and ε the clip range:

    L_policy = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)
    L_value  = ``value_losses_of``
    """
    advantages = weights.advantages(samples)
    log_ratio = evaluation.log_probs - samples.old_log_prob
    ratio = log_ratio.exp()
    policy_losses = -torch.min(
        advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    )
    losses, metrics = weights.combine(
        evaluation, policy_losses, value_losses_of(evaluation, samples, clip_range_vf)
    )
    with torch.no_grad():
        metrics["train/clip_fraction"] = ((ratio - 1).abs() > clip_range).float().mean()
        metrics["train/approx_kl"] = (
            log_ratio.expm1() - log_ratio
        ).mean()  # joschu.net/blog/kl-approx.html
    return losses, metrics
