"""Conjunctions of bilinear similarities, one per attribute of a cell."""

import math
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import ProductConfig
from mirl.policies.features import is_word
from mirl.policies.fusions.affine import Affine, as_linear
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups


class ProductSimilarity(Fusion):
    """Conjunction of similarities as extra features: y = V x + b + W [s, s_1, …, s_F].

        s = ∏_f s_f or Σ_f s_f,  s_f = (A_f x_f) · (c B_f z_f), K of each

    x_f are the channels of attribute f of a cell, such as its object or its color, and z_f is a
    weighted sum of the words of the mission, so that "the red ball" is "red" for the color and
    "ball" for the object: softmax_f(q_f · z_w) divides each word among the attributes and an option
    "no attribute", whose score is 0. A context other than text is one word. Without
    ``config.pool_words`` z_f is the vector of the whole text. Channels that belong to no attribute
    enter only V x; with ``config.main_attributes`` V reads the first attributes instead. Features
    without attributes are projected as a whole: x_f = x for each of ``config.groups``.

    B and q start at zero, and the weights are (F + 1) / W times the softmax, so that z_f starts as
    the mean of the words. A random B would give each word a preference for some values of every
    attribute, such as "ball" for red cells, and training on some pairs need not remove it. With
    ``config.bound`` every s_f is β tanh(s_f / β), so that no pair scores higher than others only
    because the missions asked for it more often.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion: K as ``products``, R as ``rank``, and c.
        gain: gain of the initialization of V.
        attribute_dims: number of channels of each attribute, the first ones of x.

    Examples:
        Cells with 8 channels for the object, 8 for the color and 16 others:

        >>> import torch
        >>> from mirl.configs.networks import ProductConfig
        >>> from mirl.policies.fusions import build_map_fusion
        >>> config = ProductConfig(products=4)
        >>> product = build_map_fusion(config, 32, 6, 32, attribute_dims=(8, 8))
        >>> words = torch.ones(5, 3, 6)  # 5 missions of 3 words
        >>> y, s = product.interact_with_similarities(torch.zeros(5, 49, 32), words, None)
        >>> y.shape, s.shape
        (torch.Size([5, 49, 32]), torch.Size([5, 49, 4]))
    """

    Config = ProductConfig
    uses_attributes = True
    reads_words = True

    def __init__(
        self,
        features_dim: int,
        context_dim: int,
        out_dim: int,
        config: ProductConfig,
        gain: float,
        attribute_dims: tuple[int, ...] = (),
    ) -> None:
        super().__init__(features_dim, context_dim, out_dim)
        self.combine = config.combine
        self.pool_words = config.pool_words
        self.products = config.products
        self.rank = config.rank
        self.bound = config.bound
        self.parts: list[tuple[int, int]] = []
        """First channel of each x_f, and the channel after its last one."""
        start = 0
        for dim in attribute_dims:
            self.parts.append((start, start + dim))
            start += dim
        if not self.parts:
            self.parts = [(0, features_dim)] * config.groups
        self.main_dim = features_dim
        """Number of channels, the first ones, that V reads."""
        if attribute_dims and config.main_attributes is not None:
            self.main_dim = sum(attribute_dims[: config.main_attributes])
        projected_dim = config.products * config.rank
        self.main: nn.Module = Affine(self.main_dim, out_dim, gain=gain)
        if config.main_rank:
            self.main = nn.Sequential(
                Affine(self.main_dim, config.main_rank, gain=1, bias=False),
                Affine(config.main_rank, out_dim, gain=gain),
            )
        self.factor_features = nn.ModuleList()
        for start, end in self.parts:
            self.factor_features.append(self._factor(end - start, projected_dim))
        # q_f for each attribute and each product
        self.queries = nn.Parameter(torch.zeros(context_dim, len(self.parts) * config.products))
        self.factor_context = Affine(
            context_dim,
            len(self.parts) * projected_dim,
            gain=0,
            bias=False,
            scale=config.scale(context_dim),
        )
        terms_dim = (len(self.parts) + 1) * config.products
        # only B is zero: with A or W at zero as well, no gradient would reach any of the three
        self.output = Affine(terms_dim, out_dim, gain=1, bias=False)
        # the heads receive only s: a single s_f learns which values of its attribute never occur
        # with which words
        self.similarities_dim = config.products

    def _factor(self, in_dim: int, out_dim: int) -> Affine:
        """Return A_f, scaled such that similarities are of order 1 if z_f is as large as x_f."""
        # an orthogonal map into more dimensions would shrink each of them
        gain = math.sqrt(max(1.0, out_dim / in_dim))
        # the inner product of R numbers of order 1 is of order √R
        gain /= self.rank**0.25
        return Affine(in_dim, out_dim, gain=gain, bias=False)

    def choose_context(
        self,
        values: Float[Tensor, "G Z"],
        words: Float[Tensor, "G W Z"] | None,
    ) -> Float[Tensor, "G chosen Z"]:
        """Return the words of the contexts, or the contexts as one word each."""
        return super().choose_context(values, words if self.pool_words else None)

    def project_context(self, z: Float[Tensor, "G W Z"]) -> Float[Tensor, "G F K R"]:
        """Return c B_f z_f for each attribute.

        Args:
            z: words of the contexts, (G, W, Z), with zeros after the last one.

        Returns:
            The projections, (G, F, K, R).
        """
        n_parts = len(self.parts)
        projected = self.factor_context(z).unflatten(-1, (n_parts, self.products, self.rank))
        if not self.pool_words:
            return projected.squeeze(1)
        counts = is_word(z)
        # a text has at least one word, so that the mean is finite
        counts[:, 0] = True
        scores = (z @ self.queries).unflatten(-1, (n_parts, self.products))
        # (G, W, F, K) -> (G, W, F + 1, K); the last score, 0, is that of no attribute
        shares = F.pad(scores, (0, 0, 0, 1)).softmax(2)[:, :, :-1]
        n_words = counts.sum(1, keepdim=True).unsqueeze(-1)
        # equal shares give the mean of the words
        weights = (n_parts + 1) * shares * counts.unsqueeze(-1) / n_words
        # (G, W, F, K, 1) * (G, W, F, K, R) -> (G, F, K, R)
        return (weights.unsqueeze(-1) * projected).sum(1)

    def generate(self, z: Float[Tensor, "G W Z"]) -> Float[Tensor, "G X FK"]:
        """Return the matrix that gives the similarities of x, c A_fᵀ B_f z_f in the rows of x_f.

        Args:
            z: words of the contexts, (G, W, Z).

        Returns:
            One matrix per context, (G, X, F * K).
        """
        projected = self.project_context(z)
        blocks: list[Tensor] = []
        for index, (start, end) in enumerate(self.parts):
            weight = self.factor_features[index].weight
            assert isinstance(weight, Tensor)
            # (X_f, K * R) -> (K, X_f, R)
            factor = weight.unflatten(1, (self.products, self.rank)).transpose(0, 1)
            # (K, X_f, R) x (K, R, G) -> (K, X_f, G) -> (G, X_f, K)
            block = torch.bmm(factor, projected[:, index].permute(1, 2, 0)).permute(2, 1, 0)
            # rows of zeros for the other channels: (G, X_f, K) -> (G, X, K)
            blocks.append(F.pad(block, (0, 0, start, self.features_dim - end)))
        return torch.cat(blocks, dim=-1)

    def similarities(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P FK"]:
        """Return the similarities s_1, …, s_F, K of each, without their bound.

        Args:
            x: features, (B, P, X).
            z: words of the contexts, (G, W, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            K similarities for each attribute, (B, P, F * K).
        """
        positions = x.shape[1]
        multiplications = 0
        for start, end in self.parts:
            multiplications += positions * (end - start) * self.products * self.rank
        if groups is not None and groups.prefer_grouped(multiplications):
            # z may end with contexts that no row has
            weights = self.generate(z[: groups.count])
            no_shifts = weights.new_zeros(groups.count, weights.shape[2])
            return groups.multiply(x, weights, no_shifts)
        if positions > 1:
            # the matrix of a row's context serves all positions of the row
            if groups is not None:
                z = z.index_select(0, groups.index)
            return torch.bmm(x, self.generate(z))
        projected = per_row(self.project_context(z).flatten(1), groups)
        features: list[Tensor] = []
        for index, (start, end) in enumerate(self.parts):
            features.append(self.factor_features[index](x[..., start:end]))
        # (B, P, F * K * R) -> (B, P, F * K, R) -> (B, P, F * K)
        products = torch.cat(features, dim=-1) * projected
        return products.unflatten(-1, (-1, self.rank)).sum(-1)

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V x + b + W [s, s_1, …, s_F]."""
        return self.interact_with_similarities(x, z, groups)[0]

    def interact_with_similarities(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> tuple[Float[Tensor, "B P O"], Float[Tensor, "B P K"]]:
        """Compute the output and the similarities of whole cells.

        Args:
            x: features, (B, P, X).
            z: words of the contexts, (G, W, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            The fused features, (B, P, O), and s, (B, P, K).
        """
        similarities = bounded(self.similarities(x, z, groups), self.bound)
        combined = combine_parts(similarities, len(self.parts), self.combine)
        terms = self.output(torch.cat([combined, similarities], dim=-1))
        return self.read_main(x) + terms, combined

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the similarities of each attribute, and s; see ``Fusion.modulation``."""
        similarities = bounded(self.similarities(x, z, groups), self.bound)
        count = len(self.parts)
        named = {}
        for index, part in enumerate(similarities.chunk(count, dim=-1)):
            named[f"similarity of attribute {index + 1}"] = part
        return {**named, "similarity": combine_parts(similarities, count, self.combine)}

    def read_main(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return V x + b, in which V reads some of the channels.

        Args:
            x: features, (*B, X).
        """
        y: Tensor = self.main(x[..., : self.main_dim])
        return y

    def specialize(self, z: Float[Tensor, "1 W context"]) -> nn.Module:
        """Return the fusion for one context; see ``Fusion.specialize``."""
        return SpecializedProduct(self, z)


def combine_parts(
    similarities: Float[Tensor, "*batch FK"], count: int, combine: Literal["product", "sum"]
) -> Float[Tensor, "*batch K"]:
    """Return s, the product or the sum of s_1, …, s_F.

    Args:
        similarities: s_1, …, s_F, K of each.
        count: F.
        combine: the operation.
    """
    operation = torch.mul if combine == "product" else torch.add
    return reduce(operation, similarities.chunk(count, dim=-1))


def bounded(
    similarities: Float[Tensor, "*batch FK"], bound: float | None
) -> Float[Tensor, "*batch FK"]:
    """Return β tanh(s_f / β).

    Args:
        similarities: s_1, …, s_F, K of each.
        bound: β; None to return the similarities unchanged.
    """
    return similarities if bound is None else bound * torch.tanh(similarities / bound)


class SpecializedProduct(nn.Module):
    """``ProductSimilarity`` for one context, whose similarities are linear in x.

    Args:
        fusion: the fusion, in float64.
        z: the words of the context in float64, (1, W, Z).
    """

    def __init__(self, fusion: ProductSimilarity, z: Float[Tensor, "1 W context"]) -> None:
        super().__init__()
        self.count = len(fusion.parts)
        self.combine = fusion.combine
        self.bound = fusion.bound
        x_dim = fusion.features_dim
        self.main = as_linear(fusion.read_main, x_dim)
        self.similarities = as_linear(
            lambda x: fusion.similarities(x.unsqueeze(0), z, None)[0], x_dim
        )
        terms_dim = (self.count + 1) * fusion.products
        self.output = as_linear(fusion.output, terms_dim)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the output for each row of x."""
        return self.with_similarities(x)[0]

    def with_similarities(
        self, x: Float[Tensor, "*batch in"]
    ) -> tuple[Float[Tensor, "*batch out"], Float[Tensor, "*batch K"]]:
        """Return the output and s for each row of x.

        Args:
            x: features, (*B, X).
        """
        similarities = bounded(self.similarities(x), self.bound)
        combined = combine_parts(similarities, self.count, self.combine)
        y: Tensor = self.main(x) + self.output(torch.cat([combined, similarities], dim=-1))
        return y, combined
