"""LSTM with a multiplicative interaction, against its equation and against torch's LSTM."""

from typing import Any

import pytest
import torch
from reference_cores import (
    SIZE,
    N,
    T,
    X,
    Z,
    assert_forget_gate_is_open,
    assert_matches_single_steps,
    parametrize_sequences,
)
from torch import Tensor, nn

from mirl.configs.networks import (
    MiLstmConfig,
)
from mirl.policies.memory.build import build_core
from mirl.policies.memory.mi_lstm import MiLstm

close = torch.testing.assert_close


@parametrize_sequences("mi_lstm")
def test_sequence_matches_single_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: Tensor, chunk: int
) -> None:
    """Many timesteps at once equal one after the other, gradients included."""
    assert_matches_single_steps(monkeypatch, name, starts, chunk)


@pytest.mark.parametrize("name", ["mi_lstm"])
def test_initial_forget_gate_is_open(name: str) -> None:
    """At the start an LSTM keeps most of its cell state."""
    assert_forget_gate_is_open(name)


@pytest.mark.parametrize("form", ["full", "low_rank", "diagonal"])
def test_zero_interaction_is_lstm(form: Any) -> None:
    """Without its multiplicative weights it is torch's LSTM."""
    core = build_core(MiLstmConfig(size=SIZE, form=form, rank=3, normalize=False), X, Z)
    assert isinstance(core, MiLstm)
    plain = nn.LSTM(X, SIZE)
    with torch.no_grad():
        plain.weight_ih_l0.copy_(core.main.weight.T)
        plain.weight_hh_l0.copy_(core.recur.weight.T)
        plain.bias_ih_l0.copy_(core.bias)
        plain.bias_hh_l0.zero_()
    x, state = torch.randn(T, N, X), torch.randn(N, 2 * SIZE)
    y, last = core(x, state, torch.zeros(T, N, dtype=torch.bool), torch.randn(T * N, Z))
    expected, (h, c) = plain(x, tuple(part[None].contiguous() for part in state.chunk(2, dim=1)))
    close((y, last), (expected, torch.cat([h[0], c[0]], dim=1)))
