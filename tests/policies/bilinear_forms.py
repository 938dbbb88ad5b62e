"""The bilinear interaction with given tensors, of which other fusions are special cases."""

import torch
from fusion_cases import (
    normal,
)
from torch import Tensor

from mirl.configs.networks import (
    BilinearConfig,
)
from mirl.policies import build_fusion
from mirl.policies.fusions import (
    Bilinear,
    Fusion,
)

close = torch.testing.assert_close


def constrained_bilinear(weight: Tensor, shift: Tensor, main: Tensor, bias: Tensor) -> Bilinear:
    """Return a bilinear layer with c 𝕎 (Z, X, O), U (Z, O), V (X, O) and b (O)."""
    fusion = build_fusion(BilinearConfig(), main.shape[0], shift.shape[0], main.shape[1]).double()
    assert isinstance(fusion, Bilinear)
    fusion.load_state_dict(
        {
            "weight": weight / fusion.context_scale,
            "shift.weight": shift,
            "main.weight": main,
            "main.bias": bias,
        }
    )
    return fusion


def assert_same_function(fusion: Fusion, other: Fusion, z: Tensor) -> None:
    x = normal(len(z), fusion.features_dim, seed=3)
    close(fusion(x, z), other(x, z), rtol=1e-6, atol=1e-6)
    cells = normal(len(z), 4, fusion.features_dim, seed=4)
    close(fusion(cells, z), other(cells, z), rtol=1e-6, atol=1e-6)
