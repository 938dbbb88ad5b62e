"""``FusionExtractor``: the interaction family as a features extractor for any Stable-Baselines3 algorithm."""

from collections.abc import Sequence
from typing import cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.networks import ContextConfig, EncoderConfig, FusionConfig, Site, VectorEncoderConfig, choose
from mirl.policies.contexts import build_context
from mirl.policies.encoders import CellsEncoder, build_encoder
from mirl.policies.interactions import Fusion, build_fusion, build_map_fusion
from mirl.policies.routing import default_context, default_encoder, route


class FusionExtractor(BaseFeaturesExtractor):
    """Encodes the observation, encodes the context, and fuses them by a member of the interaction family.

    :param observation_space: a Dict space; every size is read from it.
    :param fusion: a name ("bilinear", "film", …) or a frozen config class with its options.
    :param context: what the context is; by default ``desired_goal``, else ``mission``, else ``task``.
    :param encoder: what the observation passes through; by default chosen from its spaces.
    :param sites: "map" (each cell of an image), "vector" (the feature vector), or both. The heads are not part of an
        extractor: ``FusionPolicy`` fuses there.
    :param observation_keys: what is seen; by default every key that is not a context.
    :param append_context: give the context behind the features, for a policy whose heads fuse.
    :raises ConfigError: when a space, a key or a combination does not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector",),
        observation_keys: Sequence[str] | None = None,
        append_context: bool = False,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ConfigError(f"expected a Dict observation space with a context in it, got {observation_space}")
        context_config: ContextConfig = choose(context or default_context(observation_space), ContextConfig)
        encoder_config: EncoderConfig = choose(
            encoder or default_encoder(observation_space, context_config.key, observation_keys), EncoderConfig
        )
        fusion_config: FusionConfig = choose(fusion, FusionConfig)
        _check_sites(sites, encoder_config)
        flatten = isinstance(encoder_config, VectorEncoderConfig)
        routing = route(observation_space, context_config.key, observation_keys, flatten=flatten)
        context_encoder = build_context(context_config, observation_space)
        vector_dim, context_dim = encoder_config.features_dim, context_encoder.out_dim

        super().__init__(observation_space, vector_dim + context_dim if append_context else vector_dim)
        self.fusion_config, self.routing, self.append_context = fusion_config, routing, append_context
        self.vector_dim, self.context_dim = vector_dim, context_dim
        self.context = context_encoder
        self.encoder = build_encoder(encoder_config, observation_space, routing)
        self.map_fusion: Fusion | None = None
        self.vector_fusion: Fusion | None = None
        if "map" in sites:
            channels = cast(CellsEncoder, self.encoder).channels
            self.map_fusion = build_map_fusion(fusion_config, channels, context_dim, channels)
        if "vector" in sites:
            self.vector_fusion = build_fusion(fusion_config, vector_dim, context_dim, vector_dim)

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        """Observations as SB3 preprocesses them → features (B, vector_dim), the context behind them if asked for."""
        context = self.context(observations[self.routing.context])
        batch = len(observations[self.routing.context])
        # one shape for SB3's (B, n) and (B, 1, n) forms of a Discrete key
        others = [observations[key].reshape(batch, -1).float() for key in self.routing.others]
        seen = torch.cat(others, dim=1) if others else context.values.new_zeros(batch, 0)
        if isinstance(self.encoder, CellsEncoder) and self.routing.image is not None:
            cells = self.encoder.to_cells(observations[self.routing.image])
            if self.map_fusion is not None:
                cells = F.relu(self.map_fusion(cells, *context))
            vector = self.encoder.to_vector(cells, seen)
        else:
            vector = self.encoder(seen)
        if self.vector_fusion is not None:
            vector = F.relu(self.vector_fusion(vector, *context))
        return torch.cat([vector, context.per_row()], dim=1) if self.append_context else vector


def _check_sites(sites: Sequence[Site], encoder: EncoderConfig) -> None:
    for site in sites:
        if site == "heads":
            raise ConfigError("site 'heads' lies outside a features extractor; use mirl.policies.FusionPolicy")
        if site not in ("map", "vector"):
            raise ConfigError(f"unknown site '{site}'." + nearest(site, ("map", "vector", "heads")))
    if "map" in sites and isinstance(encoder, VectorEncoderConfig):
        raise ConfigError("site 'map' fuses over cells, and encoder 'vector' has none; use sites=('vector',)")


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
