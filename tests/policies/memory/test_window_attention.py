"""Windowed attention against its equation, timestep by timestep."""

import pytest
from reference_cores import (
    assert_matches_single_steps,
    parametrize_sequences,
)
from torch import Tensor


@parametrize_sequences("attention")
def test_sequence_matches_single_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: Tensor, chunk: int
) -> None:
    """Many timesteps at once equal one after the other, gradients included."""
    assert_matches_single_steps(monkeypatch, name, starts, chunk)
