"""``FusionPolicy``: an actor-critic policy whose policy and value heads are themselves interactions with the context."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mirl.configs.schema import ContextConfig, EncoderConfig, FusionConfig, Site
from mirl.policies.extractor import FusionExtractor
from mirl.policies.interactions import Fusion, build_fusion


class ContextMlpExtractor(nn.Module):
    """SB3's ``MlpExtractor`` over the features, with the context passed by untouched: (B, D + Z) → (B, H + Z)."""

    def __init__(self, mlp: MlpExtractor, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        self.mlp, self.split = mlp, (vector_dim, context_dim)
        self.latent_dim_pi, self.latent_dim_vf = mlp.latent_dim_pi + context_dim, mlp.latent_dim_vf + context_dim

    def forward(self, features: Float[Tensor, "batch features"]) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch latent"]:
        vector, context = features.split(self.split, dim=1)
        return torch.cat([self.mlp.forward_actor(vector), context], dim=1)

    def forward_critic(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch latent"]:
        vector, context = features.split(self.split, dim=1)
        return torch.cat([self.mlp.forward_critic(vector), context], dim=1)


class FusionHead(nn.Module):
    """A policy or value head y = f(latent, z), as the paper does for multitask RL."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, latent: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch out"]:
        features, context = latent.split((self.fusion.features_dim, self.fusion.context_dim), dim=1)
        return self.fusion(features, context)


class FusionPolicy(MultiInputActorCriticPolicy):
    """For PPO and A2C: ``FusionExtractor`` below, SB3's MLPs in between, and fusion in the heads if ``sites`` says so.

    ``share_features_extractor=False`` gives actor and critic separate trunks. Everything else is SB3's own policy.

    :param fusion, context, encoder, observation_keys: as for ``FusionExtractor``.
    :param sites: one or several of "map", "vector" and "heads".
    :param sb3: the other keyword arguments of SB3's ``MultiInputActorCriticPolicy``.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
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
            "append_context": self.fuses_in_heads,
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=FusionExtractor,
            features_extractor_kwargs=extractor,
            **sb3,
        )

    def _build_mlp_extractor(self) -> None:
        if not self.fuses_in_heads:
            return super()._build_mlp_extractor()
        extractor: FusionExtractor = self.pi_features_extractor
        mlp = MlpExtractor(extractor.vector_dim, self.net_arch, self.activation_fn, self.device)
        self.mlp_extractor = ContextMlpExtractor(mlp, extractor.vector_dim, extractor.context_dim).to(self.device)
        return None

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if not self.fuses_in_heads:
            return
        extractor: FusionExtractor = self.pi_features_extractor
        mlp = self.mlp_extractor.mlp

        def head(latent_dim: int, out_dim: int, gain: float) -> FusionHead:
            fusion = build_fusion(extractor.fusion_config, latent_dim, extractor.context_dim, out_dim, gain=gain)
            return FusionHead(fusion).to(self.device)

        # the gains are those SB3 gives its own heads: a nearly uniform first policy
        self.action_net = head(mlp.latent_dim_pi, self.action_net.out_features, 0.01)
        self.value_net = head(mlp.latent_dim_vf, 1, 1.0)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for ours in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[ours]
        return {**parameters, **self._fusion_arguments}
