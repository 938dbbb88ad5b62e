"""One update of the policy: the forward pass, the gradient step, and the metrics.

``PPO.train`` and ``A2C.train`` create an ``Update`` by ``OnPolicyLoop.begin_update`` and call its
methods in turn.

Shapes: B samples of a minibatch, T timesteps, N environments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from mirl.agents.on_policy.action_evaluation import ActionEvaluation, PerSample, evaluate_actions
from mirl.agents.on_policy.losses import LossWeights, Metrics
from mirl.agents.on_policy.minibatch import Samples
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.agents.on_policy.task_gradients import (
    TaskGradients,
    assign_gradient,
    conflict,
    project_conflicts,
    random_orders,
    task_gradients,
)
from mirl.agents.runs.metric_names import GRADIENT_CONFLICT, GRADIENT_COSINE
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.configs.schema import PrecisionName
from mirl.policies.popart import PopArtHead, ScaledHead


@dataclass
class Update:
    """The gradient steps on one rollout."""

    policy: ActorCriticPolicy
    precision: PrecisionName
    """"fp32" or "bf16"."""
    weights: LossWeights
    """Coefficients of the loss."""
    max_grad_norm: float
    """The gradient is clipped to this norm."""
    projection_rng: np.random.Generator | None
    """Random generator for PCGrad's orders; None for the plain gradient."""
    measure_conflict: bool
    """Measure how the tasks' gradients conflict, in the first gradient step."""
    ranks: Ranks = ONE_PROCESS
    """The processes that share each gradient step."""
    history: list[Metrics] = field(default_factory=list)
    """The metrics of each gradient step so far: the means over this rank's samples, times
    ``share``."""
    conflict_metrics: Metrics = field(default_factory=dict)
    """Measure of the conflict between the tasks' gradients; empty if it was not measured."""

    def __post_init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        for parameter in self.policy.parameters():
            if parameter.requires_grad:  # few-shot adaptation freezes some
                self.parameters.append(parameter)

    def evaluate_actions(self, samples: Samples) -> ActionEvaluation:
        """Evaluate the actions of a minibatch with the current weights.

        Args:
            samples: the minibatch.
        """
        return evaluate_actions(self.policy, samples, self.precision)

    def record(self, metrics: Metrics, losses: PerSample, samples: Samples) -> None:
        """Keep the metrics of a minibatch, before its gradient step.

        Args:
            metrics: scalars on the device.
            losses: (B,), the loss of each sample.
            samples: the minibatch.
        """
        # Only in the first gradient step, because it takes a backward pass per task.
        if self.measure_conflict and not self.history and samples.task_ids is not None:
            gradients = self._task_gradients(losses, samples)
            # A minibatch can consist of a single task.
            if len(gradients) > 1:
                cosine, fraction = conflict(gradients)
                self.conflict_metrics = {GRADIENT_COSINE: cosine, GRADIENT_CONFLICT: fraction}
        if self.ranks.size > 1:
            metrics = {name: value * samples.share for name, value in metrics.items()}
        self.history.append(metrics)

    def last_metric(self, name: str) -> float:
        """Return a metric of the last minibatch, over all ranks.

        Args:
            name: name of the metric.
        """
        return float(self.ranks.sum_(self.history[-1][name].clone()))

    def gradient_step(self, losses: PerSample, samples: Samples) -> None:
        """Take one gradient step on the mean of the losses.

        Args:
            losses: (B,), the loss of each sample.
            samples: the minibatch.
        """
        self.policy.optimizer.zero_grad()
        if self.projection_rng is not None and samples.task_ids is not None:
            # PCGrad replaces the gradient of the mean loss by the projected one.
            gradients = self._task_gradients(losses, samples)
            orders = random_orders(len(gradients), self.projection_rng)
            assign_gradient(project_conflicts(gradients, orders), self.parameters)
        else:
            # The share is 1 in a single process, where the product is exact.
            (losses.mean() * samples.share).backward()
            self.ranks.sum_gradients(self.parameters)
        # After the projection, so that the optimizer never sees a longer gradient.
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm, foreach=True)
        self.policy.optimizer.step()

    def _task_gradients(self, losses: PerSample, samples: Samples) -> TaskGradients:
        """Return the gradient of each task of the minibatch, (K, P), over all ranks."""
        assert samples.task_ids is not None
        if self.ranks.size == 1:
            return task_gradients(losses, samples.task_ids, self.parameters)
        assert samples.all_task_ids is not None
        # Zeros where this rank has no sample of the task.
        tasks = samples.all_task_ids.unique()
        gradients = task_gradients(losses, samples.task_ids, self.parameters, tasks)
        return self.ranks.sum_(gradients * samples.share)

    def mean_metrics(self, last_steps: Mapping[str, int]) -> Metrics:
        """Return the mean of each metric over the gradient steps.

        Args:
            last_steps: for some metrics, the number of last gradient steps to average over; the
                others are averaged over all.

        Returns:
            Scalars on the device.
        """
        means: Metrics = {}
        for name in self.history[-1]:
            n_steps = last_steps.get(name, len(self.history))
            means[name] = _mean([metrics[name] for metrics in self.history[-n_steps:]])
        # One sum for all of them; the measure of the conflict is over all ranks already.
        sums = self.ranks.sum_(torch.stack(list(means.values())))
        return {**self.conflict_metrics, **dict(zip(means, sums.unbind(), strict=True))}


def update_unit_and_advantages(
    buffer: RolloutBuffer,
    value_net: nn.Module,
    *,
    normalize_per_task: bool,
    advantage_floor: float = 0.0,
) -> None:
    """Update the unit of the values, then scale or normalize the advantages, if enabled.

    Args:
        buffer: the rollout.
        value_net: the value head. A ``PopArtHead`` or a ``ScaledHead`` updates its statistics with
            the returns, and the advantages are divided by σ.
        normalize_per_task: normalize the advantages per task instead.
        advantage_floor: smallest standard deviation of this normalization, as a fraction of the
            root mean square of the returns.

    References:
        Hessel et al., "Multi-Task Deep Reinforcement Learning with PopArt", AAAI 2019.
    """
    if isinstance(value_net, PopArtHead | ScaledHead):
        task_ids = buffer.task_ids.flatten()
        # With frozen weights the statistics stay fixed: updating them rescales weights or values.
        if any(weight.requires_grad for weight in value_net.parameters()):
            value_net.update(buffer.returns.flatten(), task_ids)
        scale = value_net.scale(task_ids)
        buffer.scale_advantages(scale.view_as(buffer.advantages))
    if normalize_per_task:
        buffer.normalize_advantages_per_task(advantage_floor)


def _mean(scalars: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(scalars)).mean()
