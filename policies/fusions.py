"""The interaction family: y = f(x, z) for observation features x and a context z.

Source: Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020; others are named where used.

Every member starts with an output that does not depend on the context: the weights that read z start at zero, or what
they feed does, and the main path V starts orthogonal. All weights are plain parameters and none sits in an
``nn.Linear``: SB3's ``ortho_init`` re-initializes every ``nn.Linear`` it finds, which would undo this start.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AttentionConfig,
    BilinearConfig,
    ConcatConfig,
    FilmConfig,
    FusionConfig,
    GateConfig,
    HyperConfig,
    LowRankConfig,
    MetricConfig,
)
from mirl.policies.grouped_matmul import ContextGroups, multiply_row_by_row
from mirl.policies.positions import sinusoidal_positions


class Affine(nn.Module):
    """y = x W + b, with W (in, out) orthogonal times ``gain``; a gain of 0 starts at zero."""

    def __init__(self, in_dim: int, out_dim: int, *, gain: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None
        if gain:
            nn.init.orthogonal_(self.weight, gain)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Fusion(nn.Module, ABC):
    """The one interface of the family.

    ``forward(features, context)`` takes

    - features (*B, X) and context (*B, Z), a context for each row; or
    - features (B, *positions, X) and context (B, Z), a context shared by all positions (cells, tokens) of a row; or
    - either with ``index`` (B,), or ``Groups`` of it, and context (G, Z): row b meets ``context[index[b]]``. What
      depends on the context alone is then computed once for each of the G distinct contexts.

    and gives (*B, O). Raises ValueError when the sizes do not fit: nothing is ever broadcast silently.
    """

    treats_positions_alike = True
    """Each position is fused by itself, whatever stands at the others."""

    def __init__(self, features_dim: int, context_dim: int, out_dim: int) -> None:
        super().__init__()
        self.features_dim, self.context_dim, self.out_dim = features_dim, context_dim, out_dim

    def forward(
        self,
        features: Float[Tensor, "*batch features"],
        context: Float[Tensor, "*rows context"],
        index: ContextGroups | Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "*batch out"]:
        groups = ContextGroups(index, len(context)) if isinstance(index, Tensor) else index
        if features.ndim == context.ndim and groups is None:
            rows = features.shape[:-1]
            x, z = (
                features.reshape(-1, 1, features.shape[-1]),
                context.reshape(-1, context.shape[-1]),
            )
        else:
            rows = features.shape[:1]
            x, z = features.reshape(len(features), -1, features.shape[-1]), context
        expected = (*(rows if groups is None else context.shape[:1]), self.context_dim)
        if features.shape[-1] != self.features_dim or tuple(context.shape) != expected:
            raise ValueError(
                f"{type(self).__name__} expects features (..., {self.features_dim}) and context {expected}, "
                f"got {tuple(features.shape)} and {tuple(context.shape)}"
            )
        if groups is not None and tuple(groups.index.shape) != rows:
            given = tuple(groups.index.shape)
            raise ValueError(
                f"index must give one context per row, shape {tuple(rows)}, got {given}"
            )
        return self.interact(x, z, groups).reshape(*features.shape[:-1], self.out_dim)

    @abstractmethod
    def interact(
        self,
        x: Float[Tensor, "batch positions features"],
        z: Float[Tensor, "groups context"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "batch positions out"]:
        """The interaction itself; without ``groups`` each row has a context of its own."""


def per_row(
    per_context: Float[Tensor, "groups dim"], groups: ContextGroups | None
) -> Float[Tensor, "batch 1 dim"]:
    """What was computed once per distinct context, for every row and ready to meet its positions."""
    if groups is None:
        return per_context.unsqueeze(1)
    exact = (
        per_context.float() if per_context.dtype == torch.bfloat16 else per_context
    )  # its gradient is a long sum
    return exact.index_select(0, groups.index).to(per_context.dtype).unsqueeze(1)


class Concat(Fusion):
    """y = V x + Uᵀ z + b; with ``hidden`` a ReLU layer over [x, z] first: y = P relu(V x + Uᵀ z + b) + c."""

    def __init__(
        self, features_dim: int, context_dim: int, out_dim: int, config: ConcatConfig, gain: float
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        width = config.hidden or out_dim
        self.main = Affine(features_dim, width, gain=math.sqrt(2) if config.hidden else gain)
        self.shift = Affine(context_dim, width, gain=0, bias=False)
        self.project = Affine(width, out_dim, gain=gain) if config.hidden else None

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        y = self.main(x) + per_row(self.shift(z), groups)
        return y if self.project is None else self.project(F.relu(y))


class Bilinear(Fusion):
    """y = zᵀ𝕎x + Uᵀz + Vx + b with 𝕎 (Z, X, O); ``mirl.policies.grouped_matmul`` has the two forms of the first term."""

    def __init__(self, features_dim: int, context_dim: int, out_dim: int, gain: float) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.shift = Affine(context_dim, out_dim, gain=0, bias=False)
        self.weight = nn.Parameter(torch.zeros(context_dim, features_dim, out_dim))

    def generate(self, z: Float[Tensor, "groups context"]) -> Float[Tensor, "groups features out"]:
        """W′(z) = zᵀ𝕎 + V, the matrix that a context makes of it."""
        flat = torch.addmm(self.main.weight.flatten(), z, self.weight.flatten(1))
        return flat.unflatten(1, (self.features_dim, self.out_dim))

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        positions = x.shape[1]
        if groups is not None and groups.prefer_grouped(self.weight.numel()):
            z = z[: groups.count]
            return groups.multiply(x, self.generate(z), self.shift(z) + self.main.bias)
        z = z if groups is None else z.index_select(0, groups.index)
        shift = self.shift(z).unsqueeze(1)
        if positions > 1:  # each context's matrix serves all positions of its row
            return torch.bmm(x, self.generate(z)) + shift + self.main.bias
        return multiply_row_by_row(x[:, 0], z, self.weight).unsqueeze(1) + self.main(x) + shift


class LowRank(Fusion):
    """y = P((A x) ⊙ (B z)) + Uᵀz + V x + b: the bilinear form with 𝕎 of rank R; P starts at zero."""

    def __init__(
        self, features_dim: int, context_dim: int, out_dim: int, config: LowRankConfig, gain: float
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.shift = Affine(context_dim, out_dim, gain=0, bias=False)
        self.factor_features = Affine(features_dim, config.rank, gain=1, bias=False)
        self.factor_context = Affine(context_dim, config.rank, gain=1, bias=False)
        self.project = Affine(config.rank, out_dim, gain=0, bias=False)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        products = self.factor_features(x) * per_row(self.factor_context(z), groups)
        return self.project(products) + self.main(x) + per_row(self.shift(z), groups)


class Hyper(Fusion):
    """y = W′(z) x + b′(z) with (W′, b′) = g(z), a hypernetwork (Ha et al., 2017).

    The last layer of g is affine, which makes it ``Bilinear`` in x and what comes before: so it is computed, and so it
    starts. Without hidden layers it is ``Bilinear`` itself.
    """

    def __init__(
        self, features_dim: int, context_dim: int, out_dim: int, config: HyperConfig, gain: float
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        dims = (context_dim, *config.hidden)
        self.hidden = nn.ModuleList(Affine(i, o, gain=math.sqrt(2)) for i, o in pairwise(dims))
        self.generate = Bilinear(features_dim, dims[-1], out_dim, gain)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        for layer in self.hidden:
            z = F.relu(layer(z))
        return self.generate.interact(x, z, groups)


class Film(Fusion):
    """Feature-wise linear modulation (Perez et al., 2018):  y = (1 + γ(z)) ⊙ (V x + b) + β(z).

    γ and β are linear in the context and start at zero, so the layer starts as the plain V x + b.
    """

    def __init__(self, features_dim: int, context_dim: int, out_dim: int, gain: float) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.to_scale_shift = Affine(context_dim, 2 * out_dim, gain=0, bias=False)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        scale, shift = per_row(self.to_scale_shift(z), groups).chunk(2, dim=-1)
        return (1 + scale) * self.main(x) + shift


class Gate(Fusion):
    """y = σ(g(x, z)) ⊙ (V x + b) with g affine, the gate of an LSTM.

    g starts at zero, half open, and V at twice the gain: the layer starts as the plain map of the other members.
    """

    def __init__(self, features_dim: int, context_dim: int, out_dim: int, gain: float) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=2 * gain)
        self.gate_features = Affine(features_dim, out_dim, gain=0)
        self.gate_context = Affine(context_dim, out_dim, gain=0, bias=False)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        gate = torch.sigmoid(self.gate_features(x) + per_row(self.gate_context(z), groups))
        return gate * self.main(x)


class AttentionMask(Fusion):
    """y = V (m ⊙ x) + b: each feature weighted by m = σ(M(x, z)), or on the simplex by m = X · softmax(M(x, z)).

    M is a low-rank interaction that starts at zero. The factor X makes the uniform mask the identity; a sigmoid's
    first mask is a half, and V then starts at twice the gain.
    """

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
        self.to_mask = LowRank(
            features_dim, context_dim, features_dim, LowRankConfig(rank=config.rank), gain=0
        )
        self.main = Affine(features_dim, out_dim, gain=gain if self.simplex else 2 * gain)

    def mask(
        self, x: Tensor, z: Tensor, groups: ContextGroups | None
    ) -> Float[Tensor, "batch positions features"]:
        """The weights m, (B, P, X)."""
        logits = self.to_mask.interact(x, z, groups)
        return self.features_dim * logits.softmax(-1) if self.simplex else torch.sigmoid(logits)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        return self.main(self.mask(x, z, groups) * x)


class CrossAttention(Fusion):
    """Multi-head attention over a row's positions (Vaswani et al., 2017), asked by the context:

        y_i = V x_i + b + P Σ_j softmax_j(q(z) · k(x_j) / √d) v(x_j)

    Keys and values see sinusoidal positions, so the answer can say where. P starts at zero.
    """

    treats_positions_alike = False

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
                f"heads must divide the {features_dim} (even) features of a cell, got heads={config.heads}"
            )
        self.heads = config.heads
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.query = Affine(context_dim, features_dim, gain=1)
        self.key_value = Affine(features_dim, 2 * features_dim, gain=1)
        self.project = Affine(features_dim, out_dim, gain=0, bias=False)

    def attend(
        self, x: Tensor, z: Tensor, groups: ContextGroups | None
    ) -> Float[Tensor, "batch 1 features"]:
        """What the context reads from the positions, all heads side by side."""
        located = x + sinusoidal_positions(x.shape[1], self.features_dim, x.device)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, P, H·d) -> (B, H, P, d)
            for projected in (
                per_row(self.query(z), groups),
                *self.key_value(located).chunk(2, dim=-1),
            )
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        return self.main(x) + self.project(self.attend(x, z, groups))


class MetricSimilarity(Fusion):
    """y = V x + b + W s(x, z), where s holds for each of K learned projections (A_k, B_k)

    - the inner product (A_k x) · (B_k z), which is zᵀx for identities, and
    - the distance ‖A_k x − B_k z‖², which is (x − z)ᵀ C⁻¹ (x − z) for A_k = B_k = L with C⁻¹ = LᵀL.

    W starts at zero.
    """

    def __init__(
        self, features_dim: int, context_dim: int, out_dim: int, config: MetricConfig, gain: float
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.projections = config.projections
        compared = config.projections * config.rank
        scale = 1 / math.sqrt(config.rank)  # similarities of order 1 for features of order 1
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.project_features = Affine(features_dim, compared, gain=scale, bias=False)
        self.project_context = Affine(context_dim, compared, gain=scale, bias=False)
        self.output = Affine(2 * config.projections, out_dim, gain=0, bias=False)

    def similarities(
        self, x: Tensor, z: Tensor, groups: ContextGroups | None
    ) -> Float[Tensor, "batch positions 2*{self.projections}"]:
        """K inner products, then K squared distances."""
        ours = self.project_features(x).unflatten(-1, (self.projections, -1))
        theirs = per_row(self.project_context(z), groups).unflatten(-1, (self.projections, -1))
        return torch.cat([(ours * theirs).sum(-1), (ours - theirs).square().sum(-1)], dim=-1)

    def interact(self, x: Tensor, z: Tensor, groups: ContextGroups | None) -> Tensor:
        return self.main(x) + self.output(self.similarities(x, z, groups))


def build_fusion(
    config: FusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    *,
    gain: float = math.sqrt(2),
) -> Fusion:
    """The fusion of a feature vector (or of each position by itself) that ``config`` names; ``gain`` is V's."""
    match config:
        case ConcatConfig():
            return Concat(features_dim, context_dim, out_dim, config, gain)
        case BilinearConfig():
            return Bilinear(features_dim, context_dim, out_dim, gain)
        case LowRankConfig():
            return LowRank(features_dim, context_dim, out_dim, config, gain)
        case HyperConfig():
            return Hyper(features_dim, context_dim, out_dim, config, gain)
        case FilmConfig():
            return Film(features_dim, context_dim, out_dim, gain)
        case GateConfig():
            return Gate(features_dim, context_dim, out_dim, gain)
        case AttentionConfig():
            return AttentionMask(features_dim, context_dim, out_dim, config, gain)
        case MetricConfig():
            return MetricSimilarity(features_dim, context_dim, out_dim, config, gain)
        case _:
            assert_never(config)


def build_map_fusion(
    config: FusionConfig, features_dim: int, context_dim: int, out_dim: int
) -> Fusion:
    """The fusion of a feature map: ``attention`` looks over the cells, every other member treats each cell alike."""
    if isinstance(config, AttentionConfig):
        return CrossAttention(features_dim, context_dim, out_dim, config, math.sqrt(2))
    return build_fusion(config, features_dim, context_dim, out_dim)
