"""Base class of the observation encoders, and functions that several of them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from torch import Tensor, nn

from mirl.configs.networks import (
    BaseEncoderConfig,
)
from mirl.configs.parts import Method, Part, PartConfig
from mirl.policies.encoders.cell_table import CellTable


@runtime_checkable
class FuseMap(Protocol):
    """Fusion of a feature map with the context, as an encoder calls it.

    Examples:
        >>> import torch
        >>> from mirl.configs.networks import FilmConfig
        >>> from mirl.policies import build_fusion
        >>> from mirl.policies.encoders import FuseMap
        >>> from mirl.policies.extractor import MapFusion
        >>> from mirl.policies.features import Context
        >>> fuse = MapFusion(build_fusion(FilmConfig(), 8, 3, 8), Context(torch.zeros(5, 3), None))
        >>> isinstance(fuse, FuseMap), fuse(torch.zeros(5, 49, 8)).shape
        (True, torch.Size([5, 49, 8]))
    """

    def __call__(
        self, cells: Float[Tensor, "batch cells channels"]
    ) -> Float[Tensor, "batch cells channels"]:
        """Return the fused cells.

        Args:
            cells: features of the cells, (B, P, C).
        """

    def by_type(self, cells: CellTable) -> CellTable | Float[Tensor, "batch cells channels"]:
        """Return the fused cells of a map with few cell types, as a table if that is smaller.

        Args:
            cells: the cells by type.
        """


class Encoder(Part, nn.Module, ABC):
    """Base class of the observation encoders.

    The constructor of a subclass takes a Dict space of only the inputs, and the config of the
    encoder. It sets ``keys``, ``out_dim`` and, if the encoder has a feature map, ``channels``.

    Examples:
        A custom encoder has ``keys`` and ``out_dim`` (``docs/extending/encoder.md``):

        >>> import torch
        >>> from mirl.policies.encoders import Encoder
        >>> class Unchanged(Encoder):
        ...     keys = ("observation",)
        ...     out_dim = 3
        ...
        ...     def forward(self, observations, fuse=None):
        ...         return observations["observation"]
        >>> Unchanged()({"observation": torch.zeros(5, 3)}).shape
        torch.Size([5, 3])
    """

    Config: ClassVar[type[PartConfig]] = BaseEncoderConfig
    must_set = ("keys", "out_dim")
    explained_methods: ClassVar[Mapping[str, Method]] = {
        "update_statistics": Method(
            "is given (observations), a batch as forward takes it, and returns nothing"
        ),
    }

    keys: tuple[str, ...]
    """Observation keys that the encoder reads."""
    out_dim: int
    """Size of the feature vector."""
    has_map: ClassVar[bool] = False
    """True if the encoder has a feature map, to which the fusion at site "map" is applied."""
    channels: int | None = None
    """C, the features of each cell of the feature map; None if there is no feature map."""
    n_cells: int | None = None
    """P, the cells of all feature maps together; None if there is no feature map."""
    attribute_dims: tuple[int, ...] = ()
    """Number of channels of each attribute of a cell, such as its object and its color. These are
    the first of the C channels; the others belong to no attribute. Empty without attributes."""

    @abstractmethod
    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode a batch of observations.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: fusion of the feature map with the context, to be applied to the cells; None for
                no fusion.

        Returns:
            The feature vectors, (B, out_dim).
        """

    def update_statistics(self, observations: Mapping[str, Tensor]) -> None:
        """Update running statistics of the inputs, if the encoder has any.

        Args:
            observations: a batch, as ``forward`` takes it.
        """


def in_float32(
    layer: nn.Module, inputs: Float[Tensor, "*batch inputs"]
) -> Float[Tensor, "*batch outputs"]:
    """Apply a layer to numbers from the environment, in float32 even under autocast.

    bfloat16 has 8 significant bits: it cannot tell 512 from 513.

    Args:
        layer: the first layer, whose inputs are the numbers.
        inputs: (*B, inputs).
    """
    with torch.autocast(inputs.device.type, enabled=False):
        outputs: Tensor = layer(inputs)
    return outputs


def flatten_keys(
    observations: Mapping[str, Tensor], keys: Sequence[str]
) -> Float[Tensor, "batch inputs"]:
    """Return some keys flattened and concatenated, (B, inputs).

    Args:
        observations: preprocessed observations.
        keys: at least one key.
    """
    flat = []
    for key in keys:
        value = observations[key]
        # one shape for SB3's (B, n) and (B, 1, n) forms of a Discrete key
        # len(value) would make the size of the batch a constant of an exported program
        flat.append(value.reshape(value.shape[0], -1).float())
    return torch.cat(flat, dim=1)


def flattened_dim(space: spaces.Dict, keys: Sequence[str]) -> int:
    """Return the size of some keys, flattened as SB3 flattens them.

    Args:
        space: the space of the observations.
        keys: the keys.
    """
    # SB3 computes the size of a MultiDiscrete with numpy
    return sum(int(get_flattened_obs_dim(space[key])) for key in keys)
