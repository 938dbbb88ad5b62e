"""Fusions: the family of multiplicative interactions y = f(x, z) of features x and a context z.

At initialization the output of every fusion is independent of the context: either the weights that
multiply z start at zero, or the projection after them does. The main path V starts orthogonal. All
weights are plain parameters rather than ``nn.Linear`` layers, because SB3's ``ortho_init``
re-initializes every ``nn.Linear`` that it finds, which would undo this initialization.

Shapes in this file: B rows, P positions (cells or tokens) of a row, G distinct contexts,
X features, Z context features, O outputs.

References:
    Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AttentionConfig,
    BaseFusionConfig,
    BilinearConfig,
    ConcatConfig,
    FilmConfig,
    GateConfig,
    HyperConfig,
    LowRankConfig,
    MetricConfig,
)
from mirl.configs.parts import Part
from mirl.policies.grouped_matmul import ContextGroups, multiply_row_by_row
from mirl.policies.positions import sinusoidal_positions

RELU_GAIN = math.sqrt(2)
"""Gain of an orthogonal initialization in front of a ReLU."""


class Affine(nn.Module):
    """Affine map y = x W + b with W of shape (in, out).

    Args:
        in_dim: size of x.
        out_dim: size of y.
        gain: gain of the orthogonal initialization of W; 0 initializes W to zero.
        bias: add b, which starts at zero.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        gain: float,
        bias: bool = True,
    ) -> None:
        super().__init__()
        # a gain of 0 draws no random numbers
        self.weight = nn.Parameter(torch.zeros(in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None
        if gain != 0:
            nn.init.orthogonal_(self.weight, gain)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return x W + b."""
        y = x @ self.weight
        if self.bias is not None:
            y = y + self.bias
        return y


def as_linear(f: Callable[[Tensor], Tensor], in_dim: int) -> nn.Linear:
    """Convert an affine function to a linear layer, by its values at zero and at the unit vectors.

    Args:
        f: an affine function of (n, in_dim) in float64.
        in_dim: size of its argument.

    Returns:
        The layer, in float64.
    """
    # f(0) = b, and f(e_i) − b is column i of the matrix
    points = torch.cat([torch.zeros(1, in_dim), torch.eye(in_dim)]).double()
    at_zero, at_units = f(points).split([1, in_dim])
    # an initialization of its own would draw from torch's generator
    layer = nn.utils.skip_init(nn.Linear, in_dim, at_zero.shape[1], dtype=torch.float64)
    linear = cast(nn.Linear, layer)
    linear.weight.copy_((at_units - at_zero).T)
    linear.bias.copy_(at_zero.squeeze(0))
    return linear


class Product(nn.Module):
    """Elementwise product y = a(x) ⊙ b(x).

    Args:
        a: first factor.
        b: second factor.
    """

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a = a
        self.b = b

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return a(x) ⊙ b(x)."""
        y: Tensor = self.a(x) * self.b(x)
        return y


class Fusion(nn.Module, Part, ABC):
    """Base class of the fusions y = f(x, z).

    Every fusion is a class with a ``Config``, built by ``(features_dim, context_dim, out_dim,
    config, gain)``, where ``gain`` is that of the map V x + b which the fusion starts as.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
    """

    Config: ClassVar[type[BaseFusionConfig]] = BaseFusionConfig
    map_class: ClassVar[type["Fusion"] | None] = None
    """Class that fuses a feature map in place of this one; None for this one."""
    is_positionwise = True
    """True if each position is fused by itself, independently of the other positions."""

    def __init__(self, features_dim: int, context_dim: int, out_dim: int) -> None:
        super().__init__()
        self.features_dim = features_dim
        self.context_dim = context_dim
        self.out_dim = out_dim

    def forward(
        self,
        features: Float[Tensor, "*batch features"],
        context: Float[Tensor, "*rows context"],
        index: ContextGroups | Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "*batch out"]:
        """Fuse the features with the context.

        With ``index``, everything that depends on the context alone is computed once for each of
        the G distinct contexts. Nothing is broadcast silently.

        Args:
            features: (*B, X), one vector per row, or (B, *positions, X), a map per row.
            context: (*B, Z), one context per row, which is shared by all positions of the row; or
                (G, Z), the distinct contexts, together with ``index``.
            index: (B,), for each row the index of its context in ``context``, or the
                ``ContextGroups`` of these indices.

        Returns:
            The fused features, (*B, O) or (B, *positions, O).

        Raises:
            ValueError: if the sizes do not fit.
            ConfigError: if ``interact`` of a user's class returns another shape.
        """
        if isinstance(index, Tensor):
            groups: ContextGroups | None = ContextGroups(index, len(context))
        else:
            groups = index
        # without an index, only a map has more axes than its contexts
        has_positions = features.ndim != context.ndim or groups is not None
        rows = features.shape[:1] if has_positions else features.shape[:-1]
        self._check_shapes(features, context, groups, rows)
        if has_positions:
            # (B, *positions, X) -> (B, P, X)
            x = features.reshape(len(features), -1, self.features_dim)
            z = context
        else:
            # (*B, X) -> (B, 1, X)
            x = features.reshape(-1, 1, self.features_dim)
            z = context.reshape(-1, self.context_dim)
        y = self.interact(x, z, groups)
        if y.shape != (*x.shape[:2], self.out_dim):
            raise ConfigError(
                f"{type(self).__name__}.interact must return (B, P, O) = "
                f"{(*x.shape[:2], self.out_dim)}, got {tuple(y.shape)}"
            )
        # (B, P, O) -> (*B, O) or (B, *positions, O)
        return y.reshape(*features.shape[:-1], self.out_dim)

    def _check_shapes(
        self,
        features: Tensor,
        context: Tensor,
        groups: ContextGroups | None,
        rows: torch.Size,
    ) -> None:
        n_contexts = rows if groups is None else context.shape[:1]
        expected = (*n_contexts, self.context_dim)
        if features.shape[-1] != self.features_dim or tuple(context.shape) != expected:
            raise ValueError(
                f"{type(self).__name__} expects features (..., {self.features_dim}) and context "
                f"{expected}, got {tuple(features.shape)} and {tuple(context.shape)}"
            )
        if groups is not None and tuple(groups.index.shape) != rows:
            raise ValueError(
                f"index must give one context per row, shape {tuple(rows)}, "
                f"got {tuple(groups.index.shape)}"
            )

    @abstractmethod
    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute f(x, z).

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own, with G = B.

        Returns:
            The fused features, (B, P, O).
        """

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the form of the fusion that is left for one context, y = f(x) of x alone.

        It is called by ``mirl.policies.specialize`` and by the export, on a copy of the fusion in
        float64 on the CPU, without gradients. A fusion that neither is used with can do without.

        Args:
            z: the encoded context in float64, (1, Z).

        Returns:
            A module that maps x of shape (B, X) or (B, P, X) to y, in float64.

        Raises:
            ConfigError: if the class has no such method of its own.
        """
        name = f"{type(self).__module__}:{type(self).__qualname__}"
        raise ConfigError(
            f"{name} has no form for one context alone; to export it, give it a method "
            "specialize(self, z) that returns a module of x (if y is affine in x, "
            "self.specialize_affine(z))"
        )

    def specialize_affine(self, z: Float[Tensor, "1 context"]) -> nn.Linear:
        """Specialize a fusion whose output is affine in x: the sum of its terms is one affine map.

        Args:
            z: the encoded context in float64, (1, Z).

        Returns:
            The linear layer y = W x + b, in float64.
        """
        return as_linear(lambda x: self(x.unsqueeze(0), z).squeeze(0), self.features_dim)


def per_row(
    per_context: Float[Tensor, "G D"], groups: ContextGroups | None
) -> Float[Tensor, "B 1 D"]:
    """Copy values that were computed once per distinct context to the rows that have the context.

    Args:
        per_context: (G, D), one vector per distinct context.
        groups: the context of each row; None if every row has its own.

    Returns:
        (B, 1, D), one vector per row, with an axis that broadcasts over positions.
    """
    if groups is None:
        # (B, D) -> (B, 1, D)
        return per_context.unsqueeze(1)
    table = per_context
    if table.dtype == torch.bfloat16:
        table = table.float()  # the gradient of index_select is a long sum
    rows = table.index_select(0, groups.index).to(per_context.dtype)
    # (B, D) -> (B, 1, D)
    return rows.unsqueeze(1)


class Concat(Fusion):
    """Affine map of the concatenation [x, z], the additive baseline: y = V x + Uᵀz + b.

    With ``config.hidden`` there is a hidden ReLU layer: y = P relu(V x + Uᵀz + b) + c.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion.
        gain: gain of the initialization of V, or of P if there is a hidden layer.
    """

    Config = ConcatConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: ConcatConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        width = out_dim
        main_gain = gain
        if config.hidden > 0:
            # V is now in front of a ReLU, and the output layer P has the gain of the fusion
            width = config.hidden
            main_gain = RELU_GAIN
        self.main = Affine(features_dim, width, gain=main_gain)
        self.shift = Affine(context_dim, width, gain=0, bias=False)
        self.project: Affine | None = None
        if config.hidden > 0:
            self.project = Affine(width, out_dim, gain=gain)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V x + Uᵀz + b, and the output layer if there is a hidden one."""
        y = self.main(x) + per_row(self.shift(z), groups)
        if self.project is None:
            return y
        return self.project(F.relu(y))

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return one affine map, or two with a ReLU between them; see ``Fusion.specialize``."""
        if self.project is None:
            return self.specialize_affine(z)
        hidden = as_linear(lambda x: self.main(x) + self.shift(z), self.features_dim)
        return nn.Sequential(hidden, nn.ReLU(), as_linear(self.project, hidden.out_features))


class Bilinear(Fusion):
    """General multiplicative interaction y = zᵀ𝕎x + Uᵀz + V x + b with 𝕎 ∈ R^{Z×X×O}.

    ``mirl.policies.grouped_matmul`` computes the first term in the cheaper of two forms.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion; it has none.
        gain: gain of the initialization of V; 𝕎 and U start at zero.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.
    """

    Config = BilinearConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: BilinearConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.shift = Affine(context_dim, out_dim, gain=0, bias=False)
        # the gradient of 𝕎 is the gradient of y times z ⊗ x, so learning can start at zero
        self.weight = nn.Parameter(torch.zeros(context_dim, features_dim, out_dim))

    def generate(self, z: Float[Tensor, "G Z"]) -> Float[Tensor, "G X O"]:
        """Return W′(z) = zᵀ𝕎 + V, the matrix that each context generates.

        Args:
            z: contexts, (G, Z).

        Returns:
            One matrix per context, (G, X, O).
        """
        # adding V here saves the separate product V x:
        # (X * O,) + (G, Z) x (Z, X * O) -> (G, X * O)
        flat = torch.addmm(self.main.weight.flatten(), z, self.weight.flatten(1))
        # (G, X * O) -> (G, X, O)
        return flat.unflatten(1, (self.features_dim, self.out_dim))

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute zᵀ𝕎x + Uᵀz + V x + b."""
        if groups is not None and groups.prefer_grouped(self.weight.numel()):
            # z may end with contexts that no row has
            z = z[: groups.count]
            # one matrix (X, O) and one shift (O,) per distinct context
            return groups.multiply(x, self.generate(z), self.shift(z) + self.main.bias)
        if groups is not None:
            z = z.index_select(0, groups.index)
        # (B, O) -> (B, 1, O), shared by the positions of a row
        shift = self.shift(z).unsqueeze(1)
        positions = x.shape[1]
        if positions > 1:
            # the matrix of a row's context serves all positions of the row
            return torch.bmm(x, self.generate(z)) + shift + self.main.bias
        # one position: (B, 1, X) -> (B, X) -> (B, O) -> (B, 1, O)
        product = multiply_row_by_row(x[:, 0], z, self.weight).unsqueeze(1)
        return product + self.main(x) + shift

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine map that is left; see ``Fusion.specialize``."""
        return self.specialize_affine(z)


class LowRank(Fusion):
    """Bilinear interaction with a 𝕎 of rank R: y = P((A x) ⊙ (B z)) + Uᵀz + V x + b.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion, with R as ``rank``.
        gain: gain of the initialization of V; P and U start at zero.

    References:
        Kim et al., "Hadamard Product for Low-rank Bilinear Pooling", ICLR 2017.
    """

    Config = LowRankConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: LowRankConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.shift = Affine(context_dim, out_dim, gain=0, bias=False)
        self.factor_features = Affine(features_dim, config.rank, gain=1, bias=False)
        self.factor_context = Affine(context_dim, config.rank, gain=1, bias=False)
        # only P is zero: with A or B at zero as well, no gradient would reach any of the three
        self.project = Affine(config.rank, out_dim, gain=0, bias=False)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute P((A x) ⊙ (B z)) + Uᵀz + V x + b."""
        # (B, P, R) * (B, 1, R)
        products = self.factor_features(x) * per_row(self.factor_context(z), groups)
        return self.project(products) + self.main(x) + per_row(self.shift(z), groups)

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine map that is left; see ``Fusion.specialize``."""
        return self.specialize_affine(z)


class Hyper(Fusion):
    """Hypernetwork y = W′(z) x + b′(z) with (W′, b′) = g(z).

    The last layer of g is affine, so the output is ``Bilinear`` in x and the last hidden layer of
    g; it is computed and initialized as such. Without hidden layers this is ``Bilinear`` itself.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion, with the hidden layers of g.
        gain: gain of the initialization of V, the bias of W′.

    References:
        Ha et al., "HyperNetworks", ICLR 2017.
    """

    Config = HyperConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: HyperConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        sizes = (context_dim, *config.hidden)
        self.hidden = nn.ModuleList()
        for in_size, out_size in pairwise(sizes):
            self.hidden.append(Affine(in_size, out_size, gain=RELU_GAIN))
        # the last layer of g and its product with x are together one bilinear interaction
        self.generate = Bilinear(features_dim, sizes[-1], out_dim, BilinearConfig(), gain)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute W′(z) x + b′(z)."""
        hidden = z
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        return self.generate.interact(x, hidden, groups)

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine map that is left; see ``Fusion.specialize``."""
        return self.specialize_affine(z)


class Film(Fusion):
    """Feature-wise linear modulation y = (1 + γ(z)) ⊙ (V x + b) + β(z).

    γ and β are linear in z and start at zero, so the layer starts as V x + b.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion; it has none.
        gain: gain of the initialization of V.

    References:
        Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.
    """

    Config = FilmConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: FilmConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        # γ and β from one matrix product; without a bias, z = 0 leaves V x + b as it is
        self.to_scale_shift = Affine(context_dim, 2 * out_dim, gain=0, bias=False)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute (1 + γ(z)) ⊙ (V x + b) + β(z)."""
        # (G, 2 O) -> (B, 1, 2 O) -> γ and β, each (B, 1, O)
        scale, shift = per_row(self.to_scale_shift(z), groups).chunk(2, dim=-1)
        return (1 + scale) * self.main(x) + shift

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine map that is left; see ``Fusion.specialize``."""
        return self.specialize_affine(z)


class Gate(Fusion):
    """Gated map y = σ(g(x, z)) ⊙ (V x + b) with an affine g, as in the gates of an LSTM.

    g starts at zero, where the gate is 1/2, and V starts at twice the gain, so that the layer
    starts as the same map as the other fusions.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion; it has none.
        gain: gain of the map that the layer starts as.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.
    """

    Config = GateConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: GateConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        # the factor 2 makes up for the initial gate σ(0) = 1/2
        self.main = Affine(features_dim, out_dim, gain=2 * gain)
        self.gate_features = Affine(features_dim, out_dim, gain=0)
        self.gate_context = Affine(context_dim, out_dim, gain=0, bias=False)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute σ(g(x, z)) ⊙ (V x + b)."""
        # g(x, z): (B, P, O) + (B, 1, O)
        logits = self.gate_features(x) + per_row(self.gate_context(z), groups)
        return torch.sigmoid(logits) * self.main(x)

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the product of two maps; see ``Fusion.specialize``."""
        # the gate is affine in x up to its sigmoid
        gate = as_linear(lambda x: self.gate_features(x) + self.gate_context(z), self.features_dim)
        return Product(nn.Sequential(gate, nn.Sigmoid()), as_linear(self.main, self.features_dim))


class CrossAttention(Fusion):
    """Multi-head attention over the positions of a row, with a query from the context.

        y_i = V x_i + b + P Σ_j softmax_j(q(z) · k(x_j) / √d) v(x_j)

    Sinusoidal positions are added before the keys and values. P starts at zero.

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
        # attention ignores the order of its inputs, so each carries its position
        located = x + sinusoidal_positions(x.shape[1], self.features_dim, x.device)
        # one query per row, from its context
        query = self._split_heads(per_row(self.query(z), groups))
        key, value = self.key_value(located).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            query, self._split_heads(key), self._split_heads(value)
        )
        # (B, heads, 1, d) -> (B, 1, heads * d)
        return attended.transpose(1, 2).flatten(2)

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
        mask_config = LowRankConfig(rank=config.rank)
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


class MetricSimilarity(Fusion):
    """Learned similarities of x and z as extra features: y = V x + b + W s(x, z).

    s contains for each of K pairs of learned projections (A_k, B_k)

    - the inner product (A_k x) · (B_k z), which is zᵀx if both are the identity, and
    - the squared distance ‖A_k x − B_k z‖², which is the squared Mahalanobis distance
      (x − z)ᵀ C⁻¹ (x − z) if A_k = B_k = L and C⁻¹ = LᵀL.

    W starts at zero.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion: K as ``projections`` and their output size as ``rank``.
        gain: gain of the initialization of V.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.
    """

    Config = MetricConfig

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: MetricConfig,
        gain: float,
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.projections = config.projections
        projected_dim = config.projections * config.rank
        # similarities of order 1 for features of order 1
        scale = 1 / math.sqrt(config.rank)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.project_features = Affine(features_dim, projected_dim, gain=scale, bias=False)
        self.project_context = Affine(context_dim, projected_dim, gain=scale, bias=False)
        self.output = Affine(2 * config.projections, out_dim, gain=0, bias=False)

    def similarities(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P 2*{self.projections}"]:
        """Return s(x, z).

        Args:
            x: features, (B, P, X).
            z: contexts, (G, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            K inner products followed by K squared distances, (B, P, 2 K).
        """
        # (B, P, K * R) -> (B, P, K, R)
        split = (self.projections, -1)
        features = self.project_features(x).unflatten(-1, split)
        context = per_row(self.project_context(z), groups).unflatten(-1, split)
        # (A_k x) · (B_k z): (B, P, K, R) -> (B, P, K)
        inner_products = (features * context).sum(-1)
        # ‖A_k x − B_k z‖²
        distances = (features - context).square().sum(-1)
        return torch.cat([inner_products, distances], dim=-1)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V x + b + W s(x, z)."""
        return self.main(x) + self.output(self.similarities(x, z, groups))

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine part and the distances; see ``Fusion.specialize``."""
        return SpecializedMetric(self, z)


class SpecializedMetric(nn.Module):
    """``MetricSimilarity`` for one z: y = linear(x) + output(‖A_k x − B_k z‖² for every k).

    The inner products are affine in x and join V x + b; the distances remain.

    Args:
        fusion: the fusion, in float64.
        z: the encoded context in float64, (1, Z).
    """

    def __init__(self, fusion: MetricSimilarity, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        self.projections = fusion.projections
        x_dim = fusion.features_dim
        # the rows of W: K for the inner products, then K for the distances
        inner_weight, distance_weight = fusion.output.weight.split(fusion.projections)

        def main_and_inner_products(x: Tensor) -> Tensor:
            similarities = fusion.similarities(x.unsqueeze(0), z, None)[0]
            return fusion.main(x) + similarities[:, : fusion.projections] @ inner_weight

        def difference(x: Tensor) -> Tensor:
            return fusion.project_features(x) - fusion.project_context(z)

        self.linear = as_linear(main_and_inner_products, x_dim)
        self.apart = as_linear(difference, x_dim)
        self.output = as_linear(lambda distances: distances @ distance_weight, fusion.projections)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the output for each row of x."""
        # (*B, K * R) -> (*B, K, R)
        differences = self.apart(x).unflatten(-1, (self.projections, -1))
        y: Tensor = self.linear(x) + self.output(differences.square().sum(-1))
        return y


def build_fusion(
    config: BaseFusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    *,
    gain: float = RELU_GAIN,
) -> Fusion:
    """Build the fusion that ``config`` belongs to, for a vector or for each position by itself.

    Args:
        config: options of the fusion, built-in or a user's.
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        gain: gain of the map that the fusion starts as.

    Returns:
        The fusion, newly initialized.

    Raises:
        ConfigError: if no fusion has this config, or if it has another constructor.
    """
    fusion_class = Fusion.class_of(config)
    return _construct(fusion_class, config, features_dim, context_dim, out_dim, gain)


def build_map_fusion(
    config: BaseFusionConfig, features_dim: int, context_dim: int, out_dim: int
) -> Fusion:
    """Build the fusion of a feature map.

    ``attention`` attends over the cells; every other built-in fusion treats each cell by itself.

    Args:
        config: options of the fusion, built-in or a user's.
        features_dim: X, the features of a cell.
        context_dim: Z, the size of the context.
        out_dim: O, the features of a fused cell.

    Returns:
        The fusion, newly initialized.

    Raises:
        ConfigError: if no fusion has this config, or if it has another constructor.
    """
    fusion_class = Fusion.class_of(config)
    fusion_class = fusion_class.map_class or fusion_class
    return _construct(fusion_class, config, features_dim, context_dim, out_dim, RELU_GAIN)


def _construct(
    fusion_class: type[Fusion],
    config: BaseFusionConfig,
    features_dim: int,
    context_dim: int,
    out_dim: int,
    gain: float,
) -> Fusion:
    return fusion_class.construct(
        features_dim=features_dim,
        context_dim=context_dim,
        out_dim=out_dim,
        config=config,
        gain=gain,
    )
