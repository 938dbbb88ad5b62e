"""Recurrent cores from their configs."""

import pytest
import torch
from reference_cores import (
    MEMBERS,
    SIZE,
    N,
    T,
    X,
    Z,
    some_episodes,
)

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    LstmConfig,
)
from mirl.policies.memory.build import build_core


def test_single_feature_is_not_normalized() -> None:
    """A single feature cannot be normalized: it would always be zero."""
    with pytest.raises(
        ConfigError, match=r"needs two features or more, got 1; use memory.normalize=false"
    ):
        build_core(LstmConfig(size=SIZE), 1, 0)
    build_core(LstmConfig(size=SIZE, normalize=False), 1, 0)


@pytest.mark.parametrize("name", MEMBERS)
def test_core_has_the_configured_size(name: str) -> None:
    core = build_core(MEMBERS[name], X, Z)
    expected = X if MEMBERS[name].skip_connection else SIZE
    assert core.out_dim == expected
    x = torch.randn(T, N, X)
    y, state = core(x, torch.zeros(N, core.state_dim), some_episodes(), torch.randn(T * N, Z))
    assert y.shape == (T, N, expected)
    assert state.shape == (N, core.state_dim)
