"""Actor-critic policy whose networks fuse the observation with the context."""

from collections.abc import Mapping, Sequence
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
from stable_baselines3.common.policies import (
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule, TensorDict
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    ContextChoice,
    EncoderChoice,
    FusionChoice,
    MemoryChoice,
    NetworkConfig,
    NoMemoryConfig,
    RecurrentCoreConfig,
    Site,
)
from mirl.policies.action_mask import has_action_mask, mask_logits
from mirl.policies.extractor import FusionExtractor, extractor_part
from mirl.policies.features import Features, Observations, UniqueRows
from mirl.policies.fusions import RELU_GAIN, Fusion, build_fusion
from mirl.policies.heads import (
    HEAD_GAIN,
    ContextMlpExtractor,
    FusionHead,
    VectorHead,
    ignore_similarities,
)
from mirl.policies.popart import PopArtHead, ScaledHead, get_n_tasks
from mirl.policies.routing import choose_network, resolve_network


class FusionPolicy(MultiInputActorCriticPolicy):
    """Actor-critic policy for PPO and A2C: a ``FusionExtractor``, SB3's MLPs, and fused heads.

    If the observation has the key ``action_mask``, zeros and ones with one entry per Discrete
    action, the policy never takes an action whose entry is 0. Everything else is SB3's
    ``MultiInputActorCriticPolicy``.

    Describe the networks either by ``network`` or by the separate options from ``fusion`` to
    ``memory``.

    Args:
        observation_space: a Dict space.
        action_space: any action space that SB3's PPO and A2C take.
        lr_schedule: learning rate as a function of the remaining progress, from 1 to 0.
        network: the whole configuration of the networks.
        fusion: name of a fusion ("bilinear", "film", ...), its config with options, or a custom
            class; "auto" to choose it by the observation and the context.
        context: name, config or class of the context encoder; None joins every goal and text, and
            the task id if there are several tasks, into one context.
        encoder: name, config or class of the observation encoder; None to choose it from the space.
        sites: one or several of "map" (each cell of an image), "vector" (the feature vector) and
            "heads" (the policy head and the value head); None to choose them with the fusion.
        observation_keys: keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.
        memory: name, config or class of the recurrent core, for ``RecurrentFusionPolicy`` only.
        popart: make the value head a ``PopArtHead``; MIRL's PPO and A2C call its ``update``.
        scale_values: make the value head a ``ScaledHead``, which they update too; no effect with
            ``popart``.
        net_arch: sizes of the hidden layers of SB3's MLPs, as a list or as
            ``dict(pi=..., vf=...)``; None for SB3's default.
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

    Examples:
        >>> from gymnasium.spaces import Box, Dict, Discrete
        >>> from mirl.policies import FusionPolicy
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> policy = FusionPolicy(space, Discrete(4), lambda _: 3e-4, fusion="bilinear")
        >>> policy.network.chosen_sites  # chosen with the fusion
        ('vector', 'heads')
        >>> action, _ = policy.predict(space.sample())
        >>> action in policy.action_space
        True
    """

    is_recurrent: ClassVar[bool] = False
    """True if there is a recurrent core between the features extractor and the MLPs."""
    default_memory: ClassVar[str] = "none"
    """Recurrent core if ``memory`` is not given."""

    def __init__(
        self,
        observation_space: spaces.Space[object],
        action_space: spaces.Space[object],
        lr_schedule: Schedule,
        network: NetworkConfig | None = None,
        *,
        fusion: FusionChoice = "auto",
        context: ContextChoice | None = None,
        encoder: EncoderChoice | None = None,
        sites: Sequence[Site] | None = None,
        observation_keys: Sequence[str] | None = None,
        memory: MemoryChoice | None = None,
        popart: bool = False,
        scale_values: bool = False,
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
            observation_keys=observation_keys,
            memory=memory,
            default_memory=self.default_memory,
        )
        # SB3's constructor builds the networks, so everything that they depend on is set first
        self._check_memory(network.memory)
        self.network = resolve_network(network, observation_space)
        self.fuses_in_heads = "heads" in self.network.chosen_sites
        self.popart = popart
        self.scale_values = scale_values and not popart
        self.masks_actions = has_action_mask(observation_space, action_space)
        self.n_tasks = 1
        if popart:
            self.n_tasks = get_n_tasks(observation_space)
        # the heads take ``Features`` if they need more than the vector
        self.heads_use_features = (
            self.is_recurrent
            or self.fuses_in_heads
            or self.masks_actions
            or self.popart
            or self.scale_values
        )
        super().__init__(
            cast(spaces.Dict, observation_space),  # resolve_network rejects any other
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
                "return_similarities": self.fuses_in_heads,
            },
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _check_memory(self, memory: RecurrentCoreConfig | NoMemoryConfig) -> None:
        """Raise a ConfigError if the policy cannot have this memory."""
        if not isinstance(memory, NoMemoryConfig):
            raise ConfigError(
                f"FusionPolicy has no memory, got memory={memory.kind}; "
                "memory=… is for mirl.policies.RecurrentFusionPolicy"
            )

    def _build_mlp_extractor(self) -> None:
        if self.heads_use_features:
            self.mlp_extractor = ContextMlpExtractor(
                self.features_dim,
                self.net_arch,
                self.activation_fn,
                self.device,
                self._similarities_dim,
            )
        else:
            super()._build_mlp_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.ortho_init:
            # SB3 has initialized it with a gain of 1
            nn.init.orthogonal_(self.value_net.weight, HEAD_GAIN)
        if not self.heads_use_features:
            return
        # replace SB3's linear heads; the actor's first, for the order of the random draws
        self.action_net = self._head(cast(nn.Linear, self.action_net))
        self.value_net = self._value_head(self.value_net)  # type: ignore[assignment]
        self.to(self.device)
        # SB3's optimizer holds the weights of the replaced heads
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    @property
    def _similarities_dim(self) -> int:
        """Number of similarities of cells with the context that the heads receive; 0 for none."""
        return cast(FusionExtractor, self.pi_features_extractor).similarities_dim

    def _head(self, linear: nn.Linear) -> FusionHead | VectorHead:
        if not self.fuses_in_heads:
            return VectorHead(linear)
        if self._similarities_dim:
            # the similarities replace a fusion, which would learn which cells it sees
            ignore_similarities(linear.weight, self._similarities_dim)
            return VectorHead(linear)
        # for MultiDiscrete SB3 computes the number of outputs with numpy
        out_dim = int(linear.out_features)
        return FusionHead(self._fusion(linear.in_features, out_dim, HEAD_GAIN))

    def _value_head(self, linear: nn.Linear) -> FusionHead | VectorHead | PopArtHead | ScaledHead:
        if self.popart:
            return self._popart_head()
        head = self._head(linear)
        return ScaledHead(head) if self.scale_values else head

    def _popart_head(self) -> PopArtHead:
        hidden_dim = self.mlp_extractor.latent_dim_vf
        fusion = None
        if self.fuses_in_heads and not self._similarities_dim:
            fusion = self._fusion(hidden_dim, hidden_dim, RELU_GAIN)
        head = PopArtHead(self.n_tasks, hidden_dim, fusion, gain=HEAD_GAIN)
        ignore_similarities(head.weight, self._similarities_dim)
        return head

    def _fusion(self, in_dim: int, out_dim: int, gain: float) -> Fusion:
        # a separate extractor of the critic has contexts of the same size
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        return build_fusion(
            self.network.chosen_fusion,
            in_dim,
            extractor.context_dim,
            out_dim,
            gain=gain,
        )

    @property
    def grouped_context_key(self) -> str | None:
        """Key of a context that may be given as ``UniqueRows``: a batch has few distinct ones.

        None if the contexts are continuous, or if the key is an input as well.
        """
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        key = extractor.context.grouped_key
        if key in extractor.encoder.keys:
            # inputs are needed row by row
            return None
        return key

    def extract_features(
        self,
        obs: PyTorchObs | Observations,
        features_extractor: BaseFeaturesExtractor | None = None,
    ) -> Any:
        """Extract features as SB3 does, also from a context given as ``UniqueRows``.

        Args:
            obs: observations as they come from the buffer, before SB3's preprocessing.
            features_extractor: the extractor to use; None for the policy's own.

        Returns:
            The output of the given or of the shared extractor; without either, the outputs of the
            actor's and the critic's extractor.
        """
        assert isinstance(obs, Mapping), "the observation space is a Dict"
        # SB3's preprocessing only handles tensors
        tensors = {key: value for key, value in obs.items() if isinstance(value, Tensor)}
        preprocessed = preprocess_obs(tensors, self.observation_space, self.normalize_images)
        # distinct rows are not preprocessed; the context encoder takes raw values
        observations: dict[str, Tensor | UniqueRows] = {
            **obs,
            **cast(TensorDict, preprocessed),
        }
        if features_extractor is not None:
            return features_extractor(observations)
        if self.share_features_extractor:
            return self.features_extractor(observations)
        actor_features = self.pi_features_extractor(observations)
        critic_features = self.vf_features_extractor(observations)
        return actor_features, critic_features

    def action_parameters(
        self,
        latent_pi: Tensor | Features,
    ) -> Float[Tensor, "batch parameters"]:
        """Return the parameters of the action distribution.

        Args:
            latent_pi: output of the actor's MLP.

        Returns:
            The logits of discrete actions, masked if the policy masks actions; the mean of
            continuous ones.
        """
        parameters: Tensor = self.action_net(latent_pi)
        if not self.masks_actions:
            return parameters
        assert isinstance(latent_pi, Features)
        assert latent_pi.action_mask is not None
        return mask_logits(parameters, latent_pi.action_mask)

    def _get_action_dist_from_latent(self, latent_pi: Tensor | Features) -> Distribution:
        distribution = self.action_dist
        if isinstance(latent_pi, Features) and isinstance(
            distribution, StateDependentNoiseDistribution
        ):
            # gSDE's noise is a function of the hidden layer
            mean = self.action_net(latent_pi)
            return distribution.proba_distribution(mean, self.log_std, latent_pi.vector)
        if self.masks_actions:
            assert isinstance(distribution, CategoricalDistribution)
            return distribution.proba_distribution(self.action_parameters(latent_pi))
        return super()._get_action_dist_from_latent(latent_pi)  # type: ignore[arg-type]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        # a loaded policy is built from these parameters, and the constructor lacks these two
        for fixed in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[fixed]
        for gsde_option in ("full_std", "use_expln", "squash_output"):
            if parameters[gsde_option] is None:  # SB3 keeps them with use_sde=True only
                del parameters[gsde_option]
        parameters["network"] = self.network
        parameters["popart"] = self.popart
        parameters["scale_values"] = self.scale_values
        # SB3 leaves this one out, and could not load a policy with separate extractors
        parameters["share_features_extractor"] = self.share_features_extractor
        return parameters


