"""Policies for SB3's SAC, TD3, TQC and DQN whose actors and critics are interactions with the context.

``sites`` means what it means in ``FusionPolicy``: "map" and "vector" lie in the features extractor; with "heads" the
last layer of every network is a fusion. The critic is then Q(s, a, z) = f(MLP([features, a]), z), and so
``fusion="bilinear"`` and ``fusion="metric"`` give the bilinear and the metric critic.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from sb3_contrib.tqc.policies import Actor as TQCActor
from sb3_contrib.tqc.policies import Critic as QuantileCritic
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import ContextConfig, EncoderConfig, FusionConfig, Site
from mirl.policies.extractor import FusionExtractor, extractor_kwargs
from mirl.policies.features import Features
from mirl.policies.fusions import build_fusion
from mirl.policies.heads import FusionHead

LINEAR_GAIN = 1 / math.sqrt(3)
"""An orthogonal start of this gain has entries as large as those that PyTorch gives ``nn.Linear``, which SB3 keeps."""


# ----------------------------------------------------------------------------------------------------------- networks


class ApplyToFeatures(nn.Module):
    """Layers over the vector, with the context passed by untouched."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Features) -> Features:
        return features._replace(vector=self.layers(features.vector))


def fused_head(linear: nn.Linear, extractor: FusionExtractor) -> FusionHead:
    """A fusion with the sizes of a linear head."""
    sizes = linear.in_features, extractor.context_dim, linear.out_features
    return FusionHead(build_fusion(extractor.fusion_config, *sizes, gain=LINEAR_GAIN))


def with_fused_head(mlp: nn.Module, extractor: BaseFeaturesExtractor) -> nn.Sequential:
    """SB3's MLP over ``Features``: the context passes its hidden layers by and meets their output in the last one."""
    layers = list(cast(nn.Sequential, mlp))
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    head = fused_head(cast(nn.Linear, layers[last]), cast(FusionExtractor, extractor))
    return nn.Sequential(ApplyToFeatures(nn.Sequential(*layers[:last])), head, *layers[last + 1 :])


def _fuse_q_networks(critic: ContinuousCritic | QuantileCritic) -> None:
    for i, mlp in enumerate(critic.q_networks):
        critic.q_networks[i] = with_fused_head(mlp, critic.features_extractor)
        critic.add_module(f"qf{i}", critic.q_networks[i])


@contextmanager
def _weights_fixed_for_an_actor(critic: nn.Module, actions: Tensor) -> Iterator[None]:
    """Within it the weights get no gradient if the actions do: an actor asks, and SB3 would throw it away."""
    weights = (
        [weight for weight in critic.parameters() if weight.requires_grad]
        if actions.requires_grad
        else []
    )
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _join(
    critic: ContinuousCritic | QuantileCritic, obs: Any, actions: Tensor, *, learn: bool
) -> Features:
    """Features and actions side by side, with the context.

    :param learn: whether the features extractor learns from what follows, where gradients are on at all.
    """
    with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
        features = cast(Features, critic.extract_features(obs, critic.features_extractor))
    return features._replace(vector=torch.cat([features.vector, actions], dim=1))


