"""Similarities against dot products and SciPy's Mahalanobis distance."""

import numpy as np
import torch
from fusion_cases import (
    X,
    normal,
)
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from mirl.configs.networks import (
    MetricConfig,
)
from mirl.policies import build_fusion
from mirl.policies.fusions import (
    MetricSimilarity,
)

close = torch.testing.assert_close


def one_metric(projection: Tensor) -> MetricSimilarity:
    """Project both sides by one matrix, so that y = [inner product, distance]."""
    dim = len(projection)
    config = MetricConfig(projections=1, rank=dim, context_scale=1.0, features_scale=1.0)
    fusion = build_fusion(config, dim, dim, 2).double()
    assert isinstance(fusion, MetricSimilarity)
    with torch.no_grad():
        fusion.main.weight.zero_()
        for side in (fusion.project_features, fusion.project_context):
            side.weight.copy_(projection.T)
        fusion.output.weight.copy_(torch.eye(2))
    return fusion


def test_metric_of_identity_is_inner_product() -> None:
    """With the identity as projection the first similarity is the inner product."""
    fusion, x, z = one_metric(torch.eye(X)), normal(5, X), normal(5, X, seed=1)
    close(fusion(x, z)[:, 0], torch.stack([torch.dot(a, b) for a, b in zip(z, x, strict=True)]))


def test_metric_gives_mahalanobis_distance() -> None:
    """With a factor of C⁻¹ the second similarity is the squared Mahalanobis distance."""
    root = normal(X, X, seed=2)
    covariance = root @ root.T + torch.eye(X)
    inverse = np.linalg.inv(covariance.numpy())
    lower = np.linalg.cholesky(inverse)  # C⁻¹ = lower lowerᵀ, so L = lowerᵀ
    fusion, x, z = one_metric(torch.from_numpy(lower.T.copy())), normal(5, X), normal(5, X, seed=1)
    expected = [mahalanobis(a, b, inverse) ** 2 for a, b in zip(x.numpy(), z.numpy(), strict=True)]
    close(fusion(x, z)[:, 1], torch.tensor(expected))
