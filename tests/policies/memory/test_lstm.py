"""LSTM and GRU against torch's cells."""

import pytest
from reference_cores import (
    assert_forget_gate_is_open,
    assert_matches_single_steps,
    parametrize_sequences,
)
from torch import Tensor


@parametrize_sequences("lstm", "gru")
def test_sequence_matches_single_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: Tensor, chunk: int
) -> None:
    """Many timesteps at once equal one after the other, gradients included."""
    assert_matches_single_steps(monkeypatch, name, starts, chunk)


@pytest.mark.parametrize("name", ["lstm"])
def test_initial_forget_gate_is_open(name: str) -> None:
    """At the start an LSTM keeps most of its cell state."""
    assert_forget_gate_is_open(name)
