"""LSTM and GRU against torch's cells."""

import math

import pytest
import torch
from reference_cores import (
    MEMBERS,
    SIZE,
    N,
    T,
    X,
    Z,
    assert_matches_single_steps,
    some_episodes,
)
from torch import Tensor, nn

from mirl.policies.memory.build import build_core

close = torch.testing.assert_close


@pytest.mark.parametrize("name", [name for name in MEMBERS if name.startswith(("lstm", "gru"))])
@pytest.mark.parametrize(
    "starts", [some_episodes(), torch.zeros(T, N, dtype=torch.bool)], ids=["episodes", "unbroken"]
)
@pytest.mark.parametrize("chunk", [64, 2])
def test_sequence_matches_single_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: Tensor, chunk: int
) -> None:
    """Many timesteps at once equal one after the other, gradients included."""
    assert_matches_single_steps(monkeypatch, name, starts, chunk)


@pytest.mark.parametrize("name", ["lstm"])
def test_initial_forget_gate_is_open(name: str) -> None:
    """At the start an LSTM keeps most of its cell state."""
    core = build_core(MEMBERS[name], X, Z)
    for weight in core.parameters():
        if weight.dim() > 1:  # the biases alone
            nn.init.zeros_(weight)
    state = torch.ones(N, core.state_dim)
    _, after = core(
        torch.zeros(1, N, X), state, torch.zeros(1, N, dtype=torch.bool), torch.zeros(N, Z)
    )
    close(after[:, -SIZE:], torch.full((N, SIZE), 1 / (1 + math.exp(-1))))
