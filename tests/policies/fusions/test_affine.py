"""Affine maps."""

import math

import pytest
import torch
from fusion_cases import (
    MEMBERS,
    O,
    X,
    fresh,
    normal,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn import functional as F

from mirl.policies.fusions import (
    Affine,
    as_linear,
)

close = torch.testing.assert_close


@pytest.mark.parametrize("member", MEMBERS)
def test_sb3_initialization_leaves_fusions_unchanged(member: str) -> None:
    """SB3's orthogonal initialization does not change a fusion."""
    fusion = fresh(member)
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    fusion.apply(lambda module: ActorCriticPolicy.init_weights(module, gain=math.sqrt(2)))
    close(fusion.state_dict(), before, rtol=0, atol=0)


def test_affine_equals_linear_layer() -> None:
    """An affine map equals ``nn.Linear`` with the transposed weight."""
    ours = Affine(X, O, gain=1)
    linear = nn.Linear(X, O)
    linear.load_state_dict({"weight": ours.weight.T, "bias": ours.bias})
    x = torch.randn(4, X)
    close(ours(x), linear(x))


@pytest.mark.parametrize("scale", [1 / 64, 1.0, 3.0])
@pytest.mark.parametrize("bias", [True, False])
def test_scaled_affine_equals_torch_linear(bias: bool, scale: float) -> None:
    """A scaled map equals ``F.linear`` of c W, which starts as without the scale."""
    torch.manual_seed(0)
    plain = Affine(X, O, gain=2)
    torch.manual_seed(0)
    ours = Affine(X, O, gain=2, bias=bias, scale=scale)
    close(scale * ours.weight, plain.weight)
    if ours.bias is not None:
        nn.init.normal_(ours.bias)
    x = torch.randn(4, 3, X)
    close(ours(x), F.linear(x, scale * ours.weight.T, ours.bias))


def test_linear_layer_of_affine_function() -> None:
    """An affine function becomes the linear layer with its values at every point."""
    matrix = normal(X, O)
    with torch.no_grad():
        layer = as_linear(lambda x: 2 * (x @ matrix) - 3, X)
        x = normal(5, X, seed=1)
        close(layer(x), 2 * (x @ matrix) - 3)
