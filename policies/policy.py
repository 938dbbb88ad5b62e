"""``FusionPolicy``: an actor-critic policy whose policy and value heads are interactions with the context."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    MemoryConfig,
    NetworkConfig,
    NoMemoryConfig,
    Site,
)
from mirl.policies.action_mask import has_action_mask, mask_logits
from mirl.policies.contexts import GoalContext
from mirl.policies.extractor import FusionExtractor, extractor_part
from mirl.policies.features import Features, UniqueRows
from mirl.policies.fusions import Fusion, build_fusion
from mirl.policies.heads import HEAD_GAIN, ContextMlpExtractor, FusionHead, VectorHead
from mirl.policies.popart import PopArtHead, get_n_tasks
from mirl.policies.routing import choose_network, resolve_network


class FusionPolicy(MultiInputActorCriticPolicy):
    """Actor-critic policy for PPO and A2C: a ``FusionExtractor``, SB3's MLPs, and fused heads.

    If the observation has the key ``action_mask``, a MultiBinary with one bit per Discrete action,
    the policy never takes an action whose bit is 0. Everything else is SB3's
    ``MultiInputActorCriticPolicy``.

    Describe the networks either by ``network`` or by the separate options from ``fusion`` to
    ``memory``.

    Args:
        observation_space: a Dict space.
        action_space: any action space that SB3's PPO and A2C take.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks.
        fusion: name of a fusion ("bilinear", "film", ...) or its config with options.
        context: name or config of the context encoder; None for the encoder of ``desired_goal``,
            ``mission`` or ``task``, whichever key the space has first.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: one or several of "map" (each cell of an image), "vector" (the feature vector) and
            "heads" (the policy head and the value head).
        observation_keys: keys that are inputs; None for every key that is neither a context nor
            ``action_mask``.
        memory: name or config of the recurrent core, for ``RecurrentFusionPolicy`` only.
        popart: make the value head a ``PopArtHead``; MIRL's PPO and A2C call its ``update``.
        net_arch: sizes of the hidden layers of SB3's MLPs, as a list or as ``dict(pi=..., vf=...)``;
            None for SB3's default.
        activation_fn: activation of the MLPs.
        ortho_init: initialize weights orthogonally.
        use_sde: use generalized state-dependent exploration (gSDE).
        log_std_init: initial logarithm of the standard deviation, for continuous actions.
        full_std: gSDE: use (features x actions) parameters for the standard deviation.
        use_expln: gSDE: use ``expln`` instead of ``exp`` for a positive standard deviation.
        squash_output: gSDE: squash actions by tanh.
        share_features_extractor: use one features extractor for the actor and the critic; False
            gives each its own.
        normalize_images: divide images by 255.
        optimizer_class: class of the optimizer.
        optimizer_kwargs: keyword arguments of the optimizer, without the learning rate.

    Raises:
        ConfigError: if the spaces or the options do not fit.
    """

    is_recurrent: ClassVar[bool] = False
    """Whether a recurrent core stands between the features extractor and the MLPs."""
    default_memory: ClassVar[str] = "none"
    """Recurrent core if ``memory`` is not given."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector", "heads"),
        observation_keys: Sequence[str] | None = None,
        memory: str | MemoryConfig | None = None,
        popart: bool = False,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        network = choose_network(
            network,
            fusion=fusion,
            context=context,
            encoder=encoder,
            sites=sites,
            default_sites=("vector", "heads"),
            observation_keys=observation_keys,
            memory=memory,
            default_memory=self.default_memory,
        )
        self._check_memory(network.memory)
        self.fuses_in_heads = "heads" in network.sites
        self.popart = popart
        self.masks_actions = has_action_mask(observation_space, action_space)
        self.n_tasks = get_n_tasks(observation_space) if popart else 1
        self.heads_use_features = (
            self.is_recurrent or self.fuses_in_heads or self.popart or self.masks_actions
        )
        self.network = resolve_network(network, observation_space)
        super().__init__(
            cast(spaces.Dict, observation_space),  # resolve_network refuses any other
            action_space,
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            squash_output=squash_output,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs={
                "network": extractor_part(self.network),
                "return_features": self.heads_use_features,
            },
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _check_memory(self, memory: MemoryConfig) -> None:
        """Raise a ConfigError if the policy cannot have this memory."""
        if not isinstance(memory, NoMemoryConfig):
            raise ConfigError(
                f"FusionPolicy has no memory, got memory={memory.kind}; "
                "memory=… is for mirl.policies.RecurrentFusionPolicy"
            )

    def _build_mlp_extractor(self) -> None:
        if self.heads_use_features:
            self.mlp_extractor = ContextMlpExtractor(
                self.features_dim, self.net_arch, self.activation_fn, self.device
            )
        else:
            super()._build_mlp_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.ortho_init:
            nn.init.orthogonal_(self.value_net.weight, HEAD_GAIN)
        if self.heads_use_features:
            self.action_net = self._head(cast(nn.Linear, self.action_net))
            value_net = self._popart_head() if self.popart else self._head(self.value_net)
            self.value_net = value_net  # type: ignore[assignment]
            self.to(self.device)
            self.optimizer = self.optimizer_class(
                self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
            )  # type: ignore[call-arg]

    def _head(self, linear: nn.Linear) -> FusionHead | VectorHead:
        if not self.fuses_in_heads:
            return VectorHead(linear)
        # SB3 sums MultiDiscrete with numpy
        return FusionHead(self._fusion(linear.in_features, int(linear.out_features), HEAD_GAIN))

    def _popart_head(self) -> PopArtHead:
        hidden_dim = self.mlp_extractor.latent_dim_vf
        fusion = (
            self._fusion(hidden_dim, hidden_dim, gain=math.sqrt(2)) if self.fuses_in_heads else None
        )
        return PopArtHead(self.n_tasks, hidden_dim, fusion, gain=HEAD_GAIN)

    def _fusion(self, in_dim: int, out_dim: int, gain: float) -> Fusion:
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        return build_fusion(self.network.fusion, in_dim, extractor.context_dim, out_dim, gain=gain)

    @property
    def grouped_context_key(self) -> str | None:
        """The key of a context of which a batch holds few distinct ones: it may come as ``UniqueRows`` rows."""
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        return None if isinstance(extractor.context, GoalContext) else extractor.routing.context

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        """SB3's, which also takes the context as ``UniqueRows`` rows."""
        distinct = {key: value for key, value in obs.items() if isinstance(value, UniqueRows)}
        others = {key: value for key, value in obs.items() if key not in distinct}
        plain = cast(
            dict[str, Tensor], preprocess_obs(others, self.observation_space, self.normalize_images)
        )
        if features_extractor is not None or self.share_features_extractor:
            return (features_extractor or self.features_extractor)({**plain, **distinct})
        return self.pi_features_extractor({**plain, **distinct}), self.vf_features_extractor(
            {**plain, **distinct}
        )

    def action_parameters(self, latent_pi: Any) -> Float[Tensor, "batch parameters"]:
        """What the action distribution is made from: logits, of which masked ones are the lowest number, or the mean.

        :param latent_pi: what the actor's MLP gives.
        """
        parameters: Tensor = self.action_net(latent_pi)
        return mask_logits(parameters, latent_pi.action_mask) if self.masks_actions else parameters

    def _get_action_dist_from_latent(self, latent_pi: Any) -> Distribution:
        if isinstance(latent_pi, Features) and isinstance(
            self.action_dist, StateDependentNoiseDistribution
        ):
            return self.action_dist.proba_distribution(
                self.action_net(latent_pi), self.log_std, latent_pi.vector
            )
        if self.masks_actions:
            assert isinstance(self.action_dist, CategoricalDistribution)
            return self.action_dist.proba_distribution(
                action_logits=self.action_parameters(latent_pi)
            )
        return super()._get_action_dist_from_latent(latent_pi)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for fixed in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[fixed]
        for gsde_option in ("full_std", "use_expln", "squash_output"):
            if parameters[gsde_option] is None:  # SB3 keeps them with use_sde=True only
                del parameters[gsde_option]
        parameters["network"] = self.network
        parameters["popart"] = self.popart
        # SB3 leaves this one out, and could not load a policy with separate extractors
        parameters["share_features_extractor"] = self.share_features_extractor
        return parameters


def latents(policy: ActorCriticPolicy, features: Any) -> tuple[Any, Any]:
    """What the MLPs of actor and critic make of the features that ``extract_features`` gives."""
    if policy.share_features_extractor:
        both: tuple[Any, Any] = policy.mlp_extractor(features)
        return both
    return policy.mlp_extractor.forward_actor(features[0]), policy.mlp_extractor.forward_critic(
        features[1]
    )


def to_env_actions(policy: ActorCriticPolicy, actions: NDArray[Any]) -> NDArray[Any]:
    """The actions of a policy, unscaled or clipped to the space they are for."""
    if not isinstance(policy.action_space, spaces.Box):
        return actions
    if policy.squash_output:
        return policy.unscale_action(actions)
    return np.clip(actions, policy.action_space.low, policy.action_space.high)
