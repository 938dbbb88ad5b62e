"""``FusionPolicy``: an actor-critic policy whose policy and value heads are interactions with the context."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
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
from mirl.configs.networks import ContextConfig, EncoderConfig, FusionConfig, Site
from mirl.policies.action_mask import has_action_mask, mask_logits
from mirl.policies.contexts import GoalContext
from mirl.policies.extractor import FusionExtractor, extractor_kwargs
from mirl.policies.features import Features, UniqueRows
from mirl.policies.fusions import Fusion, build_fusion
from mirl.policies.heads import HEAD_GAIN, ContextMlpExtractor, FusionHead, VectorHead
from mirl.policies.popart import PopArtHead, get_n_tasks
from mirl.policies.specialize import SpecialisedPolicy


class FusionPolicy(MultiInputActorCriticPolicy):
    """For PPO and A2C: ``FusionExtractor`` below, SB3's MLPs in between, and fusion in the heads if ``sites`` says so.

    ``share_features_extractor=False`` gives actor and critic separate trunks. Where the observation has a key
    ``action_mask``, MultiBinary with a bit for each of the Discrete actions, actions whose bit is 0 are never taken.
    Everything else is SB3's own policy.

    :param fusion, context, encoder, observation_keys: as for ``FusionExtractor``.
    :param sites: one or several of "map", "vector" and "heads".
    :param popart: the value head is a ``PopArtHead``, whose ``update`` the algorithm calls (MIRL's do).
    :param sb3: the other keyword arguments of SB3's ``MultiInputActorCriticPolicy``.
    :raises ConfigError: when the spaces do not fit.
    """

    is_recurrent = False
    """A memory stands between the extractor and the MLPs."""

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
        popart: bool = False,
        **sb3: Any,
    ) -> None:
        if "memory" in sb3:
            raise ConfigError(
                "FusionPolicy remembers nothing; memory=… is for mirl.policies.RecurrentFusionPolicy"
            )
        self.fuses_in_heads, self.popart = "heads" in sites, popart
        self.masks_actions = has_action_mask(observation_space, action_space)
        self.n_tasks = get_n_tasks(observation_space) if popart else 1
        self.heads_use_features = (
            self.is_recurrent or self.fuses_in_heads or self.popart or self.masks_actions
        )
        self._fusion_arguments = {
            "fusion": fusion,
            "context": context,
            "encoder": encoder,
            "sites": tuple(sites),
            "observation_keys": observation_keys,
        }
        super().__init__(
            cast(spaces.Dict, observation_space),  # FusionExtractor refuses any other
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=extractor_kwargs(
                self._fusion_arguments, self.heads_use_features
            ),
            **sb3,
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
        return build_fusion(
            extractor.fusion_config, in_dim, extractor.context_dim, out_dim, gain=gain
        )

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

    def specialize(self, context: ArrayLike, task: int = 0) -> SpecialisedPolicy:
        """The policy for one context alone, at the cost of a plain network; its weights are copies.

        :param context: one row as the observation holds it: a mission's token ids, a task's index, a goal.
        :param task: whose value is wanted, where values are per task (``popart``); a context that is the task says so
            itself.
        :raises ConfigError: when the context does not fit its space, or there is no such task.
        """
        if self.popart and not 0 <= task < self.n_tasks:
            raise ConfigError(f"expected a task from 0 to {self.n_tasks - 1}, got {task}")
        return SpecialisedPolicy(self, context, task)

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
        # SB3 leaves the next one out, and could not load a policy with separate trunks
        ours = {**self._fusion_arguments, "popart": self.popart}
        return {**parameters, **ours, "share_features_extractor": self.share_features_extractor}


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
