"""Forward pass of an update: values, log-probabilities and entropies of the actions of a minibatch.

Shapes: B samples of a minibatch, U unique observations among them (U <= B).
"""

from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from mirl.agents.on_policy.minibatch import Samples
from mirl.agents.on_policy.precision import autocast, in_float32
from mirl.configs.schema import PrecisionName
from mirl.policies.policy import latents
from mirl.policies.popart import PopArtHead, ScaledHead
from mirl.policies.recurrent import PolicyFeatures, RecurrentFusionPolicy

PerSample = Float[Tensor, " batch"]
"""One number per sample, (B,)."""
T = TypeVar("T")


class ActionEvaluation(NamedTuple):
    """Outputs of the current policy for the actions of a minibatch."""

    values: PerSample
    """(B,), V(s)."""
    log_probs: PerSample
    """(B,), log π(a|s)."""
    entropy: PerSample | None
    """(B,), the entropy of π(·|s); None if the distribution has no closed form."""
    value_scale: PerSample | None = None
    """(B,), σ of each sample's task, the unit of values and returns; None for 1."""


def evaluate_actions(
    policy: ActorCriticPolicy, samples: Samples, precision: PrecisionName
) -> ActionEvaluation:
    """Evaluate the actions of a minibatch with the current weights.

    Args:
        policy: the policy in training.
        samples: the minibatch.
        precision: "fp32", or "bf16" for a trunk in bfloat16; never "auto".

    Returns:
        The outputs of the policy, with gradients.
    """
    with autocast(precision, policy.device):
        if samples.inverse is None:
            # Every sample has its own observation: nothing to share, so use SB3's method.
            observations = cast(PyTorchObs, samples.observations)
            values, log_probs, entropy = policy.evaluate_actions(observations, samples.actions)
            values = values.flatten()  # (B, 1) -> (B,)
        else:
            values, log_probs, entropy = _evaluate_unique(policy, samples, precision)
        return ActionEvaluation(values, log_probs, entropy, _value_scale(policy, samples))


def _evaluate_unique(
    policy: ActorCriticPolicy, samples: Samples, precision: PrecisionName
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do what ``policy.evaluate_actions`` does, with one forward pass per unique observation."""
    inverse = samples.inverse
    # FusionPolicy also takes UniqueRows, which SB3's type does not allow.
    features: object = policy.extract_features(cast(PyTorchObs, samples.observations))
    if samples.sequences is not None:
        assert isinstance(policy, RecurrentFusionPolicy)
        assert inverse is not None
        # (U, ...) -> (B, ...): equal observations have different hidden states, so that only the
        # features extractor is shared among them.
        unique = cast(PolicyFeatures, _to_gather(features, precision))
        features = policy.run_sequences(unique, inverse, samples.sequences)
        inverse = None
    latent_pi, latent_vf = latents(policy, features)
    latent_pi = _to_gather(latent_pi, precision)
    values = policy.value_net(latent_vf).flatten()
    if inverse is not None:
        # (U, ...) -> (B, ...). The action distribution is built per sample, because the actions
        # of equal observations differ.
        latent_pi = latent_pi.index_select(0, inverse)
        values = values.index_select(0, inverse)
    distribution = policy._get_action_dist_from_latent(latent_pi)
    log_probs = distribution.log_prob(samples.actions)
    return values, log_probs, distribution.entropy()


def _to_gather(unique: T, precision: PrecisionName) -> T:
    """Return float32: the backward pass of a gather is a long sum, which bfloat16 would round."""
    if precision == "bf16":
        return in_float32(unique)
    return unique


def _value_scale(policy: ActorCriticPolicy, samples: Samples) -> Tensor | None:
    value_net: nn.Module = policy.value_net
    if not isinstance(value_net, PopArtHead | ScaledHead):
        return None
    task_ids = samples.task_ids
    # With one task, every sample uses the statistics of task 0.
    if task_ids is None:
        task_ids = torch.zeros(len(samples.returns), dtype=torch.int64, device=policy.device)
    return value_net.scale(task_ids)


def treats_rows_alike(policy: ActorCriticPolicy) -> bool:
    """Return True if equal observations get equal outputs, whatever else is in the batch.

    Only then may equal observations share one forward pass. Batch normalization and dropout break
    this, and an unknown ``evaluate_actions`` may break it, too.

    Args:
        policy: the policy to inspect.
    """
    # Compare the functions, so that an override in a subclass counts as unknown.
    known = (ActorCriticPolicy.evaluate_actions, RecurrentFusionPolicy.evaluate_actions)
    if type(policy).evaluate_actions not in known:
        return False
    for module in policy.modules():
        # Batch statistics depend on every row.
        if isinstance(module, nn.modules.batchnorm._NormBase):
            return False
        # Dropout draws a mask for each row.
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return False
    return True
