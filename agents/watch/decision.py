"""One decision of a policy, and the numbers behind it."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mirl.envs.type_aliases import Observations
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.encoders import CellsEncoder
from mirl.policies.extractor import SIMILARITY_GAIN, FusionExtractor
from mirl.policies.features import Features
from mirl.policies.memory.episodes import Episodes
from mirl.policies.policy import latents, to_env_actions


class Decision(NamedTuple):
    """The action of a policy for one observation, and the numbers behind it."""

    action: NDArray[Any]
    """The action, in the form that the environment expects."""
    probabilities: Float[np.ndarray, " actions"] | None = None
    """Probability of each action; None unless the actions are ``Discrete``."""
    value: float | None = None
    """Value of the observation; None for an off-policy algorithm."""
    shares: Float[np.ndarray, "height width"] | None = None
    """Share of each cell of the view in what the context picks out, summing to 1, in the layout of
    the observation; None unless the heads read similarities of cells with the context."""
    state: Float[Tensor, "1 state"] | None = None
    """The hidden state after the observation; None if the policy is not recurrent."""


def decide(
    policy: BasePolicy,
    observation: Observations,
    state: Float[Tensor, "1 state"] | None,
    *,
    deterministic: bool,
) -> Decision:
    """Return the decision of a policy for one observation.

    Args:
        policy: the policy, in evaluation mode.
        observation: a batch of one observation.
        state: the hidden state after the last observation; None at the start of an episode.
        deterministic: take the most probable action.
    """
    if not isinstance(policy, FusionPolicy):
        actions, _ = policy.predict(observation, deterministic=deterministic)
        return Decision(actions[0])
    with torch.no_grad():
        tensors, _ = policy.obs_to_tensor(observation)
        features = policy.extract_features(tensors)
        shares = _shares(policy, features)
        if isinstance(policy, RecurrentFusionPolicy):
            is_start = np.array([[state is None]])
            if state is None:
                state = torch.zeros(1, policy.state_dim, device=policy.device)
            episodes = Episodes(is_start, policy.device)
            features, state = policy.run_cores(features, state, episodes)
        latent_pi, latent_vf = latents(policy, features)
        distribution = policy._get_action_dist_from_latent(latent_pi)
        chosen = distribution.get_actions(deterministic=deterministic)
        value = float(policy.value_net(latent_vf))
    probabilities: NDArray[Any] | None = None
    if isinstance(distribution, CategoricalDistribution):
        probabilities = distribution.distribution.probs[0].cpu().numpy()
    shape = policy.action_space.shape or ()
    actions = to_env_actions(policy, chosen.cpu().numpy().reshape(-1, *shape))
    return Decision(actions[0], probabilities, value, shares, state)


def _shares(policy: FusionPolicy, features: Any) -> NDArray[Any] | None:
    """Return the share of each cell in the similarities that the actor's head reads, (H, W)."""
    actor_features = features if policy.share_features_extractor else features[0]
    assert isinstance(actor_features, Features)
    encoder = cast(FusionExtractor, policy.pi_features_extractor).encoder
    # a joined map of several images has no layout
    if actor_features.similarities is None or not isinstance(encoder, CellsEncoder):
        return None
    cells = encoder.to_cells
    # (1, P * S) -> (P, S) -> (P,); each of the S similarities sums to the gain over the cells
    shares = actor_features.similarities.unflatten(1, (encoder.n_cells, -1))[0].mean(1)
    return (shares / SIMILARITY_GAIN).cpu().numpy().reshape(cells.height, cells.width)
