"""Observation encoders.

Those of images have two stages, first cells and then a vector, so that a fusion fits in between.

Shapes in this file: B rows, H height, W width, C channels, P = H * W cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    BaseEncoderConfig,
    CombinedEncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
)
from mirl.configs.parts import Part, PartConfig
from mirl.policies.features import unique_rows
from mirl.policies.running_norm import RunningNorm
from mirl.policies.text.words import build_mission_encoder


@runtime_checkable
class FuseMap(Protocol):
    """Fusion of a feature map with the context, as an encoder calls it."""

    def __call__(
        self, cells: Float[Tensor, "batch cells channels"]
    ) -> Float[Tensor, "batch cells channels"]:
        """Return the fused cells.

        Args:
            cells: features of the cells, (B, P, C).
        """

    def by_type(
        self,
        cell_types: Float[Tensor, "kinds channels"],
        cell_type_ids: Int[Tensor, "batch cells"],
    ) -> Float[Tensor, "batch cells channels"]:
        """Return the fused cells of a map with few cell types.

        Args:
            cell_types: features of each cell type, (types, C).
            cell_type_ids: type of each cell, (B, P).
        """


class Encoder(Part, nn.Module, ABC):
    """Base class of the observation encoders.

    The constructor of a subclass takes a Dict space of the inputs alone and the config of the
    encoder, and sets ``keys``, ``out_dim`` and, if it has a feature map, ``channels``.
    """

    Config: ClassVar[type[PartConfig]] = BaseEncoderConfig
    must_set = ("keys", "out_dim")

    keys: tuple[str, ...]
    """Observation keys that the encoder reads."""
    out_dim: int
    """Size of the feature vector."""
    has_map: ClassVar[bool] = False
    """True if the encoder has a feature map, to which the fusion at site "map" is applied."""
    channels: int | None = None
    """C, the features of each cell of the feature map; None if there is no feature map."""

    @abstractmethod
    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode a batch of observations.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: fusion of the feature map with the context, to be applied to the cells; None for
                none.

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
        layer: the first layer that reads the numbers.
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


# ------------------------------------------------------------------------------------- cell layouts


def image_layout(space: spaces.Space[object]) -> tuple[int, int, int, bool]:
    """Return height, width and depth of a space with cells, and True if channels come first.

    Args:
        space: a space of shape (H, W), (H, W, C) or (C, H, W). Channels are the axis that differs
            from two equal ones, otherwise the smallest; the last one if in doubt.
    """
    shape = space.shape or ()
    if len(shape) == 2:
        return shape[0], shape[1], 1, False
    first, middle, last = shape
    channels_first = first < min(middle, last)
    if middle == last and first != middle:
        channels_first = True
    if first == middle and first != last:
        channels_first = False
    if channels_first:
        return middle, last, first, True
    return first, middle, last, False


def to_channels_last(
    image: Float[Tensor, "batch ..."], channels_first: bool
) -> Float[Tensor, "batch height width channels"]:
    """Return a batch of images with the channels as the last axis.

    Args:
        image: (B, H, W), (B, H, W, C) or (B, C, H, W).
        channels_first: the channels are the first axis after the batch.
    """
    if image.ndim == 3:
        return image.unsqueeze(-1)  # (B, H, W) -> (B, H, W, 1)
    if channels_first:
        return image.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
    return image


def code_sizes(space: spaces.Space[object]) -> NDArray[np.int64] | None:
    """Return the number of values of each code of a cell, or None if the cells hold no codes.

    Args:
        space: a space of shape (H, W), (H, W, C) or (C, H, W).

    Returns:
        The sizes, (C,); 2 for the planes of a MultiBinary or of a Box of booleans.
    """
    _, _, depth, channels_first = image_layout(space)
    if isinstance(space, spaces.MultiBinary):
        return np.full(depth, 2)
    if not isinstance(space, spaces.Box) or is_image_space(space):
        return None
    if space.dtype == np.bool_:
        return np.full(depth, 2)
    if space.dtype.kind not in "iu" or space.low.min() < 0:
        return None
    high = space.high.astype(np.float64)  # the largest int64 plus one would overflow
    if len(space.shape) == 2:
        high = high[..., np.newaxis]
    axes = (1, 2) if channels_first else (0, 1)
    sizes = high.max(axes) + 1
    if sizes.sum() > MAX_CODES:
        return None
    return cast(NDArray[np.int64], sizes.astype(np.int64))


PLANE_VALUES = 2
"""Number of values of a plane."""
MAX_CODES = 2**16
"""Largest number of values of all codes of a cell together; above it they count as numbers."""


# ------------------------------------------------------------------------------ kinds of subspaces


Kind = Literal["text", "image", "grid", "vector"]
"""Kind of a subspace: token ids, pixels, cells of codes or planes, or numbers."""

MIN_IMAGE_SIZE = 32
"""Smallest height and width at which real numbers of rank 3 count as pixels."""
MAX_IMAGE_CHANNELS = 4
"""Largest number of channels at which they do."""
MIN_GRAY_SIZE = 16
"""Smallest height and width at which bytes of rank 2 count as a grayscale image."""
MAX_BYTE = 255
"""Largest value of a byte."""
MIN_GRID_SIZE = 3
"""Smallest height and width at which small integers of rank 2 count as cells."""


def kind_of(space: spaces.Space[object]) -> Kind:
    """Return the kind of a subspace by its shape, dtype and bounds.

    Args:
        space: the space of one key.

    Returns:
        "text" for token ids, which are int16; "image" for pixels; "grid" for cells of codes or
        planes; "vector" for all else.
    """
    shape = space.shape or ()
    if is_text(space):
        return "text"
    if len(shape) not in (2, 3) or 0 in shape:
        return "vector"
    if is_image_space(space):
        return "image"
    height, width, depth, _ = image_layout(space)
    size = min(height, width)
    if len(shape) == 3:
        is_real = code_sizes(space) is None
        if is_real and size >= MIN_IMAGE_SIZE and depth <= MAX_IMAGE_CHANNELS:
            return "image"
        return "grid"
    if not isinstance(space, spaces.Box):
        return "vector"
    # a matrix is an image or a grid only if its values are bytes or small codes
    is_bytes = space.dtype == np.uint8 and bool((space.high == MAX_BYTE).all())
    if is_bytes and size >= MIN_GRAY_SIZE:
        return "image"
    if not is_bytes and size >= MIN_GRID_SIZE and code_sizes(space) is not None:
        return "grid"
    return "vector"


def is_text(space: spaces.Space[object]) -> bool:
    """Return True if a space holds the token ids of a text: int16, of rank 1, from 0.

    Args:
        space: the space of one key.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.int16:
        return False
    return len(space.shape) == 1 and bool((space.low == 0).all())


