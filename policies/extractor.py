"""``FusionExtractor``: the interaction family as a features extractor for any Stable-Baselines3 algorithm."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.configs.networks import (
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    Site,
    VectorEncoderConfig,
    choose,
)
from mirl.policies.contexts import GoalContext, build_context, get_task_ids
from mirl.policies.encoders import (
    CellsEncoder,
    GridCells,
    ImageCells,
    VectorEncoder,
    build_encoder,
    gather_rows,
)
from mirl.policies.features import Features
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion
from mirl.policies.routing import default_context, default_encoder, route
from mirl.policies.running_norm import RunningNorm
from mirl.policies.specialize import SpecialisedExtractor, encode_one_context, observation_space_of


class FusionExtractor(BaseFeaturesExtractor):
    """Encodes the observation, encodes the context, and fuses them by a member of the interaction family.

    :param observation_space: a Dict space; every size is read from it.
    :param fusion: a name ("bilinear", "film", …) or a frozen config class with its options.
    :param context: what the context is; by default ``desired_goal``, else ``mission``, else ``task``.
    :param encoder: what the observation passes through; by default chosen from its spaces.
    :param sites: "map" (each cell of an image), "vector" (the feature vector), or both. The heads are not part of an
        extractor: ``FusionPolicy`` fuses there.
    :param observation_keys: what is seen; by default every key that is neither a context nor ``action_mask``.
    :param return_features: give ``Features``, with what a policy's heads may read beside the vector.
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
        return_features: bool = False,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ConfigError(
                f"expected a Dict observation space with a context in it, got {observation_space}"
            )
        context_config: ContextConfig = choose(
            context or default_context(observation_space), ContextConfig
        )
        encoder_config: EncoderConfig = choose(
            encoder or default_encoder(observation_space, context_config.key, observation_keys),
            EncoderConfig,
        )
        fusion_config: FusionConfig = choose(fusion, FusionConfig)
        _check_sites(sites, encoder_config)
        flatten = isinstance(encoder_config, VectorEncoderConfig)
        routing = route(observation_space, context_config.key, observation_keys, flatten=flatten)
        context_encoder = build_context(context_config, observation_space)
        vector_dim, context_dim = encoder_config.features_dim, context_encoder.out_dim

        super().__init__(observation_space, vector_dim)
        self.fusion_config, self.routing, self.return_features = (
            fusion_config,
            routing,
            return_features,
        )
        self.context_dim = context_dim
        self.context = context_encoder
        self.encoder = build_encoder(encoder_config, observation_space, routing)
        self.map_fusion: nn.Module | None = None
        self.vector_fusion: nn.Module | None = None
        if "map" in sites:
            channels = cast(CellsEncoder, self.encoder).channels
            self.map_fusion = build_map_fusion(fusion_config, channels, context_dim, channels)
        if "vector" in sites:
            self.vector_fusion = build_fusion(fusion_config, vector_dim, context_dim, vector_dim)

    def forward(self, observations: dict[str, Any]) -> Float[Tensor, "batch features"] | Features:
        """Observations as SB3 preprocesses them → features (B, features_dim), or ``Features`` if asked for.

        The context's key may also come as ``UniqueRows`` rows, which saves finding them.
        """
        context = self.context(self._raw_context(observations))
        vector = self.fuse(observations, *context)
        if not self.return_features:
            return vector
        return Features(vector, context, self._task(observations), self._action_mask(observations))

    def fuse(self, observations: dict[str, Any], *context: Any) -> Float[Tensor, "batch features"]:
        """What is seen, encoded and fused with the context; fusions specialized for one context take none."""
        seen = self._others(observations)
        if isinstance(self.encoder, CellsEncoder) and self.routing.image is not None:
            cells = self._cells(self.encoder.to_cells, observations[self.routing.image], *context)
            vector = self.encoder.to_vector(cells, seen)
        else:
            vector = self.encoder(seen)
        if self.vector_fusion is not None:
            vector = F.relu(self.vector_fusion(vector, *context))
        return vector

    def specialize(
        self, context: ArrayLike, *, normalize_images: bool = True
    ) -> SpecialisedExtractor:
        """The extractor for one context alone, with no context encoder and plain layers in place of the fusions.

        :param context: one row as the observation holds it: a mission's token ids, a task's index, a goal.
        :param normalize_images: as the policy has it that this extractor belongs to.
        :raises ConfigError: when the context does not fit its space.
        """
        z = encode_one_context(self, context, normalize_images)
        return SpecialisedExtractor(self, z, normalize_images)

    @property
    def has_running_norm(self) -> bool:
        """Whether ``observe`` has anything to do."""
        return any(isinstance(module, RunningNorm) for module in self.modules())

    def update_statistics(self, observations: dict[str, Tensor]) -> None:
        """Take observations, as ``forward`` does, into the statistics by which they are normalized, if they are."""
        if isinstance(self.encoder, VectorEncoder) and self.encoder.normalize is not None:
            self.encoder.normalize.update(self._others(observations))
        if isinstance(self.context, GoalContext) and self.context.normalize is not None:
            self.context.normalize.update(self._raw_context(observations).flatten(1))

    def _raw_context(self, observations: dict[str, Any]) -> Any:
        """What the observation says of the context: its key's value, less another's where it is relative to that."""
        stated = observations[self.routing.context]
        if isinstance(self.context, GoalContext) and self.context.relative_to is not None:
            return stated - observations[self.context.relative_to]
        return stated

    def _others(self, observations: dict[str, Any]) -> Float[Tensor, "batch others"]:
        """What is seen beside an image, flattened and joined."""
        first = observations[self.routing.image or self.routing.others[0]]
        batch = first.shape[0]
        # one shape for SB3's (B, n) and (B, 1, n) forms of a Discrete key
        others = [observations[key].reshape(batch, -1).float() for key in self.routing.others]
        return (
            torch.cat(others, dim=1) if others else first.new_zeros(batch, 0, dtype=torch.float32)
        )

    def _task(self, observations: dict[str, Any]) -> Int[Tensor, " batch"] | None:
        space = observation_space_of(self).get(TASK_KEY)
        return (
            get_task_ids(observations[TASK_KEY], int(space.n))
            if isinstance(space, spaces.Discrete)
            else None
        )

    def _action_mask(self, observations: dict[str, Any]) -> Bool[Tensor, "batch actions"] | None:
        space = observation_space_of(self).get(ACTION_MASK_KEY)
        return observations[ACTION_MASK_KEY] != 0 if isinstance(space, spaces.MultiBinary) else None

    def _cells(
        self, to_cells: GridCells | ImageCells, image: Tensor, *context: Any
    ) -> Float[Tensor, "batch cells channels"]:
        """The cells of the image, fused; once per kind of cell and distinct context, where those are fewer."""
        fusion = self.map_fusion
        if fusion is None:
            return to_cells(image)
        if (
            isinstance(to_cells, GridCells)
            and isinstance(fusion, Fusion)
            and fusion.treats_positions_alike
        ):
            values, groups = context
            kinds, index = to_cells.cell_types(), to_cells.cell_type_ids(image)
            if groups is not None and len(values) * len(kinds) <= index.numel():
                each = F.relu(fusion(kinds.expand(len(values), -1, -1), values))
                return gather_rows(
                    each.flatten(0, 1), index + len(kinds) * groups.index.unsqueeze(1)
                )
        return F.relu(fusion(to_cells(image), *context))


def extractor_kwargs(arguments: Mapping[str, Any], return_features: bool) -> dict[str, Any]:
    """The arguments of the extractor in a policy with these ``arguments``, whose heads are its own."""
    sites = tuple(site for site in arguments["sites"] if site != "heads")
    return {**arguments, "sites": sites, "return_features": return_features}


def _check_sites(sites: Sequence[Site], encoder: EncoderConfig) -> None:
    for site in sites:
        if site == "heads":
            raise ConfigError(
                "site 'heads' lies outside a features extractor; use mirl.policies.FusionPolicy"
            )
        if site not in ("map", "vector"):
            raise ConfigError(f"unknown site '{site}'." + nearest(site, ("map", "vector", "heads")))
    if "map" in sites and isinstance(encoder, VectorEncoderConfig):
        raise ConfigError(
            "site 'map' fuses over cells, and encoder 'vector' has none; use sites=('vector',)"
        )


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
