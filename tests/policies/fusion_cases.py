"""Every fusion at small, pairwise different sizes, with random weights."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mirl.configs.networks import (
    AdapterConfig,
    AttentionConfig,
    BilinearConfig,
    ConcatConfig,
    FilmConfig,
    FusionConfig,
    GateConfig,
    HyperConfig,
    LowRankConfig,
    MetricConfig,
    ProductConfig,
)
from mirl.policies import Fusion, build_fusion, build_map_fusion
from mirl.policies.grouped_matmul import ContextGroups

X, Z, O = 6, 5, 7  # noqa: E741  letters of the equations

VECTOR_CONFIGS: dict[str, FusionConfig] = {
    "concat": ConcatConfig(),
    "concat-hidden": ConcatConfig(hidden=4),
    "bilinear": BilinearConfig(),
    "low_rank": LowRankConfig(rank=3),
    "hyper-affine": HyperConfig(hidden=()),
    "hyper": HyperConfig(hidden=(4, 3)),
    "film": FilmConfig(),
    "gate": GateConfig(),
    "attention-sigmoid": AttentionConfig(mask="sigmoid", rank=3),
    "attention-softmax": AttentionConfig(mask="softmax", rank=3),
    "metric": MetricConfig(projections=2, rank=3),
    "product": ProductConfig(products=3, rank=2, groups=2),
    "adapter": AdapterConfig(bottleneck=3, hidden=(4,), chunk_size=5, chunk_embedding=2),
    "product-bounded": ProductConfig(products=3, rank=2, bound=4.0, combine="sum"),
    "product-narrow": ProductConfig(products=2, rank=3, main_rank=2, groups=3),
}
KINDS = tuple(str(config.model_fields["kind"].default) for config in get_args(FusionConfig))
"""Names of the built-in fusions."""
CROSS = "attention-cross"
MEMBERS = (*VECTOR_CONFIGS, CROSS)
"""Names of all cases: the fusions of ``build_fusion``, and the attention over cells."""


def fresh(member: str, features_dim: int = X, context_dim: int = Z, out_dim: int = O) -> Fusion:
    """Return a newly initialized fusion in float64."""
    if member == CROSS:
        return build_map_fusion(
            AttentionConfig(heads=2), features_dim, context_dim, out_dim
        ).double()
    return build_fusion(VECTOR_CONFIGS[member], features_dim, context_dim, out_dim).double()


def randomized(
    member: str, features_dim: int = X, context_dim: int = Z, out_dim: int = O, seed: int = 0
) -> Fusion:
    """Return a fusion in float64 with random weights.

    The zero weights of the initialization would hide most mistakes.
    """
    return randomize(fresh(member, features_dim, context_dim, out_dim), seed)


def randomize(fusion: Fusion, seed: int = 0) -> Fusion:
    """Set all weights to normal values of standard deviation 1/2, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(
                0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )
    return fusion


def assert_forms_are_equal(
    fusion: Fusion, x: Tensor, expected: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the grouped form and the form per row with ``expected(z of each row)``.

    Args:
        fusion: the fusion, in float64.
        x: seven rows of features.
        expected: the output from one context per row.
        monkeypatch: chooses the form.
    """
    z = normal(3, fusion.context_dim, seed=1)
    index = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    y = expected(z[index])
    # contexts that no row has
    more = torch.cat([z, normal(2, fusion.context_dim, seed=2)])
    for grouped in (True, False):
        monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_, chosen=grouped: chosen)
        torch.testing.assert_close(fusion(x, z, index), y)
        torch.testing.assert_close(fusion(x, more, ContextGroups(index, 3)), y)


def assert_equals_finite_differences(
    fusion: Fusion, x: Tensor, z: Tensor, index: Tensor | None
) -> None:
    """Compare the gradients of the inputs and of all weights with finite differences."""
    names = [name for name, _ in fusion.named_parameters()]

    def forward(x: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
        values = dict(zip(names, weights, strict=True))
        result: Tensor = functional_call(fusion, values, (x, z, index))
        return result

    inputs = (x, z, *fusion.parameters())
    leaves = tuple(each.detach().clone().requires_grad_() for each in inputs)
    assert torch.autograd.gradcheck(forward, leaves, fast_mode=True)


def assert_bfloat16_rounds(fusion: Fusion) -> None:
    """Check that autocast changes the output by rounding errors alone."""
    fusion = fusion.float()
    x = normal(7, 3, fusion.features_dim).float()
    z = normal(3, fusion.context_dim).float()
    index = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    with torch.autocast("cpu", torch.bfloat16):
        half = fusion(x, z, index)
    expected = fusion(x, z, index)
    assert (half.float() - expected).abs().max() < 0.03 * expected.abs().max()


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return normal values in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradients(
    module: nn.Module, inputs: tuple[Tensor, ...], forward: Callable[..., Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return ``forward(*inputs)`` and gradients with respect to the inputs and all weights.

    The gradients are those of a fixed random projection of the output.
    """
    leaves = tuple(each.detach().clone().requires_grad_() for each in inputs)
    y = forward(*leaves)
    wanted = (*leaves, *module.parameters())
    loss = (y * normal(*y.shape, seed=99)).sum()
    return y, list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
