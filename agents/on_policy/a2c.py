"""TODO docstring."""

from stable_baselines3 import A2C as SB3A2C

from mirl.agents.on_policy.loop import OnPolicyLoop
from mirl.agents.on_policy.losses import (
    ActionEvaluation,
    LossWeights,
    Metrics,
    PerSample,
    value_losses_of,
)
from mirl.agents.on_policy.rollout_buffer import Samples


class A2C(OnPolicyLoop, SB3A2C):
    """Advantage actor-critic (Mnih et al., 2016) with SB3's parameters and ``OnPolicyLoop``'s."""

    def train(self) -> None:
        """One update: a gradient step over the whole rollout."""
        weights, parameters = self._begin_update()
        samples = self.rollout_buffer.full_batch()
        losses, metrics = a2c_losses(self._evaluate_actions(samples), samples, weights)
        self._log_conflict(losses, samples, parameters)
        self._gradient_step(losses, samples, parameters)
        self._n_updates += 1
        self.history = [metrics]
        self._log_update(self.history, {})


def a2c_losses(
    evaluation: ActionEvaluation, samples: Samples, weights: LossWeights
) -> tuple[PerSample, Metrics]:
    """Advantage actor-critic (Mnih et al., 2016):  L_policy = −A log π(a|s),  L_value = ``value_losses_of``."""
    policy_losses = -weights.advantages(samples) * evaluation.log_probs
    losses, metrics = weights.combine(
        evaluation, policy_losses, value_losses_of(evaluation, samples)
    )
    metrics["train/policy_loss"] = metrics.pop(
        "train/policy_gradient_loss"
    )  # the name that SB3's A2C logs
    del metrics["train/loss"]
    return losses, metrics
