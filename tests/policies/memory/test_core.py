"""The interface that all recurrent cores share."""

from typing import Any, get_args

import pytest
import torch
from reference_cores import (
    MEMBERS,
    SIZE,
    N,
    T,
    X,
    Z,
    build_random_core,
    played_state,
    some_episodes,
)

from mirl.configs.networks import (
    LstmConfig,
    MiLstmConfig,
    RecurrentConfig,
)
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.memory.build import build_core
from mirl.policies.memory.mi_lstm import MiLstm

close = torch.testing.assert_close


@pytest.mark.parametrize("name", MEMBERS)
def test_distinct_contexts_may_be_grouped(name: str) -> None:
    """Distinct contexts with an index equal a context per timestep."""
    core = build_random_core(MEMBERS[name])
    each, index = torch.randn(2, Z, dtype=torch.float64), torch.randint(2, (T * N,))
    x, starts, state = (
        torch.randn(T, N, X, dtype=torch.float64),
        some_episodes(),
        played_state(core, MEMBERS[name]),
    )
    close(
        core(x, state, starts, each, ContextGroups(index, 2)), core(x, state, starts, each[index])
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_episode_start_resets_the_state(name: str) -> None:
    """Nothing of an earlier episode reaches the output or the state."""
    core = build_random_core(MEMBERS[name])
    x, z = torch.randn(T, N, X, dtype=torch.float64), torch.randn(T, N, Z, dtype=torch.float64)
    starts = torch.zeros(T, N, dtype=torch.bool)
    starts[4] = True
    nothing = torch.zeros(N, core.state_dim, dtype=torch.float64)
    never = torch.full_like(nothing, torch.nan)
    close(
        core(x[4:], never, starts[4:], z[4:].flatten(0, 1)),
        core(x[4:], nothing, starts[4:], z[4:].flatten(0, 1)),
    )
    y, last = core(x, played_state(core, MEMBERS[name]), starts, z.flatten(0, 1))
    alone = core(x[4:], nothing, starts[4:], z[4:].flatten(0, 1))
    close((y[4:], last), alone)


@pytest.mark.parametrize("name", MEMBERS)
def test_initial_output_ignores_the_context(
    name: str,
) -> None:
    """At the start the output does not depend on the context, but its gradient is not zero."""
    config = MEMBERS[name]
    core = build_core(config, X, Z)
    x, state, starts = torch.randn(T, N, X), torch.zeros(N, core.state_dim), some_episodes()
    z, other = torch.randn(2, T * N, Z).unbind()
    y, _ = core(x, state, starts, z)
    close(core(x, state, starts, other)[0], y)
    if isinstance(core, MiLstm) and core.to_scale is not None:
        y.sum().backward()
        assert core.to_scale.weight.grad is not None
        assert core.to_scale.weight.grad.abs().min() > 0


@pytest.mark.parametrize("kind", get_args(RecurrentConfig))
def test_skip_connection_starts_as_identity(kind: Any) -> None:
    """With a skip connection a core starts as the identity and has a gradient."""
    core = build_core(kind(skip_connection=True), X, Z)
    x, state, z = torch.randn(T, N, X), torch.zeros(N, core.state_dim), torch.randn(T * N, Z)
    y, _ = core(x, state, some_episodes(), z)
    close(y, x)
    y.square().sum().backward()
    assert core.add is not None
    assert core.add.weight.grad is not None
    assert core.add.weight.grad.abs().min() > 0


@pytest.mark.parametrize("name", MEMBERS)
def test_autocast_changes_nothing(name: str) -> None:
    """Under autocast a core computes in float32."""
    core = build_random_core(MEMBERS[name]).float()
    x, state, z = (
        torch.randn(T, N, X).bfloat16(),
        torch.zeros(N, core.state_dim),
        torch.randn(T * N, Z).bfloat16(),
    )
    expected = core(x.float(), state, some_episodes(), z.float())
    with torch.autocast("cpu", torch.bfloat16):
        close(core(x, state, some_episodes(), z), expected)


def test_wrong_sizes_raise() -> None:
    """Sizes that do not fit are an error that states the expected ones."""
    core = build_core(LstmConfig(size=SIZE), X, Z)
    starts = torch.zeros(T, N, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"Lstm expects features \(9, 4, 5\) and state \(4, 16\), got"
    ):
        core(torch.randn(T, N, X), torch.zeros(N, SIZE), starts)
    with pytest.raises(
        ValueError, match=r"expected a context for each of \(9, 4\) timesteps, got 4"
    ):
        core(torch.randn(T, N, X), torch.zeros(N, 2 * SIZE), starts, torch.randn(4, Z))
    scaled = build_core(MiLstmConfig(size=SIZE), X, Z)
    with pytest.raises(ValueError, match="the context scales the gates"):
        scaled(torch.randn(T, N, X), torch.zeros(N, 2 * SIZE), starts)
