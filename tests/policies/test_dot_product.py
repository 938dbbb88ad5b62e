"""Inner product of observation and goal: a bilinear layer represents it, an MLP does not.

Jayakumar et al. (2020), section 3 and figure 2: the multiplicative interaction represents x · z
exactly; a multilayer perceptron needs many more parameters to approximate it.
"""

import pytest
import torch
from torch.nn import functional as F

from mirl.configs.networks import BilinearConfig, ConcatConfig, FusionConfig
from mirl.policies import build_fusion, count_parameters

TARGET = 1e-4
"""Mean squared error below which x · z counts as fitted; its variance is d."""

LEARNING_RATES = (1e-2, 3e-2, 1e-1, 3e-1)
"""Both networks are trained with each of them, and the best result counts. The largest one is for
the bilinear layer, whose weights are d here, as its context is scaled by 1/d."""


def matched_hidden(dim: int) -> int:
    """Return the smallest hidden layer with which ``concat`` has as many parameters."""
    size = count_parameters(build_fusion(BilinearConfig(), dim, dim, 1))
    return next(
        hidden
        for hidden in range(1, size)
        if count_parameters(build_fusion(ConcatConfig(hidden=hidden), dim, dim, 1)) >= size
    )


def fit(config: FusionConfig, dim: int, learning_rate: float, steps: int) -> float:
    """Error on fresh data after ``steps`` steps of Adam with a step size that falls to zero."""
    torch.manual_seed(0)
    fusion = build_fusion(config, dim, dim, 1)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, z = torch.randn(2, 128, dim, generator=generator)
        loss = F.mse_loss(fusion(x, z), (x * z).sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, z = torch.randn(2, 4096, dim, generator=generator)
        return F.mse_loss(fusion(x, z), (x * z).sum(1, keepdim=True)).item()


def best_fit(config: FusionConfig, dim: int, steps: int) -> float:
    return min(fit(config, dim, learning_rate, steps) for learning_rate in LEARNING_RATES)


def assert_only_bilinear_fits(dim: int, steps: int) -> None:
    assert best_fit(BilinearConfig(), dim, steps) < TARGET
    assert best_fit(ConcatConfig(hidden=matched_hidden(dim)), dim, steps) > 100 * TARGET


@pytest.mark.parametrize("dim", [2, 8])
def test_only_bilinear_fits_the_inner_product(
    dim: int,
) -> None:
    """A bilinear layer fits the inner product, and an MLP of its size does not."""
    assert_only_bilinear_fits(dim, steps=400)


@pytest.mark.learning
@pytest.mark.parametrize("dim", [2, 4, 8, 16, 32])
def test_longer_training_does_not_help_mlp(dim: int) -> None:
    """The same holds after five times as many steps."""
    assert_only_bilinear_fits(dim, steps=2_000)


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_mlp_has_as_many_parameters(dim: int) -> None:
    """The MLP has at least as many parameters as the bilinear layer."""
    bilinear = build_fusion(BilinearConfig(), dim, dim, 1)
    concat = build_fusion(ConcatConfig(hidden=matched_hidden(dim)), dim, dim, 1)
    assert 1 <= count_parameters(concat) / count_parameters(bilinear) < 1.5


def test_bilinear_represents_inner_product_exactly() -> None:
    """With the identity as c 𝕎 the bilinear layer is the inner product."""
    fusion = build_fusion(BilinearConfig(), 32, 32, 1).double()
    with torch.no_grad():
        fusion.get_parameter("main.weight").zero_()
        fusion.get_parameter("weight").copy_(32 * torch.eye(32).unsqueeze(-1))
    x, z = torch.randn(2, 100, 32, dtype=torch.float64)
    torch.testing.assert_close(
        fusion(x, z)[:, 0], torch.stack([a @ b for a, b in zip(x, z, strict=True)])
    )