def reads_pixels(space: spaces.Space[object]) -> bool:
    """Return True if the values of a space of cells can be read as pixels, and not only as codes.

    Args:
        space: a space of shape (H, W), (H, W, C) or (C, H, W).
    """
    # bytes of rank 2 can be both
    return code_sizes(space) is None or kind_of(space) == "image"


def space_text(space: spaces.Space[object]) -> str:
    """Return a short description of a space for an error message, in one line.

    The ``repr`` of a Box whose bounds differ prints whole arrays.

    Args:
        space: any space.
    """
    if not isinstance(space, spaces.Box) or not space.low.size:
        return " ".join(str(space).split())
    low = float(space.low.min())
    high = float(space.high.max())
    return f"Box({low:g}, {high:g}, {space.shape}, {space.dtype})"


class GridCells(nn.Module):
    """Cells of codes or planes: relu of the sum of one embedding per channel.

    There are few cell types, 264 in MiniGrid. Everything that depends on a cell alone is computed
    once per type, and the cells gather it. Where there are too many types for a table, the
    embeddings of each cell are summed up. A plane has one embedding, that of 1, so that empty cells
    are zeros; planes of real numbers are weighted by their values.

    Args:
        space: codes, planes or real numbers of shape (H, W, C), (C, H, W) or (H, W).
        channels: C, the features of each cell.

    Raises:
        ConfigError: if the space is one of pixels.
    """

    MAX_CELL_TYPES = 4096

    def __init__(self, space: spaces.Space[object], channels: int) -> None:
        super().__init__()
        if is_image_space(space):
            raise ConfigError(
                f"encoder=grid needs codes or planes, got pixels, {space_text(space)}; "
                "use encoder=image"
            )
        self.height, self.width, depth, self.channels_first = image_layout(space)
        self.channels = channels
        self.cell_types_one_hot: Tensor
        self.strides: Tensor
        self.first_rows: Tensor
        n_values = code_sizes(space)
        are_planes = n_values is None or bool((n_values == PLANE_VALUES).all())
        self.has_codes = not are_planes
        self.has_types = False
        if n_values is not None:
            # the product is in float64, because that of many codes could overflow int64
            self.has_types = bool(n_values.prod(dtype=np.float64) <= self.MAX_CELL_TYPES)
        in_dim = depth
        if n_values is not None and self.has_codes:
            in_dim = int(n_values.sum())
        # the buffers follow from the space, so checkpoints need not hold them
        if n_values is not None and self.has_types:
            cell_types = _cell_types(n_values)
            if self.has_codes:
                cell_types = _one_hot(cell_types, n_values)
            one_hot = torch.from_numpy(cell_types).float()
            self.register_buffer("cell_types_one_hot", one_hot, persistent=False)
            # the last code varies fastest: stride of a code = number of types of the codes after it
            strides = np.append(np.cumprod(n_values[:0:-1])[::-1], 1)
            # floats, because CUDA has no matrix products of integers
            float_strides = torch.from_numpy(strides).float()
            self.register_buffer("strides", float_strides, persistent=False)
        elif n_values is not None:
            # row of the first value of each code in the embedding
            first_rows = torch.from_numpy(np.cumsum(n_values) - n_values)
            self.register_buffer("first_rows", first_rows, persistent=False)
        self.embedding = nn.Linear(in_dim, channels)

    def cell_types(self) -> Float[Tensor, "kinds channels"]:
        """Return the embedding of every cell type, (types, C); only if ``has_types``."""
        return F.relu(self.embedding(self.cell_types_one_hot))

    def cell_type_ids(self, image: Float[Tensor, "batch ..."]) -> Int[Tensor, "batch cells"]:
        """Return the type of each cell; only if ``has_types``.

        Args:
            image: codes, (B, H, W, codes) or in the layout of the space.

        Returns:
            Indices into ``cell_types``, (B, P).
        """
        codes = to_channels_last(image, self.channels_first)
        # bfloat16 cannot represent all integers above 256; float32 is exact up to 2²⁴
        with torch.autocast(image.device.type, enabled=False):
            # (B, H, W, codes) -> (B, P, codes) -> (B, P)
            return (codes.flatten(1, 2).float() @ self.strides).long()

    def forward(self, image: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch cells channels"]:
        """Return the embedding of each cell, (B, P, C).

        Args:
            image: in the layout of the space.
        """
        if self.has_types:
            return gather_rows(self.cell_types(), self.cell_type_ids(image))
        # (B, H, W, C) -> (B, P, C)
        values = to_channels_last(image, self.channels_first).flatten(1, 2)
        if not self.has_codes:
            return F.relu(in_float32(self.embedding, values.float()))
        # (B, P, codes) -> (B, P, codes, C) -> (B, P, C)
        rows = values.long() + self.first_rows
        embedded = gather_rows(self.embedding.weight.t(), rows.flatten(1))
        summed = embedded.unflatten(1, rows.shape[1:]).sum(2)
        return F.relu(summed + self.embedding.bias)


def _cell_types(n_values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the codes of every cell type, (types, codes), the last code varying fastest."""
    # (codes, types) -> (types, codes)
    return np.indices(n_values.tolist()).reshape(len(n_values), -1).T


def _one_hot(cell_types: NDArray[np.int64], n_values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one-hot codes of every cell type, (types, sum of ``n_values``)."""
    one_hot = []
    for size, code in zip(n_values, cell_types.T, strict=True):
        one_hot.append(np.eye(size, dtype=np.int64)[code])
    return np.concatenate(one_hot, axis=1)


def gather_rows(
    table: Float[Tensor, "kinds channels"], index: Int[Tensor, "batch cells"]
) -> Float[Tensor, "batch cells channels"]:
    """Gather rows of a table, in float32 at least.

    Args:
        table: (types, C).
        index: (B, P), indices of rows.

    Returns:
        The rows, (B, P, C).
    """
    if table.dtype == torch.bfloat16:
        table = table.float()  # the gradient of index_select is a long sum
    # (types, C) -> (B * P, C) -> (B, P, C)
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


class ImageCells(nn.Module):
    """Cells of an image: three convolutions of stride 2, which divide its size by 8.

    Args:
        space: the space of the image, (H, W, C), (C, H, W) or (H, W).
        channels: C, the features of each cell.

    Raises:
        ConfigError: if the space is one of codes.
    """

    def __init__(self, space: spaces.Space[object], channels: int) -> None:
        super().__init__()
        if not reads_pixels(space):
            raise ConfigError(
                f"encoder=image needs pixels, got codes or planes, {space_text(space)}; "
                "use encoder=grid"
            )
        height, width, depth, self.channels_first = image_layout(space)
        self.channels = channels
        self.scale = _pixel_scale(space)
        self.convolutions = nn.Sequential(
            nn.Conv2d(depth, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        # rounded up
        self.height = -(-height // 8)
        self.width = -(-width // 8)

    def forward(
        self,
        image: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, "batch cells channels"]:
        """Encode the pixels.

        Args:
            image: pixels as SB3's preprocessing gives them, in the layout of the space.

        Returns:
            The cells, (B, P, C).
        """
        if image.ndim == 3:
            image = image.unsqueeze(1)  # (B, H, W) -> (B, 1, H, W)
        elif not self.channels_first:
            image = image.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        if self.scale != 1:
            image = image * self.scale
        # (B, C, H, W) -> (B, P, C)
        return self.convolutions(image).flatten(2).transpose(1, 2)


def _pixel_scale(space: spaces.Space[object]) -> float:
    """Return the factor that brings pixels to [0, 1] where SB3 does not do so."""
    if not isinstance(space, spaces.Box) or is_image_space(space):
        return 1.0
    high = float(np.abs(space.high).max())
    if 1 < high <= MAX_PIXEL:
        return 1 / high
    return 1.0


MAX_PIXEL = 2**16 - 1
"""Largest bound of a pixel; a larger bound of a Box says nothing about its values."""


class CellsEncoder(Encoder):
    """Encoder of an image in two stages: ``to_cells``, then ``to_vector`` by two convolutions.

    The other keys of the observation, such as the direction, join before the last layer.

    Args:
        space: the space of the inputs, one of them with cells.
        cells: the first stage.
        image_key: key of the input with cells.
        features_dim: size of the feature vector.
    """

    has_map = True
    channels: int

    def __init__(
        self, space: spaces.Dict, cells: GridCells | ImageCells, image_key: str, features_dim: int
    ) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        self.image_key = image_key
        self.other_keys = tuple(key for key in self.keys if key != image_key)
        others_dim = flattened_dim(space, self.other_keys)
        self.to_cells = cells
        self.channels = cells.channels
        self.out_dim = features_dim
        # without padding the two convolutions take off 4 rows and 4 columns
        padding = 0
        shrink = 4
        if min(cells.height, cells.width) < 5:
            # too few cells for that: padding keeps the size
            padding = 1
            shrink = 0
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.channels, self.channels, 3, padding=padding),
            nn.ReLU(),
            nn.Conv2d(self.channels, self.channels, 3, padding=padding),
            nn.ReLU(),
        )
        flat_dim = self.channels * (cells.height - shrink) * (cells.width - shrink)
        self.linear = nn.Linear(flat_dim + others_dim, features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode the image and the other inputs.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: fusion of the cells with the context; None for none.

        Returns:
            The feature vectors, (B, out_dim).
        """
        image = observations[self.image_key]
        to_cells = self.to_cells
        if fuse is None:
            cells = to_cells(image)
        elif isinstance(to_cells, GridCells) and to_cells.has_types:
            cells = fuse.by_type(to_cells.cell_types(), to_cells.cell_type_ids(image))
        else:
            cells = fuse(to_cells(image))
        if self.other_keys:
            others = flatten_keys(observations, self.other_keys)
        else:
            # the image is the only input; zero columns spare a special case
            others = image.new_zeros(image.shape[0], 0, dtype=torch.float32)
        return self.to_vector(cells, others)

    def to_vector(
        self,
        cells: Float[Tensor, "batch cells channels"],
        others: Float[Tensor, "batch others"],
    ) -> Float[Tensor, "batch features"]:
        """Encode the cells and the other keys.

        Args:
            cells: (B, P, C), fused with the context or not.
            others: (B, others), the other keys, flattened.

        Returns:
            The feature vectors, (B, features).
        """
        # (B, P, C) -> (B, C, H, W)
        size = (self.to_cells.height, self.to_cells.width)
        image = cells.transpose(1, 2).unflatten(2, size)
        # (B, C, H, W) -> (B, H, W, C), the layout in memory, so that flattening copies nothing
        feature_map = self.convolutions(image).permute(0, 2, 3, 1).flatten(1)
        if others.shape[1] and torch.is_autocast_enabled(others.device.type):
            # numbers in real units keep their digits: two products, that of the others in float32
            map_weight, others_weight = self.linear.weight.split(
                [feature_map.shape[1], others.shape[1]], dim=1
            )
            of_map = F.linear(feature_map, map_weight, self.linear.bias)
            with torch.autocast(others.device.type, enabled=False):
                of_others = F.linear(others, others_weight)
            return F.relu(of_map + of_others)
        # (B, H * W * C) and (B, others) -> (B, H * W * C + others)
        joined = torch.cat([feature_map, others], dim=1)
        return F.relu(self.linear(joined))


class GridEncoder(CellsEncoder):
    """Encoder of cells of codes or planes; see ``CellsEncoder``.

    Args:
        space: the space of the inputs, one of them with cells.
        config: options of the encoder.

    Raises:
        ConfigError: if no input has cells, several have, or they are pixels.
    """

    Config = GridEncoderConfig

    def __init__(self, space: spaces.Dict, config: GridEncoderConfig) -> None:
        key = cells_key(space, "grid")
        cells = GridCells(space[key], config.channels)
        super().__init__(space, cells, key, config.features_dim)


class ImageEncoder(CellsEncoder):
    """Encoder of pixels; see ``CellsEncoder``.

    Args:
        space: the space of the inputs, one of them an image.
        config: options of the encoder.

    Raises:
        ConfigError: if no input is an image, several are, or it holds codes.
    """

    Config = ImageEncoderConfig

    def __init__(self, space: spaces.Dict, config: ImageEncoderConfig) -> None:
        key = cells_key(space, "image")
        cells = ImageCells(space[key], config.channels)
        super().__init__(space, cells, key, config.features_dim)


def cells_key(space: spaces.Dict, kind: str) -> str:
    """Return the key of the only input with cells.

    Args:
        space: the space of the inputs.
        kind: kind of the encoder, for the message.

    Raises:
        ConfigError: if there is no such input, or several.
    """
    by_rank: dict[int, list[str]] = {2: [], 3: []}
    by_kind: list[str] = []
    for key, subspace in space.items():
        rank = len(subspace.shape or ())
        if rank in by_rank:
            by_rank[rank].append(key)
        if kind_of(subspace) in ("image", "grid"):
            by_kind.append(key)
    # a matrix of numbers has cells only if nothing else does
    for keys in (by_kind, by_rank[3], by_rank[2]):
        if len(keys) > 1:
            raise ConfigError(
                f"encoder={kind} reads one image, got several: {', '.join(keys)}; "
                "use encoder=combined"
            )
        if keys:
            return keys[0]
    raise ConfigError(
        f"encoder={kind} needs an observation of rank 3, and {', '.join(space.spaces)} have other "
        "ranks; use encoder=auto"
    )


class VectorEncoder(Encoder):
    """MLP over the flattened observation, which is normalized first if ``normalize`` is set.

    Args:
        space: the space of the inputs.
        config: options of the encoder.
    """

    Config = VectorEncoderConfig

    def __init__(self, space: spaces.Dict, config: VectorEncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        self.in_dim = flattened_dim(space, self.keys)
        self.out_dim = config.features_dim
        self.normalize: RunningNorm | None = None
        if config.normalize:
            self.normalize = RunningNorm(self.in_dim)
        self.mlp = nn.Sequential()
        sizes = (self.in_dim, *config.hidden, config.features_dim)
        for in_size, out_size in pairwise(sizes):
            self.mlp.append(nn.Linear(in_size, out_size))
            self.mlp.append(nn.ReLU())

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode the flattened observation.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: not used, because there is no feature map.

        Returns:
            The feature vectors, (B, out_dim).
        """
        numbers = flatten_keys(observations, self.keys)
        if self.normalize is not None:
            numbers = self.normalize(numbers)
        first, *later = self.mlp
        # numbers in real units would lose their last digits in bfloat16
        hidden = in_float32(first, numbers)
        for layer in later:
            hidden = layer(hidden)
        return hidden

    def update_statistics(self, observations: Mapping[str, Tensor]) -> None:
        """Update the running statistics of the inputs, if they are normalized.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        if self.normalize is not None:
            self.normalize.update(flatten_keys(observations, self.keys))


class TextEncoder(Encoder):
    """Encoder of texts that are not the context; each distinct text is encoded once.

    Args:
        space: the space of the inputs, one Box of token ids (length,).
        config: options of the encoder.

    Raises:
        ConfigError: if the space is not one of token ids.
    """

    Config = TextEncoderConfig

    def __init__(self, space: spaces.Dict, config: TextEncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        subspace = space[self.keys[0]]
        has_tokens = isinstance(subspace, spaces.Box) and subspace.dtype.kind in "iu"
        if len(self.keys) > 1 or len(subspace.shape or ()) != 1 or not has_tokens:
            raise ConfigError(
                "encoder=text reads one key of token ids, a Box of integers (length,), got "
                f"{', '.join(self.keys)}; use encoder=auto"
            )
        assert isinstance(subspace, spaces.Box)
        self.out_dim = config.features_dim
        self.words = build_mission_encoder(int(subspace.high.max()) + 1, config.mission)
        self.norm = nn.LayerNorm(config.features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode the texts.

        Args:
            observations: token ids (B, length), padded with 0.
            fuse: not used, because there is no feature map.

        Returns:
            The feature vectors, (B, out_dim).
        """
        tokens = observations[self.keys[0]].long()
        if torch.compiler.is_exporting():
            # the number of distinct texts depends on the data, which an exported program cannot
            each: Tensor = self.norm(self.words(tokens))
            return each
        distinct = unique_rows(tokens)
        encoded: Tensor = self.norm(self.words(distinct.rows))
        return encoded.index_select(0, distinct.groups.index)


class CombinedEncoder(Encoder):
    """An encoder per key, then relu(V [v₁, v₂, …] + b) over their feature vectors.

    All parts with a feature map have the same number of channels and share the fusion.

    Args:
        space: the space of the inputs.
        config: the config of each key's encoder.

    Raises:
        ConfigError: if an encoder does not fit the space of its key.
    """

    Config = CombinedEncoderConfig

    def __init__(self, space: spaces.Dict, config: CombinedEncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        # a list, because names of modules cannot contain dots, and keys can
        self.parts = nn.ModuleList()
        joined_dim = 0
        for key in self.keys:
            try:
                part = build_encoder(config.parts[key], spaces.Dict({key: space[key]}))
            except ConfigError as error:
                # the advice of the part's own message names options that are not given here
                problem, *_ = str(error).partition(";")
                raise ConfigError(
                    f"encoder.parts.{key}: {problem}; use encoder.parts.{key}={kind_of(space[key])}"
                ) from None
            self.parts.append(part)
            joined_dim += part.out_dim
            if part.channels is not None:
                self.channels = part.channels
        self.out_dim = config.features_dim
        self.join = nn.Linear(joined_dim, config.features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode each key and join the vectors.

        Args:
            observations: the keys of the space, preprocessed by SB3.
            fuse: fusion of each feature map with the context; None for none.

        Returns:
            The feature vectors, (B, out_dim).
        """
        vectors = [part(observations, fuse) for part in self.parts]
        return F.relu(self.join(torch.cat(vectors, dim=1)))

    def update_statistics(self, observations: Mapping[str, Tensor]) -> None:
        """Update the running statistics of every part.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        for part in self.parts:
            cast(Encoder, part).update_statistics(observations)


def flattened_dim(space: spaces.Dict, keys: Sequence[str]) -> int:
    """Return the size of some keys, flattened as SB3 flattens them.

    Args:
        space: the space of the observations.
        keys: the keys.
    """
    # SB3 computes the size of a MultiDiscrete with numpy
    return sum(int(get_flattened_obs_dim(space[key])) for key in keys)


def build_encoder(config: BaseEncoderConfig, space: spaces.Dict) -> Encoder:
    """Build the observation encoder that ``config`` belongs to.

    Args:
        config: kind and options of the encoder.
        space: the space of the inputs, from which all sizes are read.

    Returns:
        The encoder, newly initialized.

    Raises:
        ConfigError: if the encoder does not fit the space.
    """
    return Encoder.class_of(config).construct(space=space, config=config)
