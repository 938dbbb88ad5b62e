"""``FusionExtractor``: the interaction family as a features extractor for any Stable-Baselines3 algorithm."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.configs.networks import (
    AutoContextConfig,
    AutoEncoderConfig,
    ContextConfig,
    EncoderConfig,
    FusionConfig,
    NetworkConfig,
    NoMemoryConfig,
    Site,
    VectorEncoderConfig,
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
from mirl.policies.routing import choose_network, resolve_network, route
from mirl.policies.running_norm import RunningNorm


class FusionExtractor(BaseFeaturesExtractor):
    """Features extractor that encodes the observation and the context and fuses the two.

    Describe the networks either by ``network`` or by the separate options below it.

    Args:
        observation_space: a Dict space; every size is read from it.
        network: the whole configuration; its ``sites`` must not contain "heads", and it has no memory.
        fusion: name of a fusion ("bilinear", "film", ...) or its config with options.
        context: name or config of the context encoder; None for the encoder of ``desired_goal``,
            ``mission`` or ``task``, whichever key the space has first.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: "map" (each cell of an image), "vector" (the feature vector), or both. The heads are
            not part of a features extractor; ``FusionPolicy`` fuses there.
        observation_keys: keys that are inputs; None for every key that is neither a context nor
            ``action_mask``.
        return_features: return ``Features``, which a policy's heads read, instead of a tensor.

    Raises:
        ConfigError: if a space, a key or a combination does not fit.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        network: NetworkConfig | None = None,
        *,
        fusion: str | FusionConfig = "bilinear",
        context: str | ContextConfig | None = None,
        encoder: str | EncoderConfig | None = None,
        sites: Sequence[Site] = ("vector",),
        observation_keys: Sequence[str] | None = None,
        return_features: bool = False,
    ) -> None:
        network = choose_network(
            network,
            fusion=fusion,
            context=context,
            encoder=encoder,
            sites=sites,
            default_sites=("vector",),
            observation_keys=observation_keys,
        )
        network = resolve_network(network, observation_space)
        _check_sites(network)
        # a resolved network has no auto member
        assert not isinstance(network.context, AutoContextConfig)
        assert not isinstance(network.encoder, AutoEncoderConfig)
        routing = route(
            observation_space,
            network.context.key,
            network.observation_keys,
            flatten=isinstance(network.encoder, VectorEncoderConfig),
        )
        context_encoder = build_context(network.context, observation_space)
        vector_dim = network.encoder.features_dim
        context_dim = context_encoder.out_dim

        super().__init__(observation_space, vector_dim)
        self.network = network
        self.routing = routing
        self.return_features = return_features
        self.context_dim = context_dim
        self.context = context_encoder
        self.encoder = build_encoder(network.encoder, observation_space, routing)
        self.map_fusion: nn.Module | None = None
        self.vector_fusion: nn.Module | None = None
        if "map" in network.sites:
            channels = cast(CellsEncoder, self.encoder).channels
            self.map_fusion = build_map_fusion(network.fusion, channels, context_dim, channels)
        if "vector" in network.sites:
            self.vector_fusion = build_fusion(network.fusion, vector_dim, context_dim, vector_dim)

    @property
    def observation_space(self) -> spaces.Dict:
        """The space that the extractor was built for."""
        return cast(spaces.Dict, self._observation_space)

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
        space = self.observation_space.get(TASK_KEY)
        return (
            get_task_ids(observations[TASK_KEY], int(space.n))
            if isinstance(space, spaces.Discrete)
            else None
        )

    def _action_mask(self, observations: dict[str, Any]) -> Bool[Tensor, "batch actions"] | None:
        space = self.observation_space.get(ACTION_MASK_KEY)
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


def extractor_part(network: NetworkConfig) -> NetworkConfig:
    """Return the part of a policy's network that its features extractor builds: no heads, no memory."""
    sites = tuple(site for site in network.sites if site != "heads")
    return network.model_copy(update={"sites": sites, "memory": NoMemoryConfig()})


def _check_sites(network: NetworkConfig) -> None:
    if "heads" in network.sites:
        raise ConfigError(
            "site 'heads' lies outside a features extractor; use mirl.policies.FusionPolicy"
        )
    if not isinstance(network.memory, NoMemoryConfig):
        raise ConfigError(
            f"a features extractor has no memory, got memory={network.memory.kind}; "
            "use mirl.policies.RecurrentFusionPolicy"
        )
    if "map" in network.sites and isinstance(network.encoder, VectorEncoderConfig):
        raise ConfigError(
            "site 'map' fuses over cells, and encoder 'vector' has none; use sites=('vector',)"
        )


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
