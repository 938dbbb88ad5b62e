"""Policies for SAC, TD3, TQC and DQN whose actors and critics are fused with the context.

``sites`` means the same as in ``FusionPolicy``: "map" and "vector" are in the features extractor;
with "heads" the last layer of every network is a fusion. The critic is then
Q(s, a, z) = f(MLP([features, a]), z), so ``fusion="bilinear"`` gives a bilinear critic and
``fusion="metric"`` a metric critic.
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
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.networks import (
    ContextChoice,
    EncoderChoice,
    FusionChoice,
    NetworkConfig,
    NoMemoryConfig,
    Site,
)
from mirl.policies.action_mask import has_action_mask, mask_logits
from mirl.policies.extractor import FusionExtractor, extractor_part
from mirl.policies.features import Features, join_similarities
from mirl.policies.fusions import build_fusion
from mirl.policies.heads import FusionHead, VectorHead, widen_for_similarities
from mirl.policies.routing import choose_network, resolve_network

LINEAR_GAIN = 1 / math.sqrt(3)
"""Gain of an orthogonal initialization with entries as large as those of PyTorch's ``nn.Linear``,
whose initialization SB3 keeps."""


# ----------------------------------------------------------------------------------------- networks


class ApplyToFeatures(nn.Module):
    """Layers that are applied to the vector of ``Features``; the rest passes through unchanged.

    Args:
        layers: layers from vectors to vectors.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Features) -> Features:
        """Return the features with the inputs of the head as the vector."""
        hidden = self.layers(features.vector)
        return features._replace(vector=join_similarities(hidden, features.similarities))


def fused_head(linear: nn.Linear, extractor: FusionExtractor) -> FusionHead | VectorHead:
    """Build a fused head with the input and output sizes of a linear head.

    Args:
        linear: the head that SB3 built.
        extractor: the features extractor of the network.

    Returns:
        A fusion of the hidden layer; if the extractor has similarities of cells with the context, a
        linear head that reads them instead.
    """
    if extractor.similarities_dim:
        return VectorHead(widen_for_similarities(linear, extractor.similarities_dim))
    fusion = build_fusion(
        extractor.network.chosen_fusion,
        linear.in_features,
        extractor.context_dim,
        linear.out_features,
        gain=LINEAR_GAIN,
    )
    return FusionHead(fusion)


def with_fused_head(mlp: nn.Module, extractor: BaseFeaturesExtractor) -> nn.Sequential:
    """Replace the last linear layer of an MLP by a fused head.

    Args:
        mlp: an MLP that SB3 built.
        extractor: the features extractor of the network.

    Returns:
        An MLP over ``Features``: the hidden layers apply to the vector, the head uses the context.
    """
    layers = list(cast(nn.Sequential, mlp))
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    head = fused_head(cast(nn.Linear, layers[last]), cast(FusionExtractor, extractor))
    hidden = ApplyToFeatures(nn.Sequential(*layers[:last]))
    # layers after the head, such as the tanh of TD3's actor, take its output tensor
    return nn.Sequential(hidden, head, *layers[last + 1 :])


def _fuse_q_networks(critic: ContinuousCritic | QuantileCritic) -> None:
    for i, mlp in enumerate(critic.q_networks):
        critic.q_networks[i] = with_fused_head(mlp, critic.features_extractor)
        # q_networks is a plain list; the parameters are registered under this name
        critic.add_module(f"qf{i}", critic.q_networks[i])


