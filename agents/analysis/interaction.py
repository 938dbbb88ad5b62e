"""Shares of the observation, the context and their interaction in the outputs of a policy.

The policy is evaluated on each of N observations with each of M contexts. The variance of an output
over these N · M pairs is the sum of three parts, as in a two-way analysis of variance: the part
explained by the observation alone, the part explained by the context alone, and their interaction.
The interaction is zero for a sum f(x) + g(z), such as a linear layer on concatenated inputs, and 1
for a product of centered factors. Nothing is assumed about the network, so every fusion is measured
in the same way.

References:
    Sobol', "Sensitivity Estimates for Nonlinear Mathematical Models", 1993.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mirl.envs.type_aliases import Observations
from mirl.policies.features import Features
from mirl.policies.policy import FusionPolicy, latents
from mirl.policies.recurrent import RecurrentFusionPolicy

Outputs = Float[np.ndarray, "observations contexts outputs"]
CONTEXT = "context"
"""Name of the encoded context among the outputs."""


class VarianceShares(NamedTuple):
    """Shares of the variance of an output; they sum to 1, or are 0 for a constant output."""

    observation: float
    context: float
    interaction: float


def variance_shares(outputs: Outputs) -> VarianceShares:
    """Return the shares of the variance that observation, context and both together explain.

    Args:
        outputs: (N, M, O), the outputs for N observations, each with the same M contexts.

    Returns:
        The shares, over all outputs.
    """
    values = outputs.astype(np.float64)
    mean = values.mean((0, 1))
    by_observation = values.mean(1, keepdims=True) - mean  # (N, 1, O)
    by_context = values.mean(0, keepdims=True) - mean  # (1, M, O)
    interaction = values - mean - by_observation - by_context
    effects = (by_observation, by_context, interaction)
    parts = [float((effect**2).mean((0, 1)).sum()) for effect in effects]
    total = sum(parts)
    # rounding errors of a constant output do not count as variance
    if total <= np.finfo(np.float32).eps ** 2 * float((values**2).mean((0, 1)).sum()):
        return VarianceShares(0.0, 0.0, 0.0)
    return VarianceShares(*(part / total for part in parts))


def context_similarity(outputs: Outputs) -> Float[np.ndarray, "contexts contexts"]:
    """Return the cosine similarity of the effects of the contexts on the outputs.

    The effect of a context is its outputs for all observations, minus the mean over the contexts.

    Args:
        outputs: (N, M, O), as in ``variance_shares``.

    Returns:
        (M, M), the cosines; 0 for a context without an effect, even with itself.
    """
    values = outputs.astype(np.float64)
    effects = (values - values.mean(1, keepdims=True)).transpose(1, 0, 2)
    flat = effects.reshape(len(effects), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)
    cosines: Float[np.ndarray, "contexts contexts"] = unit @ unit.T
    return cosines


def crossed_outputs(
    policy: BasePolicy, observations: Observations, contexts: Observations
) -> dict[str, Outputs]:
    """Return the outputs of a policy for all pairs of an observation and a context.

    Args:
        policy: the policy, in evaluation mode.
        observations: N observations by key, (N, …).
        contexts: M contexts by the keys that the policy reads as the context, (M, …).

    Returns:
        (N, M, O) for each part of the policy, in the order in which they are computed: the encoded
        context, the features, the hidden layers of actor and critic, the action (logits, or mean)
        and the value. A recurrent policy has no outputs after the features, because they depend on
        its hidden state; a policy of SAC, TD3, TQC or DQN has its features and its action.
    """
    n_observations = len(next(iter(observations.values())))
    n_contexts = len(next(iter(contexts.values())))
    crossed = {key: np.repeat(rows, n_contexts, axis=0) for key, rows in observations.items()}
    for key, rows in contexts.items():
        crossed[key] = np.tile(rows, (n_observations, *(1,) * (rows.ndim - 1)))
    with torch.no_grad():
        parts = _outputs(policy, crossed)
    shaped = {}
    for name, values in parts.items():
        flat = values.detach().float().cpu().numpy().reshape(n_observations, n_contexts, -1)
        shaped[name] = flat
    return shaped


def _outputs(policy: BasePolicy, observations: Observations) -> Mapping[str, Tensor]:
    """Return the outputs of each part for a batch of observations, (B, …)."""
    if not isinstance(policy, FusionPolicy):
        actions, _ = policy.predict(observations, deterministic=True)
        return {"action": torch.as_tensor(actions)}
    tensors, _ = policy.obs_to_tensor(observations)
    features = policy.extract_features(tensors)
    of_actor = features if policy.share_features_extractor else features[0]
    assert isinstance(of_actor, Features)
    parts = {CONTEXT: of_actor.context.per_row(), "features": of_actor.vector}
    if isinstance(policy, RecurrentFusionPolicy):
        return parts
    latent_pi, latent_vf = latents(policy, features)
    parts["actor"] = _vector(latent_pi)
    parts["critic"] = _vector(latent_vf)
    parts["action"] = policy.action_net(latent_pi)
    if isinstance(policy.action_space, spaces.Discrete):
        # adding the same number to all logits does not change the probabilities
        parts["action"] = parts["action"] - parts["action"].mean(1, keepdim=True)
    parts["value"] = policy.value_net(latent_vf)
    return parts


def _vector(latent: Tensor | Features) -> Tensor:
    return latent.vector if isinstance(latent, Features) else latent
