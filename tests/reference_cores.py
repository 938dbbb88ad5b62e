"""Recurrent cores computed one timestep after the other, in float64, as reference for ours."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirl.configs.networks import (
    AttentionMemoryConfig,
    FastWeightsConfig,
    GruConfig,
    LstmConfig,
    MiLstmConfig,
    RecurrentConfig,
)
from mirl.policies.memory.build import build_core
from mirl.policies.memory.chunks import ChunkedCore
from mirl.policies.memory.core import Core
from mirl.policies.memory.mi_lstm import MiLstm

close = torch.testing.assert_close

X, Z, SIZE, T, N = 5, 3, 8, 9, 4
"""Sizes of features, context and core; timesteps and sequences."""
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x (X,), state, z (Z,)) -> (y, state), for one timestep of one sequence."""

MEMBERS: dict[str, RecurrentConfig] = {
    "lstm": LstmConfig(size=SIZE),
    "gru": GruConfig(size=SIZE),
    "mi_lstm": MiLstmConfig(size=SIZE, rank=3),
    "mi_lstm, unscaled": MiLstmConfig(size=SIZE, rank=3, scaled_steps=False),
    "mi_lstm, full": MiLstmConfig(size=SIZE, form="full"),
    "mi_lstm, diagonal": MiLstmConfig(size=SIZE, form="diagonal"),
    "mi_lstm, two gates": MiLstmConfig(size=SIZE, rank=3, gates=("forget", "output")),
    "mi_lstm, no context": MiLstmConfig(size=SIZE, rank=3, scaled_by_context=False),
    "fast_weights": FastWeightsConfig(size=SIZE, heads=2),
    "attention": AttentionMemoryConfig(size=SIZE, heads=2, window=4),
    "attention, sinusoidal": AttentionMemoryConfig(
        size=SIZE, heads=2, window=4, positions="sinusoidal"
    ),
    "attention, heads of one feature": AttentionMemoryConfig(size=SIZE, heads=SIZE, window=4),
    "attention, present alone": AttentionMemoryConfig(size=SIZE, heads=2, window=1),
    "attention, long": AttentionMemoryConfig(size=SIZE, heads=2, window=32),
    "lstm, features as they are": LstmConfig(size=SIZE, normalize=False),
    "attention, features as they are": AttentionMemoryConfig(
        size=SIZE, heads=2, window=4, normalize=False
    ),
    "gru, skip connection": GruConfig(size=SIZE, skip_connection=True),
    "fast_weights, skip connection": FastWeightsConfig(size=SIZE, heads=2, skip_connection=True),
}
"""Every kind of core, with different options."""


def build_random_core(config: RecurrentConfig) -> Core:
    """Build a core in float64 whose weights are all random."""
    torch.manual_seed(0)
    core = build_core(config, X, Z).double()
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.5)
    return core


def some_episodes() -> Tensor:
    """Return (T, N) episode starts.

    One sequence continues an episode; one starts one; one starts two more inside; one starts one in
    its last timestep.
    """
    starts = torch.zeros(T, N, dtype=torch.bool)
    starts[0, 1] = starts[0, 2] = starts[3, 2] = starts[4, 2] = starts[T - 1, 3] = True
    return starts


