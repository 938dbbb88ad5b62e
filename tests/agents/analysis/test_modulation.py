"""The factors of a fusion are those that its output is made of, and recording leaves no trace."""

import numpy as np
import pytest
import torch
from torch import nn

from mirl.agents.analysis.modulation import MAX_VALUES, distribution, recorded_modulation
from mirl.configs.networks import (
    AttentionConfig,
    ConcatConfig,
    FilmConfig,
    GateConfig,
    MetricConfig,
    ProductConfig,
)
from mirl.policies.fusions import Fusion, build_fusion, build_map_fusion

ROWS, CELLS, X, Z, OUT = 5, 6, 4, 3, 2


def perturbed(fusion: Fusion) -> Fusion:
    """Return a fusion with random weights, so that the context acts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in fusion.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator))
    return fusion


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(ROWS, CELLS, X, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(ROWS, Z, generator=torch.Generator().manual_seed(2))


def test_film_is_scale_and_shift(x: torch.Tensor, z: torch.Tensor) -> None:
    film = perturbed(build_fusion(FilmConfig(), X, Z, OUT))
    factors = film.modulation(x, z, None)
    expected = factors["scale"] * film.main(x) + factors["shift"]
    torch.testing.assert_close(film(x, z), expected)


def test_gate_scales_main_map(x: torch.Tensor, z: torch.Tensor) -> None:
    gate = perturbed(build_fusion(GateConfig(), X, Z, OUT))
    factors = gate.modulation(x, z, None)
    torch.testing.assert_close(gate(x, z), factors["gate"] * gate.main(x))


def test_mask_scales_features(x: torch.Tensor, z: torch.Tensor) -> None:
    fusion = perturbed(build_fusion(AttentionConfig(), X, Z, OUT))
    mask = fusion.modulation(x, z, None)["mask"]
    torch.testing.assert_close(fusion(x, z), fusion.main(mask * x))


def test_attention_weights_give_output(x: torch.Tensor, z: torch.Tensor) -> None:
    fusion = perturbed(build_map_fusion(AttentionConfig(heads=2), X, Z, OUT))
    values: list[torch.Tensor] = []
    hook = fusion.key_value.register_forward_hook(
        lambda _module, _inputs, output: values.append(output.chunk(2, dim=-1)[1])
    )
    weights = fusion.modulation(x, z, None)["attention"]
    hook.remove()
    assert weights.shape == (ROWS, 2, CELLS)
    # (B, heads, P) x (B, P, heads, d) -> (B, heads, d)
    split = values[0].unflatten(-1, (2, -1))
    attended = torch.einsum("bhp,bphd->bhd", weights, split).flatten(1).unsqueeze(1)
    torch.testing.assert_close(fusion(x, z), fusion.main(x) + fusion.project(attended))


@pytest.mark.parametrize("config", [MetricConfig(), ProductConfig()], ids=lambda each: each.kind)
def test_similarities_give_output(
    config: MetricConfig | ProductConfig, x: torch.Tensor, z: torch.Tensor
) -> None:
    fusion = perturbed(build_fusion(config, X, Z, OUT))
    *parts, last = fusion.modulation(x, fusion.choose_context(z, None), None).values()
    if config.kind == "product":
        main = fusion.read_main(x)
        read = [last, *parts]
    else:
        main = fusion.main(x)
        read = [*parts, last]
    torch.testing.assert_close(fusion(x, z), main + fusion.output(torch.cat(read, dim=-1)))


def test_recording_leaves_no_trace(x: torch.Tensor, z: torch.Tensor) -> None:
    layers = nn.ModuleDict(
        {
            "film": perturbed(build_fusion(FilmConfig(), X, Z, OUT)),
            "product": perturbed(build_fusion(ProductConfig(), X, Z, OUT)),
            "concat": perturbed(build_fusion(ConcatConfig(), X, Z, OUT)),
        }
    )
    before = {name: dict(vars(layer)) for name, layer in layers.items()}
    alone = [layer(x, z) for layer in layers.values()]
    with recorded_modulation(layers) as factors:
        recorded = [layer(x, z) for layer in layers.values()]
    assert {name: dict(vars(layer)) for name, layer in layers.items()} == before
    for one, other in zip(alone, recorded, strict=True):
        assert torch.equal(one, other)
    assert set(factors) == {
        "film: scale",
        "film: shift",
        "product: similarity of attribute 1",
        "product: similarity of attribute 2",
        "product: similarity",
    }
    film = layers["film"]
    scales = film.modulation(x, z, None)["scale"].detach().numpy()
    np.testing.assert_array_equal(factors["film: scale"], scales.flatten())


def test_failure_restores_methods(x: torch.Tensor) -> None:
    film = build_fusion(FilmConfig(), X, Z, OUT)
    with pytest.raises(ValueError, match="expects features"), recorded_modulation(film):
        film(x, torch.zeros(ROWS, Z + 1))
    assert "interact" not in vars(film)


def test_many_values_are_thinned(z: torch.Tensor) -> None:
    film = build_fusion(FilmConfig(), X, Z, OUT)
    rows = z.repeat(MAX_VALUES, 1)
    with recorded_modulation(film) as factors:
        film(torch.zeros(len(rows), X), rows)
    for values in factors.values():
        assert MAX_VALUES / 2 < len(values) <= MAX_VALUES


def test_distribution_has_quantiles() -> None:
    values = np.arange(101, dtype=np.float32)
    found = distribution(values)
    assert (found.q05, found.q50, found.q95) == (5, 50, 95)
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.std())
