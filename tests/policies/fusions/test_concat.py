"""Concatenation against torch's layers."""

import torch
from fusion_cases import (
    O,
    X,
    Z,
    normal,
    randomize,
)
from torch import nn
from torch.nn import functional as F

from mirl.configs.networks import (
    ConcatConfig,
)
from mirl.policies import build_fusion
from mirl.policies.fusions import (
    Concat,
)

close = torch.testing.assert_close


def test_concat_equals_linear_layer() -> None:
    """``concat`` equals a linear layer over the concatenation."""
    fusion, x, z = (
        randomize(build_fusion(ConcatConfig(), X, Z, O).double()),
        normal(4, X),
        normal(4, Z, seed=1),
    )
    assert isinstance(fusion, Concat)
    weight = torch.cat([fusion.main.weight, fusion.shift.weight]).T
    close(fusion(x, z), F.linear(torch.cat([x, z], dim=1), weight, fusion.main.bias))


def test_hidden_concat_equals_mlp() -> None:
    """``concat`` with a hidden layer equals an MLP over the concatenation."""
    fusion = randomize(build_fusion(ConcatConfig(hidden=9), X, Z, O).double())
    assert isinstance(fusion, Concat)
    assert fusion.project is not None
    mlp = nn.Sequential(nn.Linear(X + Z, 9), nn.ReLU(), nn.Linear(9, O)).double()
    mlp.load_state_dict(
        {
            "0.weight": torch.cat([fusion.main.weight, fusion.shift.weight]).T,
            "0.bias": fusion.main.bias,
            "2.weight": fusion.project.weight.T,
            "2.bias": fusion.project.bias,
        }
    )
    x, z = normal(4, X), normal(4, Z, seed=1)
    close(fusion(x, z), mlp(torch.cat([x, z], dim=1)))
