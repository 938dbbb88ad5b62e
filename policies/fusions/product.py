"""Conjunctions: products of bilinear similarities, one per attribute of a cell."""

import math
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import ProductConfig
from mirl.policies.fusions.affine import Affine, as_linear
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups


class ProductSimilarity(Fusion):
    """Conjunction of similarities as extra features: y = V x + b + W [∏_f s_f, s_1, …, s_F].

        s_f = max_w (A_f x_f) · (c B_f z_w), K of each

    x_f are the channels of attribute f of a cell, such as its object or its color, and z_w the
    words of the mission, so that "the red ball" is a product of "red" and "ball". A similarity
    is that with the word that fits best, and no other word changes it: "red" says nothing against
    a box. A context that is no text counts as one word, z_1 = z; without ``config.by_word`` so
    does a text. The channels of no attribute enter V x alone. Features without attributes are
    projected as a whole: x_f = x for each of ``config.groups``.

    W starts at zero.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion: K as ``products``, R as ``rank``, and c.
        gain: gain of the initialization of V.
        attribute_dims: number of channels of each attribute, the first ones of x.

    References:
        Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized
        Late Interaction over BERT", SIGIR 2020, for the maximum over the words.
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
        self.by_word = config.by_word
        self.products = config.products
        self.rank = config.rank
        self.parts: list[tuple[int, int]] = []
        """First channel of each x_f, and the channel after its last one."""
        start = 0
        for dim in attribute_dims:
            self.parts.append((start, start + dim))
            start += dim
        if not self.parts:
            self.parts = [(0, features_dim)] * config.groups
        projected_dim = config.products * config.rank
        self.main: nn.Module = Affine(features_dim, out_dim, gain=gain)
        if config.main_rank:
            self.main = nn.Sequential(
                Affine(features_dim, config.main_rank, gain=1, bias=False),
                Affine(config.main_rank, out_dim, gain=gain),
            )
        self.factor_features = nn.ModuleList()
        for start, end in self.parts:
            self.factor_features.append(self._factor(end - start, projected_dim))
        self.factor_context = self._factor(
            context_dim,
            len(self.parts) * projected_dim,
            scale=config.scale(context_dim),
        )
        terms_dim = (len(self.parts) + 1) * config.products
        # only W is zero: with A or B at zero as well, no gradient would reach any of the three
        self.output = Affine(terms_dim, out_dim, gain=0, bias=False)
        # the heads read the products alone: a single s_f learns which values of its attribute
        # never go with which words
        self.similarities_dim = config.products

    def _factor(self, in_dim: int, out_dim: int, scale: float = 1.0) -> Affine:
        """Return A_f or B of a size that gives similarities of order 1 for inputs of order 1."""
        # an orthogonal map into more dimensions would shrink each of them
        gain = math.sqrt(max(1.0, out_dim / in_dim))
        # the inner product of R numbers of order 1 is of order √R
        gain /= self.rank**0.25
        return Affine(in_dim, out_dim, gain=gain, bias=False, scale=scale)

    def choose_context(
        self,
        values: Float[Tensor, "G Z"],
        words: Float[Tensor, "G W Z"] | None,
    ) -> Float[Tensor, "G chosen Z"]:
        """Return the words of the contexts, or the contexts as one word each."""
        return super().choose_context(values, words if self.by_word else None)

    def project_words(self, z: Float[Tensor, "G W Z"]) -> Float[Tensor, "G W F K R"]:
        """Return c B_f z_w for each word and each attribute.

        Args:
            z: words of the contexts, (G, W, Z).

        Returns:
            The projections, (G, W, F, K, R).
        """
        # (G, W, F * K * R) -> (G, W, F, K, R)
        return self.factor_context(z).unflatten(-1, (len(self.parts), self.products, self.rank))

    def generate(self, z: Float[Tensor, "G W Z"]) -> Float[Tensor, "G X FWK"]:
        """Return the matrix that gives x's similarities with all words, c A_fᵀ B_f z_w.

        Args:
            z: words of the contexts, (G, W, Z).

        Returns:
            One matrix per context, (G, X, F * W * K), with rows of zeros outside of x_f.
        """
        projected = self.project_words(z)
        blocks: list[Tensor] = []
        for index, (start, end) in enumerate(self.parts):
            weight = self.factor_features[index].weight
            assert isinstance(weight, Tensor)
            # (X_f, K * R) -> (X_f, K, R)
            factor = weight.unflatten(1, (self.products, self.rank))
            block = torch.einsum("xkr,gwkr->gxwk", factor, projected[:, :, index])
            # (G, X_f, W * K) -> (G, X, W * K)
            blocks.append(F.pad(block.flatten(2), (0, 0, start, self.features_dim - end)))
        return torch.cat(blocks, dim=-1)

    def similarities(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P F K"]:
        """Return the similarities s_1, …, s_F, K of each.

        Args:
            x: features, (B, P, X).
            z: words of the contexts, (G, W, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            K similarities for each attribute, (B, P, F, K).
        """
        by_word = self.similarities_by_word(x, z, groups)
        best: Tensor = by_word.amax(dim=3)
        return best

    def similarities_by_word(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P F W K"]:
        """Return (A_f x_f) · (c B_f z_w) for each attribute and each word.

        Args:
            x: features, (B, P, X).
            z: words of the contexts, (G, W, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            The similarities, (B, P, F, W, K), which are linear in x.
        """
        positions = x.shape[1]
        words = z.shape[1]
        attributes = len(self.parts)
        multiplications = 0
        for start, end in self.parts:
            multiplications += positions * words * (end - start) * self.products * self.rank
        if groups is not None and groups.prefer_grouped(multiplications):
            # z may end with contexts that no row has
            weights = self.generate(z[: groups.count])
            no_shifts = weights.new_zeros(groups.count, weights.shape[2])
            products = groups.multiply(x, weights, no_shifts)
        elif positions > 1:
            # the matrix of a row's context serves all positions of the row
            if groups is not None:
                z = z.index_select(0, groups.index)
            products = torch.bmm(x, self.generate(z))
        else:
            # (G, W, F, K, R) -> (G, F, W, K, R) -> (B, 1, F, W, K, R)
            projected = self.project_words(z).transpose(1, 2)
            theirs = per_row(projected.flatten(1), groups).unflatten(-1, projected.shape[1:])
            ours: list[Tensor] = []
            for index, (start, end) in enumerate(self.parts):
                ours.append(self.factor_features[index](x[..., start:end]))
            # (B, 1, F * K * R) -> (B, 1, F, 1, K, R)
            features = torch.cat(ours, dim=-1).unflatten(
                -1, (attributes, 1, self.products, self.rank)
            )
            return (features * theirs).sum(-1)
        # (B, P, F * W * K) -> (B, P, F, W, K)
        return products.unflatten(-1, (attributes, words, self.products))

    def interact(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> Float[Tensor, "B P O"]:
        """Compute V x + b + W [∏_f s_f, s_1, …, s_F]."""
        return self.interact_with_similarities(x, z, groups)[0]

    def interact_with_similarities(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G W Z"],
        groups: ContextGroups | None,
    ) -> tuple[Float[Tensor, "B P O"], Float[Tensor, "B P K"]]:
        """Compute the output, and return the products of the similarities with it.

        Args:
            x: features, (B, P, X).
            z: words of the contexts, (G, W, Z).
            groups: the context of each row; None if every row has its own.

        Returns:
            The fused features, (B, P, O), and ∏_f s_f, the similarity of a whole cell, (B, P, K).
        """
        similarities = self.similarities(x, z, groups)
        products = multiply_attributes(similarities)
        terms = torch.cat([products, similarities.flatten(2)], dim=-1)
        y: Tensor = self.main(x) + self.output(terms)
        return y, products

    def specialize(self, z: Float[Tensor, "1 W context"]) -> nn.Module:
        """Return the fusion with the similarities to all words as one linear layer."""
        return SpecializedProduct(self, z)


def multiply_attributes(
    similarities: Float[Tensor, "*batch F K"],
) -> Float[Tensor, "*batch K"]:
    """Return ∏_f s_f.

    Args:
        similarities: s_1, …, s_F, K of each.
    """
    # the gradient of torch.prod divides by the factors, which may be zero
    return reduce(torch.mul, similarities.unbind(-2))


class SpecializedProduct(nn.Module):
    """``ProductSimilarity`` for one context: the similarities to its words are linear in x.

    Args:
        fusion: the fusion, in float64.
        z: the words of the context in float64, (1, W, Z).
    """

    def __init__(self, fusion: ProductSimilarity, z: Float[Tensor, "1 W context"]) -> None:
        super().__init__()
        self.shape = (len(fusion.parts), z.shape[1], fusion.products)
        self.main = as_linear(fusion.main, fusion.features_dim)

        def by_word(x: Tensor) -> Tensor:
            return fusion.similarities_by_word(x.unsqueeze(0), z, None)[0].flatten(1)

        self.by_word = as_linear(by_word, fusion.features_dim)
        self.output = as_linear(fusion.output, fusion.output.weight.shape[0])

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the output for each row of x."""
        return self.with_similarities(x)[0]

    def with_similarities(
        self, x: Float[Tensor, "*batch in"]
    ) -> tuple[Float[Tensor, "*batch out"], Float[Tensor, "*batch K"]]:
        """Return the output and the products of the similarities for each row of x.

        Args:
            x: features, (*B, X).
        """
        # (*B, F * W * K) -> (*B, F, W, K) -> (*B, F, K)
        similarities = self.by_word(x).unflatten(-1, self.shape).amax(dim=-2)
        products = multiply_attributes(similarities)
        terms = torch.cat([products, similarities.flatten(-2)], dim=-1)
        y: Tensor = self.main(x) + self.output(terms)
        return y, products
