"""``FusionPolicy``: an actor-critic policy whose policy and value heads are interactions with the context."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mirl.configs.networks import ContextConfig, EncoderConfig, FusionConfig, Site
from mirl.policies.extractor import FusionExtractor
from mirl.policies.interactions import Fusion, build_fusion


class ContextMlpExtractor(MlpExtractor):
    """SB3's ``MlpExtractor`` over the features, with the context passed by untouched: (B, D + Z) → (B, H + Z)."""

    def __init__(
        self, extractor: FusionExtractor, net_arch: Any, activation_fn: type[nn.Module], device: torch.device
    ) -> None:
        super().__init__(extractor.vector_dim, net_arch, activation_fn, device)
        self.vector_dim = extractor.vector_dim
        self.hidden_dim_pi, self.hidden_dim_vf = self.latent_dim_pi, self.latent_dim_vf
        self.latent_dim_pi += extractor.context_dim
        self.latent_dim_vf += extractor.context_dim

    def forward_actor(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch latent"]:
        hidden = super().forward_actor(features[:, : self.vector_dim])
        return torch.cat([hidden, features[:, self.vector_dim :]], dim=1)

    def forward_critic(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch latent"]:
        hidden = super().forward_critic(features[:, : self.vector_dim])
        return torch.cat([hidden, features[:, self.vector_dim :]], dim=1)


class FusionHead(nn.Module):
    """A policy or value head y = f(hidden, z), as the paper does for multitask RL."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, latent: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch out"]:
        hidden, context = latent[:, : self.fusion.features_dim], latent[:, self.fusion.features_dim :]
        y: Tensor = self.fusion(hidden, context)
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
            "append_context": self.fuses_in_heads,
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
            extractor = cast(FusionExtractor, self.pi_features_extractor)
            self.mlp_extractor = ContextMlpExtractor(extractor, self.net_arch, self.activation_fn, self.device)
        else:
            super()._build_mlp_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.fuses_in_heads:
            mlp = cast(ContextMlpExtractor, self.mlp_extractor)
            # the gains are those SB3 gives its own heads: a nearly uniform first policy
            n_outputs = int(cast(nn.Linear, self.action_net).out_features)  # SB3 sums MultiDiscrete with numpy
            self.action_net = self._head(mlp.hidden_dim_pi, n_outputs, 0.01)
            self.value_net = self._head(mlp.hidden_dim_vf, 1, 1.0)  # type: ignore[assignment]
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _head(self, hidden_dim: int, out_dim: int, gain: float) -> FusionHead:
        extractor = cast(FusionExtractor, self.pi_features_extractor)
        fusion = build_fusion(extractor.fusion_config, hidden_dim, extractor.context_dim, out_dim, gain=gain)
        return FusionHead(fusion).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for ours in ("features_extractor_class", "features_extractor_kwargs"):
            del parameters[ours]
        # SB3 leaves the next one out, and could not load a policy with separate trunks
        return {**parameters, **self._fusion_arguments, "share_features_extractor": self.share_features_extractor}
