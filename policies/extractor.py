"""Features extractor that fuses observation and context, for any Stable-Baselines3 algorithm."""

from collections.abc import Sequence
from typing import cast

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
from mirl.policies.action_mask import is_mask_space
from mirl.policies.contexts import GoalContext, build_context, get_task_ids
from mirl.policies.encoders import (
    CellsEncoder,
    GridCells,
    ImageCells,
    VectorEncoder,
    build_encoder,
    gather_rows,
)
from mirl.policies.features import Context, Features, Observations, UniqueRows
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion
from mirl.policies.routing import choose_network, resolve_network, route
from mirl.policies.running_norm import RunningNorm


class FusionExtractor(BaseFeaturesExtractor):
    """Features extractor that encodes the observation and the context and fuses the two.

    Describe the networks either by ``network`` or by the separate options below it.

    Args:
        observation_space: a Dict space; every size is read from it.
        network: the whole configuration, without site "heads" and without a memory.
        fusion: name of a fusion ("bilinear", "film", ...) or its config with options.
        context: name or config of the context encoder; None for the encoder of ``desired_goal``,
            ``mission`` or ``task``, whichever key the space has first.
        encoder: name or config of the observation encoder; None to choose it from the space.
        sites: "map" (each cell of an image), "vector" (the feature vector), or both. The heads are
            not part of a features extractor; ``FusionPolicy`` fuses there.
        observation_keys: keys that are inputs; None for all keys except ``desired_goal``,
            ``mission``, ``task``, the context's own key and ``action_mask``.
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
        # modules are built in a fixed order, context, encoder, fusions, because each one draws its
        # initial weights from the same generator
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
        # None where the context does not enter; ``specialize`` replaces fusions by plain layers
        self.map_fusion: nn.Module | None = None
        self.vector_fusion: nn.Module | None = None
        if "map" in network.sites:
            channels = cast(CellsEncoder, self.encoder).channels
            # as many channels as before, so that the encoder's second stage stays the same
            self.map_fusion = build_map_fusion(
                network.fusion,
                channels,
                context_dim,
                channels,
            )
        if "vector" in network.sites:
            self.vector_fusion = build_fusion(
                network.fusion,
                vector_dim,
                context_dim,
                vector_dim,
            )

    @property
    def observation_space(self) -> spaces.Dict:
        """The space that the extractor was built for."""
        return cast(spaces.Dict, self._observation_space)

    def forward(self, observations: Observations) -> Float[Tensor, "batch features"] | Features:
        """Encode a batch of observations.

        Args:
            observations: the keys of the space, preprocessed by SB3. The context's key may also be
                ``UniqueRows``, which saves the search for its distinct rows.

        Returns:
            The feature vectors, (B, features_dim), or ``Features`` if ``return_features`` is set.
        """
        context: Context = self.context(self._raw_context(observations))
        vector = self.fuse(observations, context)
        if not self.return_features:
            return vector
        return Features(
            vector=vector,
            context=context,
            task=self._task(observations),
            action_mask=self._action_mask(observations),
        )

    def fuse(
        self, observations: Observations, context: Context | None
    ) -> Float[Tensor, "batch features"]:
        """Encode the inputs and fuse them with the context.

        Args:
            observations: the keys of the space, preprocessed by SB3; the context's key is not read.
            context: the encoded contexts; None if the fusions are specialized for one context.

        Returns:
            The feature vectors, (B, features_dim).
        """
        others = self._others(observations)
        if isinstance(self.encoder, CellsEncoder) and self.routing.image is not None:
            image = _tensor(observations, self.routing.image)
            cells = self._cells(self.encoder.to_cells, image, context)
            vector = self.encoder.to_vector(cells, others)
        else:
            vector = self.encoder(others)
        if self.vector_fusion is not None:
            vector = F.relu(_apply_fusion(self.vector_fusion, vector, context))
        return vector

    @property
    def has_running_norm(self) -> bool:
        """True if there are running statistics for ``update_statistics`` to update."""
        return any(isinstance(module, RunningNorm) for module in self.modules())

    def update_statistics(self, observations: Observations) -> None:
        """Update the running statistics of the normalization, if there is one.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        if isinstance(self.encoder, VectorEncoder) and self.encoder.normalize is not None:
            self.encoder.normalize.update(self._others(observations))
        if isinstance(self.context, GoalContext) and self.context.normalize is not None:
            goal = self._raw_context(observations)
            assert isinstance(goal, Tensor), "goals are continuous and never come as UniqueRows"
            self.context.normalize.update(goal.flatten(1))

    def _raw_context(self, observations: Observations) -> Tensor | UniqueRows:
        """Return the raw context value, minus the ``relative_to`` key's value if set."""
        value = observations[self.routing.context]
        if isinstance(self.context, GoalContext) and self.context.relative_to is not None:
            assert isinstance(value, Tensor), "goals are continuous and never come as UniqueRows"
            return value - _tensor(observations, self.context.relative_to)
        return value

    def _others(self, observations: Observations) -> Float[Tensor, "batch others"]:
        """Return the inputs other than the image, flattened and concatenated."""
        first = _tensor(observations, self.routing.image or self.routing.others[0])
        batch = first.shape[0]
        if not self.routing.others:
            # the image is the only input; zero columns spare every encoder a special case
            return first.new_zeros(batch, 0, dtype=torch.float32)
        others = []
        for key in self.routing.others:
            # one shape for SB3's (B, n) and (B, 1, n) forms of a Discrete key
            others.append(_tensor(observations, key).reshape(batch, -1).float())
        return torch.cat(others, dim=1)

    def _task(self, observations: Observations) -> Int[Tensor, " batch"] | None:
        """Return the task index of each row, if the space has the key ``task``."""
        space = self.observation_space.get(TASK_KEY)
        if not isinstance(space, spaces.Discrete):
            return None
        return get_task_ids(observations[TASK_KEY], int(space.n))

    def _action_mask(self, observations: Observations) -> Bool[Tensor, "batch actions"] | None:
        """Return the mask of available actions, if the space has the key ``action_mask``."""
        space = self.observation_space.get(ACTION_MASK_KEY)
        if not is_mask_space(space):
            return None
        return _tensor(observations, ACTION_MASK_KEY) != 0

    def _cells(
        self, to_cells: GridCells | ImageCells, image: Tensor, context: Context | None
    ) -> Float[Tensor, "batch cells channels"]:
        """Return the cells of the image, fused with the context if site "map" is used.

        If there are fewer pairs of a cell type and a distinct context than cells, every such pair
        is fused once and the results are gathered.
        """
        fusion = self.map_fusion
        if fusion is None:
            return to_cells(image)
        # pixels have no cell types, and attention mixes the cells of a row
        if (
            isinstance(to_cells, GridCells)
            and isinstance(fusion, Fusion)
            and fusion.is_positionwise
            and context is not None
        ):
            cell_types = to_cells.cell_types()
            cell_type_ids = to_cells.cell_type_ids(image)
            n_pairs = len(context.values) * len(cell_types)
            if context.groups is not None and n_pairs <= cell_type_ids.numel():
                # (types, C) -> (contexts, types, C), a view
                repeated = cell_types.expand(len(context.values), -1, -1)
                # (contexts, types, C) -> (contexts * types, C)
                table = F.relu(fusion(repeated, context.values)).flatten(0, 1)
                # each context has its own block of rows in the table
                first_rows = len(cell_types) * context.groups.index
                return gather_rows(table, cell_type_ids + first_rows.unsqueeze(1))
        return F.relu(_apply_fusion(fusion, to_cells(image), context))