def lstm_step(core: Any, config: Any) -> Step:
    """Return one timestep of ``torch.nn.LSTMCell``."""
    cell = nn.LSTMCell(X, SIZE).double()
    own = {name.removesuffix("_l0"): weight for name, weight in core.network.named_parameters()}

    def step(x: Tensor, state: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        parts = tuple(part[None] for part in state.chunk(2))
        h, c = torch.func.functional_call(cell, own, (x[None], parts))
        return h[0], torch.cat([h[0], c[0]])

    return step


def gru_step(core: Any, config: Any) -> Step:
    """Return one timestep of ``torch.nn.GRUCell``."""
    cell = nn.GRUCell(X, SIZE).double()
    own = {name.removesuffix("_l0"): weight for name, weight in core.network.named_parameters()}

    def step(x: Tensor, state: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        [h] = torch.func.functional_call(cell, own, (x[None], state[None]))
        return h, h

    return step


def mi_lstm_step(core: MiLstm, config: MiLstmConfig) -> Step:
    """Return one timestep by the three-dimensional form of the interaction, gate after gate."""
    names = ("input", "forget", "cell", "output")
    v, u, b = (
        weight.unflatten(-1, (4, SIZE))
        for weight in (core.main.weight, core.recur.weight, core.bias)
    )
    multiplied = core.weight.unflatten(-1, (len(config.gates), SIZE))
    in_order = [name for name in names if name in config.gates]

    def tensor_of(gate: int) -> Tensor:
        """𝕎 of a gate, (X, H, H)."""
        if names[gate] not in in_order:
            return torch.zeros(X, SIZE, SIZE, dtype=torch.float64)
        weight = multiplied[..., in_order.index(names[gate]), :]
        match config.form:
            case "full":
                return weight / SIZE if config.scaled_steps else weight
            case "low_rank":
                if config.scaled_steps:
                    weight = weight / (config.rank * SIZE)
                a, b = core.factor_features.weight, core.factor_state.weight
                return torch.einsum("xr,hr,ro->xho", a, b, weight)
            case "diagonal":
                return torch.einsum("o,xo,ho->xho", weight, v[:, gate], u[:, gate])

    def step(x: Tensor, state: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        h, c = state.chunk(2)
        scale = torch.ones(4, SIZE, dtype=torch.float64)
        if config.scaled_by_context:
            size = len(z) if config.scaled_steps else 1
            scale = scale + (z @ core.to_scale.weight / size).unflatten(0, (4, SIZE))
        i, f, g, o = (
            scale[gate]
            * (x @ v[:, gate] + h @ u[:, gate] + torch.einsum("x,xho,h->o", x, tensor_of(gate), h))
            + b[gate]
            for gate in range(4)
        )
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, torch.cat([h, c])

    return step


def fast_weights_step(core: Any, config: FastWeightsConfig) -> Step:
    """Return one timestep of the delta rule, head after head."""

    def step(x: Tensor, state: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        qkv = x @ core.query_key_value.weight + core.query_key_value.bias
        strength = torch.sigmoid(x @ core.write_strength.weight + core.write_strength.bias)
        dim = SIZE // config.heads
        reads, memories = [], []
        for head, memory in enumerate(state.unflatten(0, (config.heads, dim, dim))):
            q, k, v = (part[head * dim : (head + 1) * dim] for part in qkv.split(SIZE))
            q, k = q / q.norm(), k / k.norm()
            after = memory.T + strength[head] * torch.outer(v - memory.T @ k, k)
            reads.append(after @ q)
            memories.append(after.T.flatten())
        y = x @ core.main.weight + core.main.bias + torch.cat(reads) @ core.project.weight
        return y, torch.cat(memories)

    return step


def encoding(position: float, dim: int) -> Tensor:
    """Return the sinusoidal encoding of a position."""
    angles = [position / 10_000 ** (2 * (i // 2) / dim) for i in range(dim)]
    return torch.tensor(
        [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)], dtype=torch.float64
    )


def attention_step(core: Any, config: AttentionMemoryConfig) -> Step:
    """Return one timestep of attention, head after head and pair after pair."""
    dim, past = SIZE // config.heads, config.window - 1

    def step(x: Tensor, state: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        count = int(state[-1])
        known = list(state[:-1].unflatten(0, (past, X)))[max(past - count, 0) :] if past else []
        seen = [*known, x]
        numbers = [count - len(known) + i for i in range(len(seen))]
        relative = config.positions == "relative"
        located = (
            seen if relative else [s + encoding(n, X) for s, n in zip(seen, numbers, strict=True)]
        )
        query = located[-1] @ core.query.weight + core.query.bias
        both = [s @ core.key_value.weight + core.key_value.bias for s in located]
        read = []
        for head in range(config.heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = []
            for number, kv in zip(numbers, both, strict=True):
                score = query[part] @ kv[:SIZE][part]
                if relative:
                    r = (encoding(numbers[-1] - number, SIZE) @ core.distance.weight)[part]
                    score = (query[part] + core.content_bias[head, 0]) @ kv[:SIZE][part]
                    score = score + (query[part] + core.distance_bias[head, 0]) @ r
                scores.append(score / math.sqrt(dim))
            weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            read.append(sum(w * kv[SIZE:][part] for w, kv in zip(weights, both, strict=True)))
        y = x @ core.main.weight + core.main.bias + torch.cat(read) @ core.project.weight
        kept = [torch.zeros(X, dtype=torch.float64)] * past + seen
        return y, torch.cat(
            [*kept[len(kept) - past :], torch.tensor([count + 1.0], dtype=torch.float64)]
        )

    return step


STEPS: dict[str, Callable[[Any, Any], Step]] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "mi_lstm": mi_lstm_step,
    "fast_weights": fast_weights_step,
    "attention": attention_step,
}


def as_input(features: Tensor, config: RecurrentConfig) -> Tensor:
    """Return the features as a core takes them: detached and normalized, if it does that."""
    read = features.detach() if config.skip_connection else features
    centered = read - read.mean(-1, keepdim=True)
    return (
        centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        if config.normalize
        else read
    )


def run_single_steps(
    step: Step, features: Tensor, state: Tensor, starts: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one timestep after the other, sequence after sequence."""
    outputs, states = [], []
    for n in range(features.shape[1]):
        of_sequence, row = [], state[n]
        for t in range(features.shape[0]):
            row = torch.zeros_like(row) if starts[t, n] else row
            y, row = step(features[t, n], row, context[t, n])
            of_sequence.append(y)
        outputs.append(torch.stack(of_sequence))
        states.append(row)
    return torch.stack(outputs, dim=1), torch.stack(states)


def as_output(features: Tensor, y: Tensor, core: Core) -> Tensor:
    """Return what a core makes of the output of its memory."""
    return y if core.add is None else features + y @ core.add.weight


def played_state(core: Core, config: RecurrentConfig) -> Tensor:
    """Return the hidden state after three timesteps."""
    before = torch.randn(3, N, X, dtype=torch.float64)
    context = torch.randn(3 * N, Z, dtype=torch.float64)
    empty = torch.zeros(N, core.state_dim, dtype=torch.float64)
    with torch.no_grad():
        return core(before, empty, torch.zeros(3, N, dtype=torch.bool), context)[1]


def parametrize_sequences(*kinds: str) -> Callable[[Any], Any]:
    """Parametrize a test over cores of the given kinds, episode starts and sizes of a chunk."""
    names = [name for name in MEMBERS if name.startswith(kinds)]
    starts = {"episodes": some_episodes(), "unbroken": torch.zeros(T, N, dtype=torch.bool)}

    def decorate(test: Any) -> Any:
        test = pytest.mark.parametrize("chunk", [64, 2])(test)
        test = pytest.mark.parametrize("starts", starts.values(), ids=starts.keys())(test)
        return pytest.mark.parametrize("name", names)(test)

    return decorate


def assert_matches_single_steps(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: Tensor, chunk: int
) -> None:
    """Check outputs, states and gradients of a core against single timesteps."""
    monkeypatch.setattr(ChunkedCore, "CHUNK", chunk)
    config = MEMBERS[name]
    core = build_random_core(config)
    step = STEPS[config.kind](core, config)
    inputs = (
        torch.randn(T, N, X, dtype=torch.float64, requires_grad=True),
        played_state(core, config).requires_grad_(),
        torch.randn(T, N, Z, dtype=torch.float64, requires_grad=True),
    )
    weights = dict(core.named_parameters())
    results = []

    def run_reference(x: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        remembered, after = run_single_steps(step, as_input(x, config), s, starts, z)
        return as_output(x, remembered, core), after

    for run in (lambda x, s, z: core(x, s, starts, z.flatten(0, 1)), run_reference):
        y, state = run(*inputs)
        aim = torch.Generator().manual_seed(1)
        loss = sum(
            (out * torch.randn(out.shape, generator=aim, dtype=torch.float64)).sum()
            for out in (y, state)
        )
        gradients = torch.autograd.grad(loss, [*inputs, *weights.values()], allow_unused=True)
        results.append((y, state, dict(zip(["x", "state", "z", *weights], gradients, strict=True))))
    ours, theirs = results
    zeros = {
        key: torch.zeros_like(value)
        for key, value in {**weights, "x": inputs[0], "state": inputs[1], "z": inputs[2]}.items()
    }
    close(ours[:2], theirs[:2])
    for key, zero in zeros.items():
        close(
            *(zero if result[2][key] is None else result[2][key] for result in results),
            msg=lambda m, k=key: f"{k}: {m}",
        )


def assert_forget_gate_is_open(name: str) -> None:
    """Check that an LSTM keeps most of its cell state at the start."""
    core = build_core(MEMBERS[name], X, Z)
    for weight in core.parameters():
        if weight.dim() > 1:  # the biases alone
            nn.init.zeros_(weight)
    state = torch.ones(N, core.state_dim)
    _, after = core(
        torch.zeros(1, N, X), state, torch.zeros(1, N, dtype=torch.bool), torch.zeros(N, Z)
    )
    close(after[:, -SIZE:], torch.full((N, SIZE), 1 / (1 + math.exp(-1))))