def latents(policy: ActorCriticPolicy, features: Any) -> tuple[Any, Any]:
    """Apply the MLPs of the actor and of the critic.

    Args:
        policy: any actor-critic policy of SB3.
        features: output of ``policy.extract_features``; a pair if the extractors are separate.

    Returns:
        The last hidden layers of the actor and of the critic: tensors, or ``Features`` for a
        ``FusionPolicy`` whose heads use them.
    """
    if policy.share_features_extractor:
        both: tuple[Any, Any] = policy.mlp_extractor(features)
        return both
    actor_features, critic_features = features
    latent_pi = policy.mlp_extractor.forward_actor(actor_features)
    latent_vf = policy.mlp_extractor.forward_critic(critic_features)
    return latent_pi, latent_vf


def to_env_actions(policy: BasePolicy, actions: NDArray[Any]) -> NDArray[Any]:
    """Convert the actions of a policy to the environment's action space.

    Args:
        policy: the policy that chose the actions.
        actions: (B, *action), one action per row.

    Returns:
        Box actions, unscaled if the policy squashes its outputs and clipped otherwise; all others
        unchanged.
    """
    if not isinstance(policy.action_space, spaces.Box):
        return actions
    if policy.squash_output:
        # tanh gives actions in [-1, 1]
        return policy.unscale_action(actions)
    return np.clip(actions, policy.action_space.low, policy.action_space.high)
