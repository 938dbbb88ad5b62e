"""Cores that compute a chunk of timesteps at once."""

import pytest
import torch
from reference_cores import (
    MEMBERS,
    N,
    T,
    X,
    build_random_core,
    played_state,
    some_episodes,
)

from mirl.policies.memory.chunks import ChunkedCore

close = torch.testing.assert_close


@pytest.mark.parametrize("name", ["fast_weights", "attention"])
def test_chunk_size_does_not_matter(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    core = build_random_core(MEMBERS[name])
    assert isinstance(core, ChunkedCore)
    x = torch.randn(T, N, X, dtype=torch.float64)
    state = played_state(core, MEMBERS[name])
    whole = core(x, state, some_episodes())
    monkeypatch.setattr(ChunkedCore, "CHUNK", 4)
    close(core(x, state, some_episodes()), whole)
