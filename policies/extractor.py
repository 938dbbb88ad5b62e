"""``FusionExtractor``: the interaction family as a features extractor for any Stable-Baselines3 algorithm."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.schema import (
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MissionContextConfig,
    Site,
    TaskIdContextConfig,
    VectorEncoderConfig,
    choose,
)
from mirl.policies.contexts import build_context
from mirl.policies.encoders import CellsEncoder, build_encoder, image_key
from mirl.policies.interactions import build_fusion, build_map_fusion

CONTEXT_KEYS = ("desired_goal", "mission", "task")
"""Keys that tell what to do, the most telling first; the other keys of an observation tell what is seen."""


def default_context(space: spaces.Dict) -> ContextConfig:
    """The goal, else the mission, else the task id, whichever the observation holds first."""
    match next((key for key in CONTEXT_KEYS if key in space.spaces), None):
        case "desired_goal":
            return GoalContextConfig()
        case "mission":
            return MissionContextConfig()
        case "task":
            return TaskIdContextConfig()
        case _:
            raise ConfigError(
                f"no context among the observation's keys {sorted(space.spaces)}: expected one of "
                f"{', '.join(CONTEXT_KEYS)}, or name it: context=GoalContextConfig(key='…')"
            )


def default_encoder(space: spaces.Dict, keys: Sequence[str]) -> EncoderConfig:
    """By the observation's spaces: pixels, a symbolic grid, or neither."""
    key = image_key(space, keys)
    if key is None:
        return VectorEncoderConfig()
    return ImageEncoderConfig() if is_image_space(space[key]) else GridEncoderConfig()


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
            raise ConfigError(f"expected a Dict observation space with a context among its keys, got {observation_space}")
        known = observation_space.spaces
        context_config = choose(context, ContextConfig) if context else default_context(observation_space)
        keys = tuple(observation_keys or (key for key in known if key not in (*CONTEXT_KEYS, context_config.key)))
        for key in (*keys, context_config.key):
            if key not in known:
                raise ConfigError(f"the observation has no key '{key}'." + nearest(key, known))
        if not keys:
            raise ConfigError(f"nothing is left to see beside the context among the keys {sorted(known)}")
        encoder_config = choose(encoder, EncoderConfig) if encoder else default_encoder(observation_space, keys)
        image = None if isinstance(encoder_config, VectorEncoderConfig) else image_key(observation_space, keys)
        self._check_sites(sites, encoder_config)

        others = tuple(key for key in keys if key != image)
        context_encoder = build_context(context_config, observation_space)
        features_dim = encoder_config.features_dim
        super().__init__(observation_space, features_dim + append_context * context_encoder.out_dim)
        self.fusion_config = choose(fusion, FusionConfig)
        self.context_key, self.image_key, self.other_keys = context_config.key, image, others
        self.vector_dim, self.context_dim, self.append_context = features_dim, context_encoder.out_dim, append_context
        self.context = context_encoder
        self.encoder = build_encoder(
            encoder_config, None if image is None else known[image], sum(get_flattened_obs_dim(known[k]) for k in others)
        )
        self.map_fusion = self.vector_fusion = None
        if "map" in sites:
            assert isinstance(self.encoder, CellsEncoder)
            channels = self.encoder.channels
            self.map_fusion = build_map_fusion(self.fusion_config, channels, self.context_dim, channels)
        if "vector" in sites:
            self.vector_fusion = build_fusion(self.fusion_config, features_dim, self.context_dim, features_dim)

    @staticmethod
    def _check_sites(sites: Sequence[Site], encoder: EncoderConfig) -> None:
        for site in sites:
            if site == "heads":
                raise ConfigError("site 'heads' lies outside a features extractor; use mirl.policies.FusionPolicy")
            if site not in ("map", "vector"):
                raise ConfigError(f"unknown site '{site}'." + nearest(site, ("map", "vector", "heads")))
        if "map" in sites and isinstance(encoder, VectorEncoderConfig):
            raise ConfigError("site 'map' fuses over cells, and encoder 'vector' has none; use sites=('vector',)")

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        """Observations as SB3 preprocesses them → features (B, vector_dim), the context behind them if asked for."""
        context = self.context(observations[self.context_key])
        batch = len(observations[self.context_key])
        # one shape for SB3's (B, n) and (B, 1, n) forms of a Discrete key
        others = [observations[key].reshape(batch, -1).float() for key in self.other_keys]
        seen = torch.cat(others, dim=1) if others else context.values.new_zeros(batch, 0)
        if isinstance(self.encoder, CellsEncoder):
            cells = self.encoder.to_cells(observations[self.image_key])
            if self.map_fusion is not None:
                cells = F.relu(self.map_fusion(cells, *context))
            vector = self.encoder.to_vector(cells, seen)
        else:
            vector = self.encoder(seen)
        if self.vector_fusion is not None:
            vector = F.relu(self.vector_fusion(vector, *context))
        return torch.cat([vector, context.per_row()], dim=1) if self.append_context else vector


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
