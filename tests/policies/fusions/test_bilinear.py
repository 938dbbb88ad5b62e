"""Bilinear interactions against torch's layers and the general form."""

import torch
from bilinear_forms import assert_same_function, constrained_bilinear
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
    BilinearConfig,
    HyperConfig,
    LowRankConfig,
)
from mirl.policies import build_fusion, count_parameters
from mirl.policies.fusions import (
    Affine,
    Bilinear,
    Hyper,
    LowRank,
)

close = torch.testing.assert_close


def test_bilinear_equals_torch_layers() -> None:
    """``bilinear`` equals ``nn.Bilinear`` plus a linear layer over the concatenation."""
    fusion = randomize(build_fusion(BilinearConfig(), X, Z, O).double())
    assert isinstance(fusion, Bilinear)
    product, linear = nn.Bilinear(Z, X, O, bias=False).double(), nn.Linear(X + Z, O).double()
    product.load_state_dict({"weight": (fusion.weight / Z).permute(2, 0, 1)})
    linear.load_state_dict(
        {"weight": torch.cat([fusion.main.weight, fusion.shift.weight]).T, "bias": fusion.main.bias}
    )
    x, z = normal(4, X), normal(4, Z, seed=1)
    close(fusion(x, z), product(z, x) + linear(torch.cat([x, z], dim=1)))


def test_low_rank_equals_full_bilinear_form() -> None:
    """``low_rank`` equals the bilinear form with the tensor of its factors."""
    fusion = randomize(build_fusion(LowRankConfig(rank=4), X, Z, O).double())
    assert isinstance(fusion, LowRank)
    weight = torch.einsum(
        "zr,xr,ro->zxo",
        fusion.factor_context.weight / Z,
        fusion.factor_features.weight / 4,
        fusion.project.weight,
    )
    full = constrained_bilinear(weight, fusion.shift.weight, fusion.main.weight, fusion.main.bias)
    assert_same_function(fusion, full, normal(5, Z))


def test_affine_hyper_equals_bilinear_form() -> None:
    """A hypernetwork without hidden layers equals the bilinear form."""
    fusion = randomize(build_fusion(HyperConfig(hidden=()), X, Z, O).double())
    assert isinstance(fusion, Hyper)
    g = fusion.generate
    full = constrained_bilinear(g.weight / Z, g.shift.weight, g.main.weight, g.main.bias)
    assert_same_function(fusion, full, normal(5, Z))


def test_hyper_equals_mlp_generated_layer() -> None:
    """A hypernetwork is an MLP that generates the weights of a linear layer."""
    fusion = randomize(build_fusion(HyperConfig(hidden=(9,)), X, Z, O).double())
    assert isinstance(fusion, Hyper)
    (hidden,), g = fusion.hidden, fusion.generate
    assert isinstance(hidden, Affine)
    mlp = nn.Sequential(nn.Linear(Z, 9), nn.ReLU(), nn.Linear(9, (X + 1) * O)).double()
    generated = torch.cat([g.weight / 9, g.shift.weight.unsqueeze(1)], dim=1)
    mlp.load_state_dict(
        {
            "0.weight": hidden.weight.T / Z,
            "0.bias": hidden.bias,
            "2.weight": generated.flatten(1).T,
            "2.bias": torch.cat([g.main.weight, g.main.bias.unsqueeze(0)]).flatten(),
        }
    )
    x, z = normal(4, X), normal(4, Z, seed=1)
    written = mlp(z).unflatten(1, (X + 1, O))  # W′(z), and b′(z) as its last row
    expected = [
        F.linear(row, weights[:X].T, weights[X]) for row, weights in zip(x, written, strict=True)
    ]
    close(fusion(x, z), torch.stack(expected))


def test_count_parameters_skips_frozen_weights() -> None:
    """Frozen parameters are not counted."""
    fusion = build_fusion(BilinearConfig(), X, Z, O)
    assert count_parameters(fusion) == Z * X * O + Z * O + X * O + O
    fusion.get_parameter("weight").requires_grad_(False)
    assert count_parameters(fusion) == Z * O + X * O + O
