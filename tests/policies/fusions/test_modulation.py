"""FiLM and gates as special cases of the bilinear interaction."""

import torch
from bilinear_forms import assert_same_function, constrained_bilinear
from fusion_cases import (
    O,
    X,
    Z,
    normal,
    randomize,
)

from mirl.configs.networks import (
    FilmConfig,
    GateConfig,
)
from mirl.policies import build_fusion
from mirl.policies.fusions import (
    Film,
    Gate,
)


def test_film_equals_diagonal_bilinear_form() -> None:
    """FiLM equals the bilinear form with a diagonal context matrix."""
    fusion = randomize(build_fusion(FilmConfig(), X, Z, O).double())
    assert isinstance(fusion, Film)
    scale, shift = fusion.to_scale_shift.weight[:, :O], fusion.to_scale_shift.weight[:, O:]
    # W′(z) = V diag(1 + c γ(z)) with c = 1/Z
    diagonal = torch.stack([torch.diag(row / Z) for row in scale])
    weight = torch.einsum("xp,zpo->zxo", fusion.main.weight, diagonal)
    full = constrained_bilinear(
        weight,
        shift + torch.einsum("p,zpo->zo", fusion.main.bias, diagonal),
        fusion.main.weight,
        fusion.main.bias,
    )
    assert_same_function(fusion, full, normal(5, Z))


def test_one_hot_gate_equals_bilinear_form() -> None:
    """For one-hot contexts the gate equals a bilinear form."""
    fusion = randomize(build_fusion(GateConfig(), X, Z, O).double())
    assert isinstance(fusion, Gate)
    fusion.gate_features.weight.data.zero_()
    gates = torch.sigmoid(
        fusion.gate_context.weight + fusion.gate_features.bias
    )  # (Z, O), one row per context
    full = constrained_bilinear(
        torch.einsum("zo,xo->zxo", gates, fusion.main.weight),
        gates * fusion.main.bias,
        torch.zeros(X, O, dtype=torch.float64),
        torch.zeros(O, dtype=torch.float64),
    )
    assert_same_function(fusion, full, torch.eye(Z, dtype=torch.float64))
