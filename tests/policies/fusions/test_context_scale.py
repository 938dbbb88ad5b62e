"""The scale of the context: the initial function ignores it, the size of a step does not."""

import copy

import numpy as np
import pytest
import torch
from fusion_cases import VECTOR_CONFIGS, O, X, Z, normal, randomize
from fusion_loops import by_loop
from torch import Tensor
from torch.nn import functional as F

from mirl.configs.networks import BilinearConfig, FusionConfig, HyperConfig, ScaledFusionConfig
from mirl.policies import Fusion, build_fusion
from mirl.policies.fusions import Affine, Bilinear, Film

close = torch.testing.assert_close

CONFIGS: dict[str, ScaledFusionConfig] = {
    member: config
    for member, config in VECTOR_CONFIGS.items()
    if isinstance(config, ScaledFusionConfig)
}
"""Every fusion with the option; none of them has its default sizes."""
SCALES = (None, 0.3, 1.0)


def with_scale(member: str, context_scale: float | None) -> Fusion:
    """Return a fusion in float64, initialized with the same seed for every scale."""
    config = CONFIGS[member].model_copy(update={"context_scale": context_scale})
    torch.manual_seed(0)
    return build_fusion(config, X, Z, O).double()  # type: ignore[arg-type]


def fill_zeros(fusion: Fusion) -> None:
    """Give the weights that start at zero normal values w, and w/c where they are scaled by c."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if not parameter.any():
                shape = parameter.shape
                parameter.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))
                divide_by_scale(fusion, parameter)


def divide_by_scale(fusion: Fusion, parameter: Tensor) -> None:
    """Divide a weight by the scale c of the layer that has it, in place."""
    for layer in fusion.modules():
        if isinstance(layer, Affine) and layer.weight is parameter:
            parameter /= layer.scale
        elif isinstance(layer, Bilinear) and layer.weight is parameter:
            parameter /= layer.context_scale
        elif isinstance(layer, Film) and layer.to_scale_shift.weight is parameter:
            # γ alone, not β
            parameter[:, : layer.out_dim] /= layer.context_scale


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("member", CONFIGS)
def test_initial_function_ignores_the_scale(member: str, positions: int) -> None:
    """The initial weights times c are the same, those that start at zero as soon as they move."""
    x, z = normal(4, positions, X), normal(4, Z, seed=1)
    outputs = []
    for context_scale in SCALES:
        fusion = with_scale(member, context_scale)
        initial = fusion(x, z)
        fill_zeros(fusion)
        trained = fusion(x, z)
        assert (trained - initial).abs().max() > 1e-3
        outputs.append(torch.stack([initial, trained]))
    for output in outputs[1:]:
        close(output, outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context_scale", SCALES)
@pytest.mark.parametrize("member", CONFIGS)
def test_scaled_fusion_equals_loop(member: str, context_scale: float | None) -> None:
    """Every scale is the one of the equation."""
    fusion, x, z = randomize(with_scale(member, context_scale)), normal(2, X), normal(2, Z, seed=1)
    expected = [by_loop(fusion, x[b].numpy(), z[b].numpy(), context_scale) for b in range(2)]
    close(fusion(x, z), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("features_scale", SCALES)
@pytest.mark.parametrize("member", ["low_rank", "metric"])
def test_scaled_features_equal_loop(member: str, features_scale: float | None) -> None:
    """The projection of x has a scale of its own, which does not change the initial function."""
    fusions: list[Fusion] = []
    for scale in (features_scale, 1.0):
        config = CONFIGS[member].model_copy(update={"features_scale": scale})
        torch.manual_seed(0)
        fusions.append(build_fusion(config, X, Z, O).double())  # type: ignore[arg-type]
    fusion, unscaled = fusions
    x, z = normal(2, X), normal(2, Z, seed=1)
    fill_zeros(fusion)
    fill_zeros(unscaled)
    close(fusion(x, z), unscaled(x, z), rtol=1e-5, atol=1e-5)
    randomize(fusion)
    expected = [by_loop(fusion, x[b].numpy(), z[b].numpy(), None, features_scale) for b in range(2)]
    close(fusion(x, z), torch.from_numpy(np.stack(expected)))


def rise_of_one_step(fusion: Fusion, name: str, x: Tensor, z: Tensor) -> float:
    """Return how far one sign step of a weight moves an output.

    Args:
        fusion: the fusion; it is left as it is.
        name: name of the weight.
        x: one row of features.
        z: one row of context.
    """
    moved = copy.deepcopy(fusion)
    weight = moved.get_parameter(name)
    before = moved(x, z)[0, 0]
    (gradient,) = torch.autograd.grad(before, weight)
    with torch.no_grad():
        # as Adam's first step: every element moves as far
        weight += 3e-4 * gradient.sign()
        return float(moved(x, z)[0, 0] - before)


@pytest.mark.parametrize(
    ("config", "prefix"), [(BilinearConfig(), ""), (HyperConfig(hidden=()), "generate.")]
)
def test_step_is_as_long_as_main(config: FusionConfig, prefix: str) -> None:
    """A step of 𝕎 moves y about as far as one of V, and without the scale much farther."""
    x = F.layer_norm(normal(1, 64), (64,))
    z = F.layer_norm(normal(1, 64, seed=1), (64,))
    ratios = []
    for context_scale in (None, 1.0):
        scaled = config.model_copy(update={"context_scale": context_scale})
        fusion = build_fusion(scaled, 64, 64, 8).double()
        step = rise_of_one_step(fusion, f"{prefix}weight", x, z)
        ratios.append(step / rise_of_one_step(fusion, f"{prefix}main.weight", x, z))
    with_default, without_scale = ratios
    assert 0.5 < with_default < 2
    assert without_scale > 10
    close(without_scale, float(z.abs().sum()), rtol=1e-6, atol=0)
