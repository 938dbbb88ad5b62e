"""Decision Adapter: published sizes, an independent hypernetwork, forms and starts."""

from typing import Any

import numpy as np
import pytest
import torch
from fusion_cases import (
    Z,
    assert_bfloat16_rounds,
    assert_equals_finite_differences,
    assert_forms_are_equal,
    normal,
    randomize,
)
from fusion_loops import by_loop
from torch.nn import functional as F

from mirl.configs.networks import AdapterConfig
from mirl.policies import count_parameters
from mirl.policies.features import Context
from mirl.policies.fusions import Adapter, build_fusion
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.specialize import specialize_fusion

close = torch.testing.assert_close
SMALL = {"bottleneck": 3, "hidden": (4, 5), "chunk_size": 7, "chunk_embedding": 2}


def adapter(dim: int = 4, out_dim: int | None = None, **options: Any) -> Adapter:
    """Return a small adapter in float64 with random weights; O = X by default."""
    config = AdapterConfig(**{**SMALL, **options})
    fusion = randomize(build_fusion(config, dim, Z, out_dim or dim).double())
    assert isinstance(fusion, Adapter)
    return fusion


def test_sizes_are_the_published_ones() -> None:
    """With 256 features and two numbers of context the sizes are those of the paper."""
    fusion = build_fusion(AdapterConfig(), 256, 2, 256)
    assert isinstance(fusion, Adapter)
    assert sum(fusion.sizes) == 16_672
    assert len(fusion.generator.chunk_embeddings) == 46
    assert count_parameters(fusion) == 16_241
    assert fusion.main is None


@pytest.mark.parametrize("hidden", [(), (4,), (4, 5)], ids=str)
def test_residual_block_equals_loop(hidden: tuple[int, ...]) -> None:
    """The block is added to the features themselves where O = X."""
    fusion, x, z = adapter(hidden=hidden), normal(3, 2, 4), normal(3, Z, seed=1)
    assert fusion.main is None
    y = fusion(x, z)
    for row, position in np.ndindex(3, 2):
        expected = by_loop(fusion, x[row, position].numpy(), z[row].numpy())
        close(y[row, position], torch.from_numpy(expected))


def test_last_layer_has_its_gain() -> None:
    """A last layer has weights after the block even where O = X."""
    config = AdapterConfig(**SMALL)
    last = build_fusion(config, 4, Z, 4, gain=0.01)
    assert isinstance(last, Adapter)
    assert last.main is not None
    close(last.main.weight @ last.main.weight.T, 1e-4 * torch.eye(4), rtol=1e-5, atol=1e-8)


def test_generator_equals_hypnettorch() -> None:
    """The weights equal those of hypnettorch's ``ChunkedHMLP`` with the same parameters.

    ``make oracles`` installs it.
    """
    hnets = pytest.importorskip("hypnettorch.hnets.chunked_mlp_hnet")
    fusion = adapter()
    generator = fusion.generator
    # rows are outputs, as in nn.Linear
    shapes = [[3, 4], [3], [4, 3], [4]]
    oracle = hnets.ChunkedHMLP(
        shapes,
        chunk_size=7,
        chunk_emb_size=2,
        cond_in_size=Z,
        layers=(4, 5),
        no_cond_weights=True,
        num_cond_embs=0,
        verbose=False,
    ).double()
    first = torch.cat([generator.from_chunk.weight, generator.from_context.weight / Z])
    weights = [first.T, generator.from_chunk.bias]
    for layer, inputs in zip(generator.layers, (4, 5), strict=True):
        weights += [layer.weight.T / inputs, layer.bias]
    expected = {tuple(value.shape): value for value in [*weights, generator.chunk_embeddings]}
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(expected[tuple(parameter.shape)])
    z = normal(3, Z, seed=1)
    down, down_bias, up, up_bias = fusion.generate(z)
    for row in range(3):
        theirs = oracle.forward(cond_input=z[row : row + 1])
        for ours, other in zip(
            (down[row].T, down_bias[row], up[row].T, up_bias[row]), theirs, strict=True
        ):
            close(ours, other)


@pytest.mark.parametrize("out_dim", [4, 2])
@pytest.mark.parametrize("positions", [1, 3])
def test_all_forms_are_equal(positions: int, out_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grouped form and the form per row give the same numbers."""
    fusion = adapter(out_dim=out_dim)
    x = normal(7, positions, 4)
    assert_forms_are_equal(fusion, x, lambda z: fusion(x, z), monkeypatch)


@pytest.mark.parametrize("grouped", [True, False])
def test_gradients_of_block_equal_finite_differences(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_: grouped)
    fusion = adapter()
    assert_equals_finite_differences(
        fusion, normal(3, 2, 4), normal(2, Z, seed=1), torch.tensor([1, 0, 1])
    )


def test_blind_start_learns_from_context() -> None:
    """A blind block starts equal for every context, and its weights of the context learn."""
    fusion = build_fusion(AdapterConfig(), 64, Z, 64).double()
    assert isinstance(fusion, Adapter)
    x, z = normal(8, 64), normal(8, Z, seed=1)
    close(fusion(x, z), fusion(x, normal(8, Z, seed=2)), rtol=0, atol=0)
    block = fusion(x, z) - x
    assert block.norm() > 0.01 * x.norm()
    fusion(x, z).square().sum().backward()
    gradient = fusion.generator.from_context.weight.grad
    assert gradient is not None
    assert gradient.any()


def test_generated_start_differs_by_context() -> None:
    """A generated block starts different for every context, with weights like ``nn.Linear``'s."""
    fusion = build_fusion(AdapterConfig(start="generated"), 64, 2, 64).double()
    x = normal(8, 64)
    assert (fusion(x, normal(8, 2, seed=1)) - fusion(x, normal(8, 2, seed=2))).abs().max() > 1e-3
    for name, scale, bound in (
        ("from_context.weight", 1 / 2, 10**-0.5),
        ("from_chunk.weight", 1, 10**-0.5),
        ("layers.0.bias", 1, 37**-0.5),
    ):
        largest = scale * fusion.get_parameter(f"generator.{name}").abs().max()
        assert 0.7 * bound < largest <= bound, name


@pytest.mark.parametrize("out_dim", [4, 2])
def test_adapter_for_one_context(out_dim: int) -> None:
    """For one context plain layers are left."""
    fusion, x, z = adapter(out_dim=out_dim), normal(5, 3, 4), normal(1, Z, seed=1)
    folded = specialize_fusion(fusion, Context(z[:1], None))
    close(folded(x), fusion(x, z.expand(5, Z)), rtol=1e-9, atol=1e-9)
    down, down_bias, up, up_bias = (weight[0] for weight in fusion.generate(z))
    expected = x + F.relu(F.relu(x @ down + down_bias) @ up + up_bias)
    if fusion.main is not None:
        expected = fusion.main(expected)
    close(folded(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grouped", [True, False])
def test_adapter_in_bfloat16(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast changes the output by rounding errors alone."""
    monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_: grouped)
    assert_bfloat16_rounds(adapter())
