"""Construction of the fusion that a config belongs to."""

import pytest
from fusion_cases import VECTOR_CONFIGS, O, X, Z

from mirl.configs.networks import AttentionConfig
from mirl.policies.fusions import AttentionMask, CrossAttention, build_fusion, build_map_fusion


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_fusion_belongs_to_its_config(member: str) -> None:
    fusion = build_fusion(VECTOR_CONFIGS[member], X, Z, O)
    assert fusion.Config is type(VECTOR_CONFIGS[member])
    assert (fusion.features_dim, fusion.context_dim, fusion.out_dim) == (X, Z, O)


def test_only_attention_differs_on_map() -> None:
    """A map is fused by attention over its cells, and cell by cell by every other fusion."""
    assert type(build_fusion(AttentionConfig(), X, Z, O)) is AttentionMask
    assert type(build_map_fusion(AttentionConfig(heads=2), X, Z, O)) is CrossAttention
    others = {name: each for name, each in VECTOR_CONFIGS.items() if "attention" not in name}
    for config in others.values():
        assert type(build_map_fusion(config, X, Z, O)) is type(build_fusion(config, X, Z, O))
