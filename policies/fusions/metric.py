"""Learned similarities of features and context."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mirl.configs.networks import (
    MetricConfig,
)
from mirl.policies.fusions.affine import Affine, as_linear
from mirl.policies.fusions.fusion import Fusion, per_row
from mirl.policies.grouped_matmul import ContextGroups


class MetricSimilarity(Fusion):
    """Learned similarities of x and z as extra features: y = V x + b + W s(x, z).

    s contains for each of K pairs of learned projections (A_k, c B_k)

    - the inner product (A_k x) · (B_k z), which is zᵀx if both are the identity, and
    - the squared distance ‖A_k x − B_k z‖², which is the squared Mahalanobis distance
      (x − z)ᵀ C⁻¹ (x − z) if A_k = B_k = L and C⁻¹ = LᵀL.

    W starts at zero.

    Args:
        features_dim: X, the size of the features.
        context_dim: Z, the size of the context.
        out_dim: O, the size of the output.
        config: options of the fusion: K as ``projections``, their output size as ``rank``, and c.
        gain: gain of the initialization of V.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import MetricSimilarity
        >>> metric = MetricSimilarity(4, 3, 2, MetricSimilarity.Config(projections=6), gain=1.0)
        >>> x, z = torch.zeros(5, 1, 4), torch.zeros(5, 3)
        >>> metric.similarities(x, z, None).shape  # 6 inner products and 6 distances
        torch.Size([5, 1, 12])
        >>> metric(x, z).shape
        torch.Size([5, 1, 2])
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
        gain_of_factors = 1 / math.sqrt(config.rank)
        scale = config.scale(context_dim)
        self.main = Affine(features_dim, out_dim, gain=gain)
        self.project_features = Affine(
            features_dim,
            projected_dim,
            gain=gain_of_factors,
            bias=False,
            scale=config.scale_of_features,
        )
        self.project_context = Affine(
            context_dim, projected_dim, gain=gain_of_factors, bias=False, scale=scale
        )
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

    def modulation(
        self,
        x: Float[Tensor, "B P X"],
        z: Float[Tensor, "G Z"],
        groups: ContextGroups | None,
    ) -> dict[str, Tensor]:
        """Return the inner products and squared distances; see ``Fusion.modulation``."""
        inner_products, distances = self.similarities(x, z, groups).chunk(2, dim=-1)
        return {"inner product": inner_products, "squared distance": distances}

    def specialize(self, z: Float[Tensor, "1 context"]) -> nn.Module:
        """Return the affine part and the distances; see ``Fusion.specialize``."""
        return SpecializedMetric(self, z)


class SpecializedMetric(nn.Module):
    """``MetricSimilarity`` for one z: y = linear(x) + output(‖A_k x − B_k z‖² for every k).

    The inner products are affine in x and are merged into V x + b; the distances remain.

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
