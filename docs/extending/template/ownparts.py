"""Parts of one's own for MIRL: a fusion, a recurrent core, a context encoder and an encoder.

Copy this file into your project, rename it and its classes, and change what they compute:

    python train.py fusion=ownparts:BoundedFilm fusion.limit=0.5
    python train.py memory=ownparts:Leaky memory.size=64
    python train.py context=ownparts:WordSum context.dim=32
    python train.py encoder=ownparts:PooledCells encoder.channels=16
"""

from collections.abc import Mapping

import torch
from gymnasium import spaces
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.config import Width
from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    BaseContextConfig,
    BaseEncoderConfig,
    BaseFusionConfig,
    RecurrentCoreConfig,
)
from mirl.policies.contexts import ContextEncoder
from mirl.policies.encoders import Encoder, FuseMap, flatten_keys, flattened_dim, in_float32
from mirl.policies.features import Context, Observations, UniqueRows, unique_rows
from mirl.policies.fusions import RELU_GAIN, Affine, Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes


class BoundedFilm(Fusion):
    """Bounded feature-wise scaling y = (1 + limit · tanh γ(z)) ⊙ (V x + b).

    γ is linear in z and starts at zero, so the layer starts as V x + b.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion.
        gain: gain of the initialization of V.
    """

    class Config(BaseFusionConfig):
        """Options of ``BoundedFilm``."""

        limit: PositiveFloat = 1.0
        """Largest relative change of a feature."""

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: Config,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.limit = config.limit
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.to_scale = Affine(context_dim, out_dim, gain=0, bias=False)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute (1 + limit · tanh γ(z)) ⊙ (V x + b)."""
        # γ is computed once per distinct context: (G, Z) -> (G, O) -> (B, 1, O)
        scale = 1 + self.limit * torch.tanh(per_row(self.to_scale(z), groups))
        return scale * self.main(x)

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine map of x that is left for one context, for the export."""
        return self.specialize_affine(z)


class Leaky(Core):
    """Moving average h_t = a ⊙ h_{t−1} + (1 − a) ⊙ (V x_t + b), y_t = h_t, with a = σ(decay).

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context, which is ignored.
        config: options of the core.
    """

    class Config(RecurrentCoreConfig):
        """Options of ``Leaky``; ``size``, ``normalize`` and ``skip_connection`` are inherited."""

    def __init__(self, features_dim: int, context_dim: int, config: Config) -> None:
        super().__init__(features_dim, config.size, config)  # the state has `size` numbers
        self.main = Affine(features_dim, config.size, gain=RELU_GAIN)
        self.decay = nn.Parameter(torch.zeros(config.size))

    def run(
        self,
        x: Float[Tensor, "time batch features"],
        state: Float[Tensor, "batch state"],
        episodes: Episodes,
        z: Float[Tensor, "rows context"] | None,
        groups: ContextGroups | None,
    ) -> tuple[Float[Tensor, "time batch size"], Float[Tensor, "batch state"]]:
        """Run the moving average over T timesteps; it ignores the context."""
        a = torch.sigmoid(self.decay)
        starts = torch.from_numpy(episodes.starts).to(x.device)  # (T, N)
        outputs = []
        for x_t, start in zip(self.main(x), starts, strict=True):
            # no hidden state crosses the boundary between two episodes
            state = state.masked_fill(start.unsqueeze(1), 0)
            state = a * state + (1 - a) * x_t
            outputs.append(state)
        return torch.stack(outputs), state


class WordSum(ContextEncoder):
    """Context z = LayerNorm(sum of the embeddings of the words); their order does not count.

    Args:
        space: the observation space, with token ids under ``config.key``.
        config: options of the context.
    """

    class Config(BaseContextConfig):
        """Options of ``WordSum``."""

        key: str = "mission"
        """Observation key of the text."""
        dim: Width = 64
        """Size Z of the context."""

    def __init__(self, space: spaces.Dict, config: Config) -> None:
        super().__init__()
        tokens = space[config.key]
        if not isinstance(tokens, spaces.Box) or tokens.dtype.kind not in "iu":
            raise ConfigError(f"WordSum reads token ids, got {tokens} under '{config.key}'")
        self.keys = (config.key,)
        self.out_dim = config.dim
        # token id 0 is padding
        self.words = nn.Embedding(int(tokens.high.max()) + 1, config.dim, padding_idx=0)
        self.norm = nn.LayerNorm(config.dim)

    @property
    def grouped_key(self) -> str:
        """Key whose distinct values are encoded once; leave it out if each row has its own."""
        return self.keys[0]

    def forward(self, observations: Observations) -> Context:
        """Encode each distinct text of a batch once.

        Args:
            observations: token ids (B, length) under their key, or their distinct rows.

        Returns:
            The distinct texts, (G, Z), and which of them each row has.
        """
        tokens = observations[self.keys[0]]
        distinct = tokens if isinstance(tokens, UniqueRows) else unique_rows(tokens.long())
        words = self.words(distinct.rows.long())  # (G, length, Z)
        return Context(self.norm(words.sum(1)), distinct.groups)


class PooledCells(Encoder):
    """Encoder of an image: features of each cell, the largest of each over the cells, a layer.

    Args:
        space: the space of the inputs, one of them an image (H, W, C).
        config: options of the encoder.
    """

    class Config(BaseEncoderConfig):
        """Options of ``PooledCells``; ``features_dim`` is inherited."""

        channels: Width = 32
        """Features per cell of the feature map."""

    has_map = True

    def __init__(self, space: spaces.Dict, config: Config) -> None:
        super().__init__()
        images = [key for key, part in space.items() if len(part.shape or ()) == 3]
        if len(images) != 1:
            raise ConfigError(f"PooledCells reads one image, got {', '.join(images) or 'none'}")
        [self.image_key] = images
        self.keys = tuple(space)
        self.other_keys = [key for key in self.keys if key != self.image_key]
        self.channels = config.channels
        self.out_dim = config.features_dim
        shape = space[self.image_key].shape
        assert shape is not None
        self.to_cells = nn.Linear(shape[-1], config.channels)
        others_dim = flattened_dim(space, self.other_keys)
        self.output = nn.Linear(config.channels + others_dim, config.features_dim)

    def forward(
        self, observations: Mapping[str, Tensor], fuse: FuseMap | None = None
    ) -> Float[Tensor, "batch features"]:
        """Encode a batch of observations.

        Args:
            observations: the keys of the space.
            fuse: fusion of the cells with the context, for site "map"; None for none.

        Returns:
            The feature vectors, (B, features_dim).
        """
        image = observations[self.image_key].float()
        # (B, H, W, C) -> (B, H * W, C) -> (B, cells, channels)
        cells = F.relu(in_float32(self.to_cells, image.flatten(1, 2)))
        if fuse is not None:
            cells = fuse(cells)
        joined = cells.amax(1)
        if self.other_keys:
            joined = torch.cat([joined, flatten_keys(observations, self.other_keys)], dim=1)
        return F.relu(self.output(joined))
