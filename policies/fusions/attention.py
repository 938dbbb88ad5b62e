"""Attention: over the cells of a map, and as a mask of the features of a vector."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AttentionConfig,
    LowRankConfig,
)
from mirl.policies.fusions.affine import Affine, as_linear
from mirl.policies.fusions.bilinear import LowRank
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.fusions.modulation import Product
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.positions import sinusoidal_positions


class CrossAttention(Fusion):
    """Multi-head attention over the positions of a row, with a query from the context.

        y_i = V x_i + b + P Σ_j softmax_j(q(z) · k(x_j) / √d) v(x_j)

    Sinusoidal position encodings are added to x before the keys and values. P starts at zero.

    Args:
        features_dim: X, the size of the features of a position; even, and a multiple of the heads.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion, with the number of heads.
        gain: gain of the initialization of V.

    Raises:
        ConfigError: if the features cannot be split among the heads.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    Examples:
        >>> import torch
        >>> from mirl.configs.networks import AttentionConfig
        >>> from mirl.policies.fusions import CrossAttention
        >>> attention = CrossAttention(8, 3, 6, AttentionConfig(heads=2), gain=1.0)
        >>> cells, z = torch.zeros(5, 49, 8), torch.zeros(5, 3)
        >>> attention(cells, z).shape
        torch.Size([5, 49, 6])
        >>> attention.attend(cells, z, None).shape  # shared by the 49 cells of a row
        torch.Size([5, 1, 8])
    """

    is_positionwise = False

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: AttentionConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        if features_dim % config.heads or features_dim % 2:
            raise ConfigError(
                f"expected an even number of features per cell that is a multiple of the heads, "
                f"got {features_dim} features and got heads={config.heads}; change either"
            )
        self.heads = config.heads
        self.main = Affine(features_dim, out_dim, gain=gain)
        # the heads together have X features
        self.query = Affine(context_dim, features_dim, gain=1)
        self.key_value = Affine(features_dim, 2 * features_dim, gain=1)
        self.project = Affine(features_dim, out_dim, gain=0, bias=False)

    def attend(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B 1 X"]:
        """Return the attention-weighted sum of the values of a row.

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            The outputs of all heads, concatenated, (B, 1, X).
        """
        attended = F.scaled_dot_product_attention(*self._query_key_value(x, z, groups))
        # (B, heads, 1, d) -> (B, 1, heads * d)
        return attended.transpose(1, 2).flatten(2)

    def _query_key_value(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the query (B, heads, 1, d), the keys and the values (B, heads, P, d)."""
        # attention ignores the order of its inputs, so each carries its position
        located = x + sinusoidal_positions(x.shape[1], self.features_dim, x.device)
        # one query per row, from its context
        query = self._split_heads(per_row(self.query(z), groups))
        key, value = self.key_value(located).chunk(2, dim=-1)
        return query, self._split_heads(key), self._split_heads(value)

    def _split_heads(self, projected: Float[Tensor, "B P X"]) -> Float[Tensor, "B heads P d"]:
        # (B, P, heads * d) -> (B, heads, P, d)
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V x + b plus the projected attention output, which all positions share."""
        # (B, P, O) + (B, 1, O)
        return self.main(x) + self.project(self.attend(x, z, groups))

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the weights of the cells, (B, heads, P); see ``Fusion.modulation``."""
        query, key, _ = self._query_key_value(x, z, groups)
        # (B, heads, 1, d) x (B, heads, d, P) -> (B, heads, P)
        logits = (query @ key.transpose(-1, -2)).squeeze(2) / math.sqrt(key.shape[-1])
        return {"attention": logits.softmax(-1)}

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return attention with a fixed query; see ``Fusion.specialize``."""
        return SpecializedCrossAttention(self, z)


class SpecializedCrossAttention(nn.Module):
    """``CrossAttention`` for one z.

        y_i = main(x_i) + output(Σ_j softmax_j(score(x_j)) x_j for every head)

    The score q(z) · k(x_j) / √d is affine in the cell, and so is the projection P v of the weighted
    sum of each head.

    Args:
        fusion: the fusion, in float64.
        z: the encoded context in float64, (1, Z).
    """

    def __init__(self, fusion: CrossAttention, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        x_dim = fusion.features_dim
        heads = fusion.heads

        def score(x: Tensor) -> Tensor:
            key, _ = fusion.key_value(x).chunk(2, dim=-1)
            # (n, heads * d) -> (n, heads, d) -> (n, heads)
            products = (fusion.query(z) * key).unflatten(-1, (heads, -1)).sum(-1)
            return products / math.sqrt(x_dim // heads)

        def project_sums(sums: Tensor) -> Tensor:
            # (n, heads * X) -> (n, heads, X) -> (n, heads, heads * d)
            _, value = fusion.key_value(sums.unflatten(-1, (heads, x_dim))).chunk(2, dim=-1)
            # each head uses its own part of the value of its own sum:
            # (n, heads, heads, d) -> (n, d, heads) -> (n, heads * d)
            own = value.unflatten(-1, (heads, -1)).diagonal(dim1=1, dim2=2)
            return fusion.project(own.transpose(1, 2).flatten(1))

        self.main = as_linear(fusion.main, x_dim)
        self.score = as_linear(score, x_dim)
        self.output = as_linear(project_sums, heads * x_dim)

    def forward(self, cells: Float[Tensor, "batch cells in"]) -> Float[Tensor, "batch cells out"]:
        """Return the output for each cell, (B, P, O)."""
        located = cells + sinusoidal_positions(cells.shape[1], cells.shape[2], cells.device)
        weights = self.score(located).softmax(1)  # (B, P, heads)
        # (B, heads, P) x (B, P, X) -> (B, heads * X)
        sums = (weights.transpose(1, 2) @ located).flatten(1)
        y: Tensor = self.main(cells) + self.output(sums).unsqueeze(1)
        return y


class AttentionMask(Fusion):
    """Soft feature mask y = V (m ⊙ x) + b with m = σ(M(x, z)) or m = X · softmax(M(x, z)).

    M is a low-rank interaction that starts at zero. The factor X makes the initial, uniform softmax
    mask the identity. The initial sigmoid mask is 1/2, so V starts at twice the gain.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion: the kind of mask and the rank of M.
        gain: gain of the map that the layer starts as.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import AttentionMask
        >>> fusion = AttentionMask(4, 3, 2, AttentionMask.Config(mask="sigmoid"), gain=1.0)
        >>> fusion.mask(torch.ones(1, 1, 4), torch.ones(1, 3), None).tolist()  # before training
        [[[0.5, 0.5, 0.5, 0.5]]]
        >>> fusion(torch.ones(5, 4), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    Config = AttentionConfig
    map_class = CrossAttention

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: AttentionConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.simplex = config.mask == "softmax"
        # the mask is bounded, so its steps do not need the features to be scaled
        mask_config = LowRankConfig(
            rank=config.rank, context_scale=config.context_scale, features_scale=1.0
        )
        self.to_mask = LowRank(features_dim, context_dim, features_dim, mask_config, gain=0)
        # the initial mask is 1 with softmax and 1/2 with sigmoid
        main_gain = gain if self.simplex else 2 * gain
        self.main = Affine(features_dim, out_dim, gain=main_gain)

    def mask(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P X"]:
        """Return the mask m.

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            One weight per feature, (B, P, X).
        """
        logits = self.to_mask.interact(x, z, groups)
        if self.simplex:
            # a mean weight of 1 instead of 1/X keeps the scale of the features
            return self.features_dim * logits.softmax(-1)
        return torch.sigmoid(logits)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V (m ⊙ x) + b."""
        return self.main(self.mask(x, z, groups) * x)

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the masks; see ``Fusion.modulation``."""
        return {"mask": self.mask(x, z, groups)}

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the mask as layers of x, and the map after it; see ``Fusion.specialize``."""
        x_dim = self.features_dim
        logits = self.to_mask.specialize(z)
        if self.simplex:
            mask = nn.Sequential(logits, nn.Softmax(-1))
            # m = X * softmax: the factor X goes into the main path
            main = as_linear(lambda x: self.main(x_dim * x), x_dim)
        else:
            mask = nn.Sequential(logits, nn.Sigmoid())
            main = as_linear(self.main, x_dim)
        return nn.Sequential(Product(mask, nn.Identity()), main)