def _tensor(observations: Observations, key: str) -> Tensor:
    value = observations[key]
    assert isinstance(value, Tensor), f"only the context may come as UniqueRows, not '{key}'"
    return value


def _apply_fusion(fusion: nn.Module, features: Tensor, context: Context | None) -> Tensor:
    """Apply a fusion; without a context, apply the plain layers that replaced it."""
    if context is None:
        return fusion(features)
    return fusion(features, *context)


def extractor_part(network: NetworkConfig) -> NetworkConfig:
    """Return the part of a policy's network that its features extractor builds.

    Args:
        network: the network of a policy.

    Returns:
        The network without site "heads" and without a memory.
    """
    sites = tuple(site for site in network.sites if site != "heads")
    return network.model_copy(update={"sites": sites, "memory": NoMemoryConfig()})


def _check_sites(network: NetworkConfig) -> None:
    if "heads" in network.sites:
        raise ConfigError(
            "site 'heads' is outside a features extractor; use mirl.policies.FusionPolicy"
        )
    if not isinstance(network.memory, NoMemoryConfig):
        raise ConfigError(
            f"a features extractor has no memory, got memory={network.memory.kind}; "
            "use mirl.policies.RecurrentFusionPolicy"
        )
    if "map" in network.sites and isinstance(network.encoder, VectorEncoderConfig):
        raise ConfigError(
            "site 'map' fuses each cell, and encoder 'vector' has no cells; use sites=('vector',)"
        )


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters.

    Args:
        module: any module; shared parameters count once.
    """
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
