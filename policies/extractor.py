"""Features extractor that fuses observation and context, for any Stable-Baselines3 algorithm."""

from collections.abc import Mapping, Sequence
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
    BaseEncoderConfig,
    ContextChoice,
    EncoderChoice,
    FusionChoice,
    NetworkConfig,
    NoMemoryConfig,
    Site,
)
from mirl.configs.parts import explain_own_errors, own_place
from mirl.policies.action_mask import is_mask_space
from mirl.policies.contexts import ContextEncoder, build_context, get_task_ids
from mirl.policies.encoders import CellTable, Encoder, build_encoder, gather_rows
from mirl.policies.features import Context, Features, Observations
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion
from mirl.policies.fusions.product import SpecializedProduct
from mirl.policies.routing import (
    choose_network,
    has_feature_map,
    resolve_network,
    subspace,
)
from mirl.policies.running_norm import RunningNorm

SIMILARITY_GAIN = 32.0
"""Sum of each similarity over all cells, as the heads receive it.

An update of the heads' weights changes the outputs by at most 32 learning rates per similarity; two
similarities change them about as much as the 64 hidden units. Unscaled similarities reached 263 for
one cell.
"""


class MapFusion:
    """Fusion of a feature map with the contexts of a batch, followed by a ReLU.

    Args:
        fusion: the fusion, or the plain module that replaced it for one context.
        context: the encoded contexts; None if the fusion is specialized for one context.
        keep_similarities: whether to keep the similarities of the cells with the context for the
            heads.
    """

    def __init__(
        self, fusion: nn.Module, context: Context | None, *, keep_similarities: bool = False
    ) -> None:
        self.fusion = fusion
        self.context = context
        self.keep_similarities = keep_similarities
        self._similarities: list[Tensor] = []

    @property
    def similarities(self) -> Float[Tensor, "batch similarities"] | None:
        """Similarities of the fused cells after a softmax over the cells; None if not kept.

        (B, P * S), in which each of the S similarities sums to ``SIMILARITY_GAIN``.
        """
        if not self.keep_similarities:
            return None
        # (B, P, S) of each feature map -> (B, P, S) of all
        cells = torch.cat(self._similarities, dim=1)
        return (SIMILARITY_GAIN * cells.softmax(dim=1)).flatten(1)

    def __call__(
        self, cells: Float[Tensor, "batch cells channels"]
    ) -> Float[Tensor, "batch cells channels"]:
        """Return the fused cells.

        Args:
            cells: features of the cells, (B, P, C).
        """
        fused, similarities = self._fuse(cells, self.context)
        self._keep(similarities)
        return F.relu(fused)

    def by_type(self, cells: CellTable) -> CellTable | Float[Tensor, "batch cells channels"]:
        """Return the fused cells of a map with few cell types, as a table if that is smaller.

        If there are fewer pairs of a cell type and a distinct context than cells, every such pair
        is fused once.

        Args:
            cells: the cells by type.
        """
        fusion = self.fusion
        context = self.context
        # attention mixes the cells of a row
        groups = None if context is None else context.groups
        if isinstance(fusion, Fusion) and fusion.is_positionwise and groups is not None:
            assert context is not None
            n_pairs = len(context.values) * len(cells.rows)
            if n_pairs <= cells.row_ids.numel():
                # (types, C) -> (contexts, types, C), a view
                repeated = cells.rows.expand(len(context.values), -1, -1)
                # each context has its own block of rows in the table
                first_rows = len(cells.rows) * groups.index
                index = cells.row_ids + first_rows.unsqueeze(1)
                fused, similarities = self._fuse(repeated, context._replace(groups=None))
                if similarities is not None:
                    self._keep(gather_rows(similarities.flatten(0, 1), index))
                # (contexts, types, C) -> (contexts * types, C)
                return CellTable(F.relu(fused).flatten(0, 1), index)
        return self(cells.gather())

    def _keep(self, similarities: Float[Tensor, "batch cells each"] | None) -> None:
        if similarities is not None:
            self._similarities.append(similarities)

    def _fuse(self, cells: Tensor, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Return the fused cells, (B, P, C), and their similarities, (B, P, S), if kept."""
        if not self.keep_similarities:
            return _apply_fusion(self.fusion, cells, context), None
        if context is None:
            if not isinstance(self.fusion, SpecializedProduct):
                raise ConfigError(
                    f"{type(self.fusion).__name__} has no similarities for the heads; let "
                    "specialize return a mirl.policies.fusions.product.SpecializedProduct, or use "
                    "the policy as it is"
                )
            return self.fusion.with_similarities(cells)
        assert isinstance(self.fusion, Fusion)
        z = self.fusion.choose_context(context.values, context.words)
        return self.fusion.interact_with_similarities(cells, z, context.groups)


class FusionExtractor(BaseFeaturesExtractor):
    """Features extractor that encodes the observation and the context and fuses the two.

    Describe the networks either by ``network`` or by the separate options below it.

    Args:
        observation_space: a Dict space; every size is read from it.
        network: the whole configuration, without site "heads" and without a memory.
        fusion: name of a fusion ("bilinear", "film", ...), its config with options, or a custom
            class; "auto" to choose it by the observation and the context.
        context: name, config or class of the context encoder; None joins every goal and text, and
            the task id if there are several tasks, into one context.
        encoder: name, config or class of the observation encoder; None to choose it from the space.
        sites: "map" (each cell of an image), "vector" (the feature vector), or both; None to choose
            them with the fusion. The heads are not part of a features extractor; ``FusionPolicy``
            fuses there.
        observation_keys: keys that are inputs; None for all keys except the context's,
            ``action_mask``, and the index of the task.
        return_features: whether to return ``Features``, for the heads of a policy, instead of a
            tensor.
        return_similarities: whether the ``Features`` hold the similarities of the cells with the
            context, if the fusion of the map has any.

    Raises:
        ConfigError: if a space, a key or a combination does not fit.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies import FusionExtractor
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> extractor = FusionExtractor(space, fusion="film")
        >>> extractor({"observation": torch.zeros(5, 3), "desired_goal": torch.zeros(5, 2)}).shape
        torch.Size([5, 128])
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        network: NetworkConfig | None = None,
        *,
        fusion: FusionChoice = "auto",
        context: ContextChoice | None = None,
        encoder: EncoderChoice | None = None,
        sites: Sequence[Site] | None = None,
        observation_keys: Sequence[str] | None = None,
        return_features: bool = False,
        return_similarities: bool = False,
    ) -> None:
        network = choose_network(
            network,
            fusion=fusion,
            context=context,
            encoder=encoder,
            sites=sites,
            observation_keys=observation_keys,
        )
        network = resolve_network(network, observation_space, has_heads=False)
        _check_sites(network)
        # a resolved network has no auto member
        assert not isinstance(network.context, AutoContextConfig)
        assert not isinstance(network.encoder, AutoEncoderConfig)
        assert network.observation_keys is not None
        inputs = subspace(observation_space, network.observation_keys)
        # modules are built in a fixed order, context, encoder, fusions, because each one draws its
        # initial weights from the same generator
        context_encoder = build_context(network.context, observation_space)
        input_encoder = build_encoder(network.encoder, inputs)
        vector_dim = input_encoder.out_dim
        context_dim = context_encoder.out_dim

        super().__init__(observation_space, vector_dim)
        self.network = network
        self.return_features = return_features
        self.context_dim = context_dim
        self.context: ContextEncoder = context_encoder
        self.encoder: Encoder = input_encoder
        self.similarities_dim = 0
        """Number of similarities that ``Features`` hold; 0 if there are none."""
        # None without a fusion at that site; ``specialize`` replaces fusions by plain layers
        self.map_fusion: nn.Module | None = None
        self.vector_fusion: nn.Module | None = None
        if "map" in network.chosen_sites:
            channels = input_encoder.channels
            if channels is None:
                raise _no_feature_map(network.encoder)
            # as many channels as before, so that the encoder's second stage stays the same
            self.map_fusion = build_map_fusion(
                network.chosen_fusion,
                channels,
                context_dim,
                channels,
                attribute_dims=input_encoder.attribute_dims,
            )
            if return_similarities and input_encoder.n_cells is not None:
                per_cell = self.map_fusion.similarities_dim
                self.similarities_dim = input_encoder.n_cells * per_cell
        if "vector" in network.chosen_sites:
            self.vector_fusion = build_fusion(
                network.chosen_fusion,
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
        with explain_own_errors(
            type(self.context),
            "forward",
            lambda: (
                "is given (observations) and must return a Context with values (rows, out_dim), "
                f"out_dim={self.context_dim}"
            ),
        ):
            context: Context = self.context(observations)
        self._check_context(context)
        if torch.compiler.is_exporting():
            # the sizes of groups depend on data; shapes of exported programs cannot
            context = context.ungrouped()
        vector, similarities = self.fuse(observations, context)
        if not self.return_features:
            return vector
        return Features(
            vector=vector,
            context=context,
            task=self._task(observations),
            action_mask=self._action_mask(observations),
            similarities=similarities,
        )

    def fuse(
        self, observations: Observations, context: Context | None
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch similarities"] | None]:
        """Encode the inputs and fuse them with the context.

        Args:
            observations: the keys of the space, preprocessed by SB3; the context's key is not read.
            context: the encoded contexts; None if the fusions are specialized for one context.

        Returns:
            The feature vectors, (B, features_dim), and the similarities of the cells with the
            context, None if the heads use none.
        """
        inputs = {key: _tensor(observations, key) for key in self.encoder.keys}
        fuse = None
        if self.map_fusion is not None:
            fuse = MapFusion(self.map_fusion, context, keep_similarities=self.similarities_dim > 0)
        with explain_own_errors(
            type(self.encoder), "forward", lambda: self._explain_encoder(inputs)
        ):
            vector: object = self.encoder(inputs, fuse)
        if not isinstance(vector, Tensor):
            raise self._wrong_features(type(vector).__name__)
        if vector.ndim != 2 or vector.shape[1] != self.encoder.out_dim:
            raise self._wrong_features(f"shape {tuple(vector.shape)}")
        if self.vector_fusion is not None:
            vector = F.relu(_apply_fusion(self.vector_fusion, vector, context))
        return vector, None if fuse is None else fuse.similarities

    def _explain_encoder(self, inputs: Mapping[str, Tensor]) -> str:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
        return (
            f"is given (observations, fuse) with {shapes} and must return (B, out_dim) with "
            f"out_dim={self.encoder.out_dim}"
        )

    def _wrong_features(self, got: str) -> ConfigError:
        return ConfigError(
            f"encoder={self.network.encoder.kind} must return feature vectors (B, out_dim) with "
            f"out_dim={self.encoder.out_dim}, got {got}{own_place(type(self.encoder), 'forward')}"
        )

    def _check_context(self, context: object) -> None:
        """Raise if the context encoder, which may be a custom one, returns an invalid result."""
        if not isinstance(context, Context):
            problem = (
                "a mirl.policies.features.Context, e.g. Context(z, None) for a context per row, "
                f"got {type(context).__name__}"
            )
        elif not isinstance(cast(object, context.values), Tensor):
            problem = f"a Context of a tensor, got {type(context.values).__name__}"
        elif context.values.ndim != 2 or context.values.shape[1] != self.context_dim:
            problem = (
                f"contexts (rows, out_dim) with out_dim={self.context_dim}, got shape "
                f"{tuple(context.values.shape)}"
            )
        elif context.words is not None and (
            context.words.ndim != 3 or context.words.shape[::2] != context.values.shape
        ):
            problem = (
                f"words (rows, W, out_dim) with as many rows as contexts, "
                f"{len(context.values)}, and out_dim={self.context_dim}, got shape "
                f"{tuple(context.words.shape)}"
            )
        else:
            return
        # looked up only now, because it reads the file of a user's class
        place = own_place(type(self.context), "forward")
        raise ConfigError(f"context={self.network.context.kind} must return {problem}{place}")

    @property
    def has_running_norm(self) -> bool:
        """True if there are running statistics for ``update_statistics`` to update."""
        return any(isinstance(module, RunningNorm) for module in self.modules())

    def update_statistics(self, observations: Observations) -> None:
        """Update the running statistics of the normalization, if there is one.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        inputs = {key: _tensor(observations, key) for key in self.encoder.keys}
        self.encoder.update_statistics(inputs)
        self.context.update_statistics(observations)

    def _task(self, observations: Observations) -> Int[Tensor, " batch"] | None:
        """Return the task index of each row, if the space has the key ``task``."""
        space = self.observation_space.get(TASK_KEY)
        # a single environment may leave out the index of its only task
        if not isinstance(space, spaces.Discrete) or TASK_KEY not in observations:
            return None
        return get_task_ids(observations[TASK_KEY], int(space.n))

    def _action_mask(self, observations: Observations) -> Bool[Tensor, "batch actions"] | None:
        """Return the mask of available actions, if the space has the key ``action_mask``."""
        space = self.observation_space.get(ACTION_MASK_KEY)
        if not is_mask_space(space):
            return None
        return _tensor(observations, ACTION_MASK_KEY) != 0


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
        network: the network of a policy, resolved.

    Returns:
        The network without site "heads" and without a memory.
    """
    sites = tuple(site for site in network.chosen_sites if site != "heads")
    return network.model_copy(update={"sites": sites, "memory": NoMemoryConfig()})


def _check_sites(network: NetworkConfig) -> None:
    if "heads" in network.chosen_sites:
        raise ConfigError(
            "site 'heads' is outside a features extractor; use mirl.policies.FusionPolicy"
        )
    if not isinstance(network.memory, NoMemoryConfig):
        raise ConfigError(
            f"a features extractor has no memory, got memory={network.memory.kind}; "
            "use mirl.policies.RecurrentFusionPolicy"
        )
    assert not isinstance(network.encoder, AutoEncoderConfig)
    if "map" in network.chosen_sites and not has_feature_map(network.encoder):
        raise _no_feature_map(network.encoder)


def _no_feature_map(encoder: BaseEncoderConfig) -> ConfigError:
    return ConfigError(
        f"site 'map' fuses each cell, and encoder '{encoder.kind}' has no cells; use sites=[vector]"
    )


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters.

    Args:
        module: any module; shared parameters count once.
    """
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