@contextmanager
def _frozen_for_actor_loss(critic: nn.Module, actions: Tensor) -> Iterator[None]:
    """Freeze the critic's weights while the actor's loss is computed.

    Actions that require gradients come from the actor; SB3 would discard the critic's gradients.
    """
    weights: list[nn.Parameter] = []
    if actions.requires_grad:
        weights = [weight for weight in critic.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _join(
    critic: ContinuousCritic | QuantileCritic,
    obs: PyTorchObs,
    actions: Tensor,
    *,
    train_extractor: bool,
) -> Features:
    """Extract features and concatenate the actions to their vector.

    ``train_extractor`` lets gradients flow to the features extractor, if gradients are enabled.
    """
    with torch.set_grad_enabled(train_extractor and torch.is_grad_enabled()):
        extracted = critic.extract_features(obs, critic.features_extractor)
    features = cast(Features, extracted)
    # (B, features) and (B, action) -> (B, features + action)
    joined = torch.cat([features.vector, actions], dim=1)
    return features._replace(vector=joined)


class FusionCritic(ContinuousCritic):
    """Critics of SAC and TD3 with fused heads, Q(s, a, z) = f(MLP([features, a]), z).

    Args:
        observation_space: the space of the observations.
        action_space: a Box space.
        net_arch: sizes of the hidden layers.
        features_extractor: the extractor, which returns ``Features``.
        features_dim: size of the feature vector.
        activation_fn: activation of the hidden layers.
        normalize_images: divide images by 255.
        n_critics: number of critics.
        share_features_extractor: whether the extractor is the actor's, whose loss trains it.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies.off_policy import FusionSACPolicy
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> critic = FusionSACPolicy(space, Box(-1, 1, (4,)), lambda _: 3e-4).critic
        >>> observations = {"observation": torch.zeros(5, 3), "desired_goal": torch.zeros(5, 2)}
        >>> [q.shape for q in critic(observations, torch.zeros(5, 4))]
        [torch.Size([5, 1]), torch.Size([5, 1])]
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
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
        self, obs: PyTorchObs, actions: Float[Tensor, "batch action"]
    ) -> tuple[Float[Tensor, "batch 1"], ...]:
        """Return the values of every critic, each (B, 1)."""
        with _frozen_for_actor_loss(self, actions):
            # as in SB3, only the actor's loss trains a shared extractor
            train_extractor = not self.share_features_extractor
            joined = _join(self, obs, actions, train_extractor=train_extractor)
            return tuple(q_network(joined) for q_network in self.q_networks)

    def q1_forward(
        self, obs: PyTorchObs, actions: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch 1"]:
        """Return the values of the first critic, (B, 1), for TD3's actor loss.

        Args:
            obs: a batch of observations.
            actions: (B, action); no gradient flows to the features extractor.
        """
        with _frozen_for_actor_loss(self, actions):
            joined = _join(self, obs, actions, train_extractor=False)
            q: Tensor = self.q_networks[0](joined)
            return q


class FusionQuantileCritic(QuantileCritic):
    """Critics of TQC with fused heads: quantiles of Q(s, a, z) = f(MLP([features, a]), z).

    Args:
        observation_space: the space of the observations.
        action_space: a Box space.
        net_arch: sizes of the hidden layers.
        features_extractor: the extractor, which returns ``Features``.
        features_dim: size of the feature vector.
        activation_fn: activation of the hidden layers.
        normalize_images: divide images by 255.
        n_quantiles: number of quantiles of each critic.
        n_critics: number of critics.
        share_features_extractor: whether the extractor is the actor's, whose loss trains it.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies.off_policy import FusionTQCPolicy
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> critic = FusionTQCPolicy(space, Box(-1, 1, (4,)), lambda _: 3e-4).critic
        >>> observations = {"observation": torch.zeros(5, 3), "desired_goal": torch.zeros(5, 2)}
        >>> critic(observations, torch.zeros(5, 4)).shape
        torch.Size([5, 2, 25])
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
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
        self, obs: PyTorchObs, action: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch critics quantiles"]:
        """Return the quantiles of every critic, (B, critics, quantiles)."""
        with _frozen_for_actor_loss(self, action):
            # as in SB3, only the actor's loss trains a shared extractor
            train_extractor = not self.share_features_extractor
            joined = _join(self, obs, action, train_extractor=train_extractor)
            quantiles = [q_network(joined) for q_network in self.q_networks]
            # critics times (B, quantiles) -> (B, critics, quantiles)
            return torch.stack(quantiles, dim=1)


def _fuse_gaussian_actor(actor: SACActor | TQCActor) -> None:
    if actor.use_sde:
        # gSDE's noise is a function of the hidden layer, which SB3 expects as a plain tensor
        raise ConfigError(
            "use_sde=True does not work with fused heads here; use sites=('vector',) or "
            "use_sde=False"
        )
    extractor = cast(FusionExtractor, actor.features_extractor)
    actor.latent_pi = ApplyToFeatures(actor.latent_pi)  # type: ignore[assignment]
    actor.mu = fused_head(cast(nn.Linear, actor.mu), extractor)
    log_std = fused_head(cast(nn.Linear, actor.log_std), extractor)
    actor.log_std = log_std  # type: ignore[assignment]


# ----------------------------------------------------------------------------------------- policies


def _resolved_network(
    observation_space: spaces.Dict,
    network: NetworkConfig | None,
    fusion: FusionChoice,
    context: ContextChoice | None,
    encoder: EncoderChoice | None,
    sites: Sequence[Site] | None,
    observation_keys: Sequence[str] | None,
) -> NetworkConfig:
    chosen = choose_network(
        network,
        fusion=fusion,
        context=context,
        encoder=encoder,
        sites=sites,
        observation_keys=observation_keys,
    )
    if not isinstance(chosen.memory, NoMemoryConfig):
        raise ConfigError(
            f"memory={chosen.memory.kind} is for PPO and A2C; SAC, TD3, TQC and DQN have no memory"
        )
    return resolve_network(chosen, observation_space)


class OffPolicyFusion(BasePolicy):
    """Base class of the policies below: their ``network``, and how it is saved."""

    network: NetworkConfig
    """The resolved configuration of the networks."""

    @property
    def fuses_in_heads(self) -> bool:
        """True if the last layer of every network is a fusion with the context."""
        return "heads" in self.network.chosen_sites

    def _extractor_kwargs(self) -> dict[str, Any]:
        return {
            "network": extractor_part(self.network),
            "return_features": self.fuses_in_heads,
            "return_similarities": self.fuses_in_heads,
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
        fusion: name of a fusion, its config with options, or a custom class; "auto" to choose it by
            the observation and the context.
        context: name, config or class of the context encoder; None to choose it from the space.
        encoder: name, config or class of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads"; None to choose them with the fusion.
        observation_keys: keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.
        net_arch: sizes of the hidden layers, as a list or as ``dict(pi=..., qf=...)``; None for
            SB3's default.
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

    Examples:
        >>> from stable_baselines3 import SAC
        >>> from mirl.configs.networks import GoalContextConfig
        >>> from mirl.envs import make_vec_env
        >>> from mirl.policies.off_policy import FusionSACPolicy
        >>> env = make_vec_env("MIRL/ODE-v0", n_envs=2)
        >>> options = dict(fusion="film", context=GoalContextConfig(key="context"))
        >>> agent = SAC(FusionSACPolicy, env, learning_starts=8, policy_kwargs=options)
        >>> agent.learn(16).num_timesteps
        16
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: FusionChoice = "auto",
        context: ContextChoice | None = None,
        encoder: EncoderChoice | None = None,
        sites: Sequence[Site] | None = None,
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
        """Build the actor as SB3 does, with fused heads if ``sites`` contains "heads"."""
        actor = super().make_actor(features_extractor)
        if self.fuses_in_heads:
            _fuse_gaussian_actor(actor)
        # the fused heads are still on the CPU
        return actor.to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        """Build the critics as SB3 does, with fused heads if ``sites`` contains "heads"."""
        if not self.fuses_in_heads:
            return super().make_critic(features_extractor)
        return FusionCritic(
            **self._update_features_extractor(self.critic_kwargs, features_extractor)
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        # SB3 leaves this one out
        parameters["share_features_extractor"] = self.share_features_extractor
        return parameters


class FusionTQCPolicy(OffPolicyFusion, TQCPolicy):
    """TQC policy whose actor and quantile critics are fused with the context.

    Args:
        observation_space: a Dict space.
        action_space: a Box space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion, its config with options, or a custom class; "auto" to choose it by
            the observation and the context.
        context: name, config or class of the context encoder; None to choose it from the space.
        encoder: name, config or class of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads"; None to choose them with the fusion.
        observation_keys: keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.
        net_arch: sizes of the hidden layers, as a list or as ``dict(pi=..., qf=...)``; None for
            SB3's default.
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

    Examples:
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies.off_policy import FusionTQCPolicy
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> policy = FusionTQCPolicy(space, Box(-1, 1, (4,)), lambda _: 3e-4, n_quantiles=10)
        >>> policy.critic.n_quantiles
        10
        >>> action, _ = policy.predict(space.sample(), deterministic=True)
        >>> action.shape
        (4,)
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: FusionChoice = "auto",
        context: ContextChoice | None = None,
        encoder: EncoderChoice | None = None,
        sites: Sequence[Site] | None = None,
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
        """Build the actor as SB3 does, with fused heads if ``sites`` contains "heads"."""
        actor = super().make_actor(features_extractor)
        if self.fuses_in_heads:
            _fuse_gaussian_actor(actor)
        # the fused heads are still on the CPU
        return actor.to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> QuantileCritic:
        """Build the critics as SB3 does, with fused heads if ``sites`` contains "heads"."""
        if not self.fuses_in_heads:
            return super().make_critic(features_extractor)
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return FusionQuantileCritic(**kwargs).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        # SB3 leaves this one out
        parameters["share_features_extractor"] = self.share_features_extractor
        return parameters


class FusionTD3Policy(OffPolicyFusion, TD3Policy):
    """TD3 policy whose actor and critics are fused with the context.

    Args:
        observation_space: a Dict space.
        action_space: a Box space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion, its config with options, or a custom class; "auto" to choose it by
            the observation and the context.
        context: name, config or class of the context encoder; None to choose it from the space.
        encoder: name, config or class of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads"; None to choose them with the fusion.
        observation_keys: keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.
        net_arch: sizes of the hidden layers, as a list or as ``dict(pi=..., qf=...)``; None for
            SB3's default.
        activation_fn: activation of the hidden layers.
        n_critics: number of critics.
        share_features_extractor: use one features extractor for the actor and the critics.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizers.
        optimizer_kwargs: keyword arguments of the optimizers, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.

    Examples:
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies.off_policy import FusionTD3Policy
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> policy = FusionTD3Policy(space, Box(-1, 1, (4,)), lambda _: 3e-4, sites=["heads"])
        >>> [type(layer).__name__ for layer in policy.actor.mu]  # the fusion is the last layer
        ['ApplyToFeatures', 'FusionHead', 'Tanh']
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: FusionChoice = "auto",
        context: ContextChoice | None = None,
        encoder: EncoderChoice | None = None,
        sites: Sequence[Site] | None = None,
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
        """Build the actor as SB3 does, with fused heads if ``sites`` contains "heads"."""
        actor = super().make_actor(features_extractor)
        if self.fuses_in_heads:
            actor.mu = with_fused_head(actor.mu, actor.features_extractor)
        # the fused heads are still on the CPU
        return actor.to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        """Build the critics as SB3 does, with fused heads if ``sites`` contains "heads"."""
        if not self.fuses_in_heads:
            return super().make_critic(features_extractor)
        return FusionCritic(
            **self._update_features_extractor(self.critic_kwargs, features_extractor)
        ).to(self.device)


class MaskedQNetwork(QNetwork):
    """Q-network whose greedy action is an available one: one with a 1 in ``action_mask``.

    The arguments are those of SB3's ``QNetwork``.
    """

    masks_values = False
    """True if ``forward`` returns the lowest finite number as the value of unavailable actions.

    The target network needs this, because its values are maximized. The online network returns all
    values: those of the taken actions are trained, even if a DQN explores with any action.
    """

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Return the values of all actions, (B, actions)."""
        values = super().forward(obs)
        return self._mask(values, obs) if self.masks_values else values

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> Tensor:
        values = self._mask(self(observation), observation)
        return values.argmax(dim=1).reshape(-1)

    def _mask(self, values: Tensor, obs: PyTorchObs) -> Tensor:
        assert isinstance(obs, dict), "a mask is a key of the observation"
        return mask_logits(values, obs[ACTION_MASK_KEY] != 0)


class FusionDQNPolicy(OffPolicyFusion, DQNPolicy):
    """DQN policy whose Q-network is f(MLP(features), z), with one output per action.

    If the observation has the key ``action_mask``, zeros and ones with one entry per action, the
    greedy action and the value of the next state are those of available actions. SB3's DQN draws
    its random actions from all actions; ``agent=dqn`` draws them from the available ones.

    Args:
        observation_space: a Dict space.
        action_space: a Discrete space.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks, instead of the five options after it.
        fusion: name of a fusion, its config with options, or a custom class; "auto" to choose it by
            the observation and the context.
        context: name, config or class of the context encoder; None to choose it from the space.
        encoder: name, config or class of the observation encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads"; None to choose them with the fusion.
        observation_keys: keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.
        net_arch: sizes of the hidden layers; None for SB3's default.
        activation_fn: activation of the hidden layers.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizer.
        optimizer_kwargs: keyword arguments of the optimizer, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.

    Examples:
        >>> from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
        >>> from mirl.policies.off_policy import FusionDQNPolicy
        >>> seen, goal, mask = Box(-1, 1, (3,)), Box(-1, 1, (2,)), MultiBinary(4)
        >>> space = Dict(observation=seen, desired_goal=goal, action_mask=mask)
        >>> policy = FusionDQNPolicy(space, Discrete(4), lambda _: 3e-4)
        >>> action, _ = policy.predict({**space.sample(), "action_mask": [0, 0, 1, 0]})
        >>> int(action)  # the only available action
        2
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: FusionChoice = "auto",
        context: ContextChoice | None = None,
        encoder: EncoderChoice | None = None,
        sites: Sequence[Site] | None = None,
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
        self.masks_actions = has_action_mask(observation_space, action_space)
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
        if isinstance(self.q_net_target, MaskedQNetwork):
            self.q_net_target.masks_values = True

    def make_q_net(self) -> QNetwork:
        """Build the Q-network as SB3 does, with a fused head if ``sites`` contains "heads"."""
        # SB3 calls this twice, for the online and for the target network
        if self.masks_actions:
            q_net: QNetwork = MaskedQNetwork(
                **self._update_features_extractor(self.net_args, features_extractor=None)
            )
        else:
            q_net = super().make_q_net()
        if self.fuses_in_heads:
            q_net.q_net = with_fused_head(q_net.q_net, q_net.features_extractor)
        return q_net.to(self.device)
