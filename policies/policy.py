"""``FusionPolicy``: an actor-critic policy whose policy and value heads are interactions with the context."""

from collections.abc import Sequence
from typing import Any, cast

from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import ArrayLike
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mirl.configs.networks import ContextConfig, EncoderConfig, FusionConfig, Site
from mirl.policies.contexts import Distinct, GoalContext
from mirl.policies.extractor import Features, FusionExtractor
from mirl.policies.interactions import Fusion, build_fusion
from mirl.policies.specialise import SpecialisedPolicy


class ContextMlpExtractor(MlpExtractor):
    """SB3's ``MlpExtractor`` over the vector, with the context passed by untouched."""

    def forward_actor(self, features: Features) -> Features:  # type: ignore[override]
        return features._replace(vector=super().forward_actor(features.vector))

    def forward_critic(self, features: Features) -> Features:  # type: ignore[override]
        return features._replace(vector=super().forward_critic(features.vector))


class FusionHead(nn.Module):
    """A policy or value head y = f(hidden, z), as the paper does for multitask RL."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Features) -> Float[Tensor, "batch out"]:
        y: Tensor = self.fusion(features.vector, *features.context)
        return y


class FusionPolicy(MultiInputActorCriticPolicy):
    """For PPO and A2C: ``FusionExtractor`` below, SB3's MLPs in between, and fusion in the heads if ``sites`` says so.

    ``share_features_extractor=False`` gives actor and critic separate trunks. Everything else is SB3's own policy.

    :param fusion, context, encoder, observation_keys: as for ``FusionExtractor``.
    :param sites: one or several of "map", "vector" and "heads".
    :param sb3: the other keyword arguments of SB3's ``MultiInputActorCriticPolicy``.
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
        extractor = {
            **self._fusion_arguments,
            "sites": tuple(site for site in sites if site != "heads"),
            "give_context": self.fuses_in_heads,
        }
        super().__init__(
            cast(spaces.Dict, observation_space),  # FusionExtractor refuses any other
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=extractor,
            **sb3,
        )

    def _build_mlp_extractor(self) -> None:
        if self.fuses_in_heads:
            self.mlp_extractor = ContextMlpExtractor(self.features_dim, self.net_arch, self.activation_fn, self.device)
        else:
            super()._build_mlp_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.fuses_in_heads:
            mlp = self.mlp_extractor
            # the gains are those SB3 gives its own heads: a nearly uniform first policy
            n_outputs = int(cast(nn.Linear, self.action_net).out_features)  # SB3 sums MultiDiscrete with numpy
            self.action_net = self._head(mlp.latent_dim_pi, n_outputs, 0.01)
            self.value_net = self._head(mlp.latent_dim_vf, 1, 1.0)  # type: ignore[assignment]
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _head(self, hidden_dim: int, out_dim: int, gain: float) -> FusionHead:
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        fusion = build_fusion(extractor.fusion_config, hidden_dim, extractor.context_dim, out_dim, gain=gain)
        return FusionHead(fusion).to(self.device)

    @property
    def distinct_key(self) -> str | None:
        """The key of a context of which a batch holds few distinct ones: it may come as ``Distinct`` rows."""
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        return None if isinstance(extractor.context, GoalContext) else extractor.routing.context

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        """SB3's, which also takes the context as ``Distinct`` rows."""
        distinct = {key: value for key, value in obs.items() if isinstance(value, Distinct)}
        others = {key: value for key, value in obs.items() if key not in distinct}
        plain = cast(dict[str, Tensor], preprocess_obs(others, self.observation_space, self.normalize_images))
        if features_extractor is not None or self.share_features_extractor:
            return (features_extractor or self.features_extractor)({**plain, **distinct})
        return self.pi_features_extractor({**plain, **distinct}), self.vf_features_extractor({**plain, **distinct})

    def specialise(self, context: ArrayLike) -> SpecialisedPolicy:
        """The policy for one context alone, at the cost of a plain network; its weights are copies.

        :param context: one row as the observation holds it: a mission's token ids, a task's index, a goal.
        :raises ConfigError: when the context does not fit its space.
        """
        return SpecialisedPolicy(self, context)

    def _get_action_dist_from_latent(self, latent_pi: Any) -> Distribution:
        if isinstance(latent_pi, Features) and isinstance(self.action_dist, StateDependentNoiseDistribution):
            return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std, latent_pi.vector)
        return super()._get_action_dist_from_latent(latent_pi)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for ours in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[ours]
        # SB3 leaves the next one out, and could not load a policy with separate trunks
        return {**parameters, **self._fusion_arguments, "share_features_extractor": self.share_features_extractor}
