"""Policies for SB3's SAC, TD3, TQC and DQN whose actors and critics are interactions with the context.

``sites`` means what it means in ``FusionPolicy``: "map" and "vector" lie in the features extractor; with "heads" the
last layer of every network is a fusion. The critic is then Q(s, a, z) = f(MLP([features, a]), z), and so
``fusion="bilinear"`` and ``fusion="metric"`` give the bilinear and the metric critic.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

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
from mirl.configs.networks import (
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    NetworkConfig,
    NoMemoryConfig,
    Site,
)
from mirl.policies.extractor import FusionExtractor, extractor_part
from mirl.policies.features import Features
from mirl.policies.fusions import build_fusion
from mirl.policies.heads import FusionHead
from mirl.policies.routing import choose_network, resolve_network

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
    return FusionHead(build_fusion(extractor.network.fusion, *sizes, gain=LINEAR_GAIN))


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

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: FusionExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 2,
        share_features_extractor: bool = True,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            net_arch,
            features_extractor,
            features_dim,
            activation_fn=activation_fn,
            normalize_images=normalize_images,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )
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

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: FusionExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_quantiles: int = 25,
        n_critics: int = 2,
        share_features_extractor: bool = False,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            net_arch,
            features_extractor,
            features_dim,
            activation_fn=activation_fn,
            normalize_images=normalize_images,
            n_quantiles=n_quantiles,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )
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


def _resolved_network(
    observation_space: spaces.Dict,
    network: NetworkConfig | None,
    fusion: str | FusionConfig,
    context: str | ContextConfig | None,
    encoder: str | EncoderConfig | None,
    sites: Sequence[Site],
    observation_keys: Sequence[str] | None,
) -> NetworkConfig:
    chosen = choose_network(
        network,
        fusion=fusion,
        context=context,
        encoder=encoder,
        sites=sites,
        default_sites=("vector", "heads"),
        observation_keys=observation_keys,
    )
    if not isinstance(chosen.memory, NoMemoryConfig):
        raise ConfigError(
            f"memory={chosen.memory.kind} is for PPO and A2C; SAC, TD3, TQC and DQN have no memory"
        )
    return resolve_network(chosen, observation_space)


class OffPolicyFusion(BasePolicy):
    """Base of the policies below: their ``network`` and how it is saved."""

    network: NetworkConfig
    """The resolved configuration of the networks."""

    @property
    def fuses_in_heads(self) -> bool:
        """Whether the last layer of every network is a fusion with the context."""
        return "heads" in self.network.sites

    def _extractor_kwargs(self) -> dict[str, Any]:
        return {
            "network": extractor_part(self.network),
            "return_features": self.fuses_in_heads,
        }

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for fixed in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[fixed]
        parameters["network"] = self.network
        return parameters


class FusionSACPolicy(OffPolicyFusion, SACPolicy):
    """SAC policy whose actor and critics are fused with the context.

    Args:
        observation_space: a Dict space.
        action_space: a Box space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion or its config with options.
        context: name or config of the context encoder; None to choose it from the space.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads".
        observation_keys: keys that are inputs; None for all but contexts and ``action_mask``.
        net_arch: sizes of the hidden layers, as a list or as ``dict(pi=..., qf=...)``; None for SB3's
            default.
        activation_fn: activation of the hidden layers.
        use_sde: use generalized state-dependent exploration (gSDE); not with fused heads.
        log_std_init: initial logarithm of the standard deviation.
        use_expln: gSDE: use ``expln`` instead of ``exp`` for a positive standard deviation.
        clip_mean: gSDE: bound of the mean of the actions.
        n_critics: number of critics.
        share_features_extractor: use one features extractor for the actor and the critics.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizers.
        optimizer_kwargs: keyword arguments of the optimizers, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector", "heads"),
        observation_keys: Sequence[str] | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3.0,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.network = _resolved_network(
            observation_space, network, fusion, context, encoder, sites, observation_keys
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=self._extractor_kwargs(),
            net_arch=net_arch,
            activation_fn=activation_fn,
            use_sde=use_sde,
            log_std_init=log_std_init,
            use_expln=use_expln,
            clip_mean=clip_mean,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        parameters["share_features_extractor"] = self.share_features_extractor  # SB3 leaves it out
        return parameters


class FusionTQCPolicy(OffPolicyFusion, TQCPolicy):
    """TQC policy whose actor and quantile critics are fused with the context.

    Args:
        observation_space: a Dict space.
        action_space: a Box space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion or its config with options.
        context: name or config of the context encoder; None to choose it from the space.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads".
        observation_keys: keys that are inputs; None for all but contexts and ``action_mask``.
        net_arch: sizes of the hidden layers, as a list or as ``dict(pi=..., qf=...)``; None for SB3's
            default.
        activation_fn: activation of the hidden layers.
        use_sde: use generalized state-dependent exploration (gSDE); not with fused heads.
        log_std_init: initial logarithm of the standard deviation.
        use_expln: gSDE: use ``expln`` instead of ``exp`` for a positive standard deviation.
        clip_mean: gSDE: bound of the mean of the actions.
        n_quantiles: number of quantiles of each critic.
        n_critics: number of critics.
        share_features_extractor: use one features extractor for the actor and the critics.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizers.
        optimizer_kwargs: keyword arguments of the optimizers, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector", "heads"),
        observation_keys: Sequence[str] | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3.0,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        n_quantiles: int = 25,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.network = _resolved_network(
            observation_space, network, fusion, context, encoder, sites, observation_keys
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=self._extractor_kwargs(),
            net_arch=net_arch,
            activation_fn=activation_fn,
            use_sde=use_sde,
            log_std_init=log_std_init,
            use_expln=use_expln,
            clip_mean=clip_mean,
            n_quantiles=n_quantiles,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        parameters["share_features_extractor"] = self.share_features_extractor  # SB3 leaves it out
        return parameters


class FusionTD3Policy(OffPolicyFusion, TD3Policy):
    """TD3 policy whose actor and critics are fused with the context.

    Args:
        observation_space: a Dict space.
        action_space: a Box space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion or its config with options.
        context: name or config of the context encoder; None to choose it from the space.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads".
        observation_keys: keys that are inputs; None for all but contexts and ``action_mask``.
        net_arch: sizes of the hidden layers, as a list or as ``dict(pi=..., qf=...)``; None for SB3's
            default.
        activation_fn: activation of the hidden layers.
        n_critics: number of critics.
        share_features_extractor: use one features extractor for the actor and the critics.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizers.
        optimizer_kwargs: keyword arguments of the optimizers, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector", "heads"),
        observation_keys: Sequence[str] | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.network = _resolved_network(
            observation_space, network, fusion, context, encoder, sites, observation_keys
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=self._extractor_kwargs(),
            net_arch=net_arch,
            activation_fn=activation_fn,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

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
    """DQN policy whose Q-network is f(MLP(features), z), with one output per action.

    Args:
        observation_space: a Dict space.
        action_space: a Discrete space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion or its config with options.
        context: name or config of the context encoder; None to choose it from the space.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads".
        observation_keys: keys that are inputs; None for all but contexts and ``action_mask``.
        net_arch: sizes of the hidden layers; None for SB3's default.
        activation_fn: activation of the hidden layers.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizer.
        optimizer_kwargs: keyword arguments of the optimizer, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector", "heads"),
        observation_keys: Sequence[str] | None = None,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.network = _resolved_network(
            observation_space, network, fusion, context, encoder, sites, observation_keys
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=self._extractor_kwargs(),
            net_arch=net_arch,
            activation_fn=activation_fn,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def make_q_net(self) -> QNetwork:
        q_net = super().make_q_net()
        if self.fuses_in_heads:
            q_net.q_net = with_fused_head(q_net.q_net, q_net.features_extractor)
        return q_net.to(self.device)
