"""Fast weights against the delta rule, timestep by timestep."""

import pytest
import torch
from reference_cores import (
    MEMBERS,
    N,
    T,
    assert_matches_single_steps,
    some_episodes,
)
from torch import Tensor


@pytest.mark.parametrize("name", [name for name in MEMBERS if name.startswith("fast_weights")])
@pytest.mark.parametrize(
    "starts", [some_episodes(), torch.zeros(T, N, dtype=torch.bool)], ids=["episodes", "unbroken"]
)
@pytest.mark.parametrize("chunk", [64, 2])
def test_sequence_matches_single_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: Tensor, chunk: int
) -> None:
    """Many timesteps at once equal one after the other, gradients included."""
    assert_matches_single_steps(monkeypatch, name, starts, chunk)
