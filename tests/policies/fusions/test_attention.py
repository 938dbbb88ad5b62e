"""Attention over cells and masks against torch's layers."""

import numpy as np
import pytest
import torch
from fusion_cases import (
    CROSS,
    O,
    X,
    Z,
    fresh,
    normal,
    randomize,
    randomized,
)
from fusion_loops import cross_attention_by_loop, position
from torch import nn
from torch.nn import functional as F

from mirl.configs.networks import (
    AttentionConfig,
)
from mirl.policies import build_map_fusion
from mirl.policies.fusions import (
    AttentionMask,
    CrossAttention,
)

close = torch.testing.assert_close


def multi_head_attention(fusion: CrossAttention) -> nn.MultiheadAttention:
    """Return torch's layer with the weights of ours; its query is as wide as the features."""
    layer = nn.MultiheadAttention(fusion.features_dim, fusion.heads, batch_first=True).double()
    assert fusion.query.bias is not None
    assert fusion.key_value.bias is not None
    dim = fusion.features_dim
    layer.load_state_dict(
        {
            "in_proj_weight": torch.cat([fusion.query.weight, fusion.key_value.weight], dim=1).T,
            "in_proj_bias": torch.cat([fusion.query.bias, fusion.key_value.bias]),
            "out_proj.weight": torch.eye(dim, dtype=torch.float64),
            "out_proj.bias": torch.zeros(dim, dtype=torch.float64),
        }
    )
    return layer


def attention_mask(mask: str) -> AttentionMask:
    fusion = randomized(f"attention-{mask}")
    assert isinstance(fusion, AttentionMask)
    return fusion


def test_cross_attention_equals_loop() -> None:
    """Cross-attention equals its equation, computed by loops over single numbers."""
    fusion, x, z = randomized(CROSS), normal(3, 5, X, seed=1), normal(3, Z, seed=2)
    assert isinstance(fusion, CrossAttention)
    expected = np.stack(
        [cross_attention_by_loop(fusion, x[b].numpy(), z[b].numpy()) for b in range(3)]
    )
    close(fusion(x, z), torch.from_numpy(expected))


def test_cross_attention_equals_torch_multihead() -> None:
    """The attention output equals ``nn.MultiheadAttention`` with the same weights."""
    fusion = randomized(CROSS, context_dim=X)
    assert isinstance(fusion, CrossAttention)
    x, z = normal(3, 5, X), normal(3, X, seed=1)
    located = x + torch.tensor(
        [[position(p, i, X) for i in range(X)] for p in range(5)], dtype=torch.float64
    )
    expected, _ = multi_head_attention(fusion)(z.unsqueeze(1), located, located)
    close(
        fusion.attend(x, z, None), expected, rtol=1e-6, atol=1e-6
    )  # the positions are computed in float32


def test_cross_attention_equals_torch_dot_product() -> None:
    """With one head the fusion equals torch's scaled dot-product attention."""
    fusion = randomize(build_map_fusion(AttentionConfig(heads=1), X, Z, O).double())
    assert isinstance(fusion, CrossAttention)
    x, z = normal(3, 5, X), normal(3, Z, seed=1)
    located = x + torch.tensor(
        [[position(p, i, X) for i in range(X)] for p in range(5)], dtype=torch.float64
    )
    query = torch.einsum("bz,zd->bd", z, fusion.query.weight) + fusion.query.bias
    key, value = (
        torch.einsum("bpx,xd->bpd", located, fusion.key_value.weight) + fusion.key_value.bias
    ).chunk(2, -1)
    read = F.scaled_dot_product_attention(query.unsqueeze(1), key, value)
    expected = (
        torch.einsum("bpx,xo->bpo", x, fusion.main.weight)
        + fusion.main.bias
        + read @ fusion.project.weight
    )
    close(fusion(x, z), expected, rtol=1e-6, atol=1e-6)


def test_sigmoid_mask_is_bounded() -> None:
    """The sigmoid mask is between 0 and 1."""
    fusion = attention_mask("sigmoid")
    mask = fusion.mask(10 * normal(50, 1, X), 10 * normal(50, Z, seed=1), None)
    assert mask.shape == (50, 1, X)
    assert ((mask >= 0) & (mask <= 1)).all()
    assert mask.min() < 0.1
    assert mask.max() > 0.9


def test_softmax_mask_is_scaled_simplex() -> None:
    """The softmax mask is non-negative and sums to the number of features."""
    mask = attention_mask("softmax").mask(3 * normal(50, 1, X), 3 * normal(50, Z, seed=1), None)
    assert (mask >= 0).all()
    close(mask.sum(-1), torch.full((50, 1), float(X), dtype=torch.float64))
    assert mask.max() > 2


def test_softmax_mask_starts_as_identity() -> None:
    """The initial softmax mask changes nothing."""
    fusion, x = fresh("attention-softmax"), normal(4, X)
    assert isinstance(fusion, AttentionMask)
    close(fusion(x, normal(4, Z)), x @ fusion.main.weight + fusion.main.bias)


@pytest.mark.parametrize(("features_dim", "heads"), [(6, 4), (5, 5)])
def test_heads_must_divide_features(features_dim: int, heads: int) -> None:
    """The number of heads must divide the features of a cell."""
    with pytest.raises(ValueError, match=f"got heads={heads}"):
        build_map_fusion(AttentionConfig(heads=heads), features_dim, Z, O)