class FusionCritic(ContinuousCritic):
    """SB3's critics of SAC and TD3, Q(s, a, z) = f(MLP([features, a]), z)."""

    def __init__(self, **sb3: Any) -> None:
        super().__init__(**sb3)
        _fuse_q_networks(self)

    def forward(
        self, obs: Any, actions: Float[Tensor, "batch action"]
    ) -> tuple[Float[Tensor, "batch 1"], ...]:
        with _weights_fixed_for_an_actor(self, actions):
            joined = _join(self, obs, actions, learn=not self.share_features_extractor)
            return tuple(q_network(joined) for q_network in self.q_networks)

    def q1_forward(
        self, obs: Any, actions: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch 1"]:
        """Of the first network alone, as TD3's actor asks; the features extractor learns nothing from it."""
        with _weights_fixed_for_an_actor(self, actions):
            q: Tensor = self.q_networks[0](_join(self, obs, actions, learn=False))
            return q


class FusionQuantileCritic(QuantileCritic):
    """The critics of TQC: quantiles of Q(s, a, z) = f(MLP([features, a]), z)."""

    def __init__(self, **sb3: Any) -> None:
        super().__init__(**sb3)
        _fuse_q_networks(self)

    def forward(
        self, obs: Any, action: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch critics quantiles"]:
        with _weights_fixed_for_an_actor(self, action):
            joined = _join(self, obs, action, learn=not self.share_features_extractor)
            return torch.stack([q_network(joined) for q_network in self.q_networks], dim=1)


def _fuse_gaussian_actor(actor: SACActor | TQCActor) -> None:
    if (
        actor.use_sde
    ):  # its noise is a function of the hidden layer, which SB3 reads as a plain tensor
        raise ConfigError(
            "use_sde does not go with fused heads here; use sites=('vector',) or use_sde=False"
        )
    extractor = cast(FusionExtractor, actor.features_extractor)
    actor.latent_pi = ApplyToFeatures(actor.latent_pi)  # type: ignore[assignment]
    for name in ("mu", "log_std"):
        setattr(actor, name, fused_head(getattr(actor, name), extractor))


# ----------------------------------------------------------------------------------------------------------- policies


class OffPolicyFusion(BasePolicy):
    """What the policies below share: the arguments of ``FusionPolicy``, and SB3's for the rest.

    :param fusion, context, encoder, observation_keys: as for ``FusionExtractor``.
    :param sites: one or several of "map", "vector" and "heads".
    :param sb3: the other keyword arguments of the SB3 policy.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector", "heads"),
        observation_keys: Sequence[str] | None = None,
        **sb3: Any,
    ) -> None:
        self.fuses_in_heads = "heads" in sites
        self._fusion_arguments = {
            "fusion": fusion,
            "context": context,
            "encoder": encoder,
            "sites": tuple(sites),
            "observation_keys": observation_keys,
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,  # of the SB3 policy, which follows in the order of resolution
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=extractor_kwargs(self._fusion_arguments, self.fuses_in_heads),
            **sb3,
        )

    def specialize(self, context: Any) -> NoReturn:
        """Not offered: ``FusionPolicy`` has it.

        :raises ConfigError: always.
        """
        raise ConfigError(
            "policies of PPO and A2C can be specialized and exported, those of other algorithms cannot"
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for ours in ("features_extractor_class", "features_extractor_kwargs"):
            parameters.pop(ours, None)
        if hasattr(self, "share_features_extractor"):  # SB3 leaves it out for SAC and TQC
            parameters["share_features_extractor"] = self.share_features_extractor
        return {**parameters, **self._fusion_arguments}


class FusionSACPolicy(OffPolicyFusion, SACPolicy):
    """For SAC."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SACActor:
        actor = super().make_actor(features_extractor)
        if self.fuses_in_heads:
            _fuse_gaussian_actor(actor)
        return actor.to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        if not self.fuses_in_heads:
            return super().make_critic(features_extractor)
        return FusionCritic(
            **self._update_features_extractor(self.critic_kwargs, features_extractor)
        ).to(self.device)


class FusionTQCPolicy(OffPolicyFusion, TQCPolicy):
    """For TQC."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> TQCActor:
        actor = super().make_actor(features_extractor)
        if self.fuses_in_heads:
            _fuse_gaussian_actor(actor)
        return actor.to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> QuantileCritic:
        if not self.fuses_in_heads:
            return super().make_critic(features_extractor)
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return FusionQuantileCritic(**kwargs).to(self.device)


class FusionTD3Policy(OffPolicyFusion, TD3Policy):
    """For TD3."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> TD3Actor:
        actor = super().make_actor(features_extractor)
        if self.fuses_in_heads:
            actor.mu = with_fused_head(actor.mu, actor.features_extractor)
        return actor.to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        if not self.fuses_in_heads:
            return super().make_critic(features_extractor)
        return FusionCritic(
            **self._update_features_extractor(self.critic_kwargs, features_extractor)
        ).to(self.device)


class FusionDQNPolicy(OffPolicyFusion, DQNPolicy):
    """For DQN; the Q head is f(MLP(features), z), an output per action."""

    def make_q_net(self) -> QNetwork:
        q_net = super().make_q_net()
        if self.fuses_in_heads:
            q_net.q_net = with_fused_head(q_net.q_net, q_net.features_extractor)
        return q_net.to(self.device)
