"""Products of similarities: attributes of a cell, forms of computation, and scale."""

from typing import Any

import numpy as np
import pytest
import torch
from fusion_cases import (
    O,
    X,
    Z,
    assert_bfloat16_rounds,
    assert_equals_finite_differences,
    assert_forms_are_equal,
    normal,
    randomize,
)
from fusion_loops import by_loop
from gymnasium import spaces
from torch import Tensor

from mirl.configs.networks import GridEncoderConfig, ProductConfig, TaskIdContextConfig
from mirl.policies import FusionExtractor
from mirl.policies.features import Context
from mirl.policies.fusions import ProductSimilarity, build_fusion, build_map_fusion
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.specialize import specialize_fusion

close = torch.testing.assert_close
LAYOUTS: list[tuple[int, ...]] = [(), (2, 3), (1, 2, 3), (4,)]
"""Layouts of six features: none, with a channel of no attribute, without one, one attribute."""


def product(layout: tuple[int, ...], **options: Any) -> ProductSimilarity:
    config = ProductConfig(**{"products": 3, "rank": 2, **options})
    fusion = randomize(build_map_fusion(config, X, Z, O, attribute_dims=layout).double())
    assert isinstance(fusion, ProductSimilarity)
    return fusion


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_product_of_attributes_equals_loop(layout: tuple[int, ...]) -> None:
    """Each similarity reads the channels of its attribute alone."""
    fusion, x, z = product(layout), normal(3, 4, X), normal(3, Z, seed=1)
    y = fusion(x, z)
    for row, cell in np.ndindex(3, 4):
        expected = by_loop(fusion, x[row, cell].numpy(), z[row].numpy())
        close(y[row, cell], torch.from_numpy(expected))


@pytest.mark.parametrize("bound", [None, 0.5])
@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pooled_words_equal_loop(
    layout: tuple[int, ...], combine: str, bound: float | None
) -> None:
    """Each similarity reads a mean of the words with weights of its own."""
    fusion = product(layout, combine=combine, bound=bound)
    x, words = normal(3, 4, X), normal(3, 5, Z, seed=1)
    y = fusion(x, words.mean(1), None, words)
    for row, cell in np.ndindex(3, 4):
        expected = by_loop(fusion, x[row, cell].numpy(), words[row].numpy())
        close(y[row, cell], torch.from_numpy(expected))


@pytest.mark.parametrize("form", ["grouped", "generated", "projected"])
def test_forms_with_words_are_equal(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped, by one matrix per row, and by projections: the same outputs and gradients."""
    monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_: form == "grouped")
    fusion, index = product((2, 3)), torch.tensor([1, 0, 1, 1])
    x = normal(4, 1 if form == "projected" else 3, X).requires_grad_()
    words = normal(2, 5, Z, seed=1).requires_grad_()
    z = words.mean(1)
    got = fusion(x, z, index, words)
    expected = torch.stack(
        [fusion(x[b : b + 1], z[i : i + 1], None, words[i : i + 1])[0] for b, i in enumerate(index)]
    )
    close(got, expected)
    first = torch.autograd.grad(got.square().sum(), [x, words, *fusion.parameters()])
    second = torch.autograd.grad(expected.square().sum(), [x, words, *fusion.parameters()])
    for ours, theirs in zip(first, second, strict=True):
        close(ours, theirs)


def test_text_may_count_as_one_word() -> None:
    """Without ``pool_words`` the fusion reads the vector of the text."""
    fusion, x, words = product((2, 3)), normal(3, 4, X), normal(3, 5, Z, seed=1)
    z = words.mean(1)
    whole = product((2, 3), pool_words=False)
    assert (fusion(x, z, None, words) - whole(x, z, None, words)).abs().max() > 0.1
    # equal shares give the vector itself
    fusion.queries.data.zero_()
    close(whole(x, z, None, words), fusion(x, z))


def test_weights_of_words_start_equal() -> None:
    """With queries of zero, as a new fusion has them, it reads the mean of the words."""
    fusion = product((2, 3))
    fusion.queries.data.zero_()
    x, words = normal(2, 3, X), normal(2, 4, Z, seed=1)
    mean = words.mean(1, keepdim=True)
    close(fusion.similarities(x, words, None), fusion.similarities(x, mean, None))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_zeros_after_words_change_nothing(length: int) -> None:
    """Shorter texts end with zeros, which have no weight; a text without words is finite."""
    fusion, x = product((2, 3)), normal(2, 3, X)
    words = normal(2, length, Z, seed=1).requires_grad_()
    padded = torch.cat([words, torch.zeros(2, 4, Z, dtype=torch.float64)], dim=1)
    one = max(length, 1)
    outputs = [fusion(x, padded[:, 0], None, padded[:, :size]) for size in (one, length + 4)]
    close(outputs[1], outputs[0])
    if length:
        gradients = [torch.autograd.grad(y.square().sum(), words)[0] for y in outputs]
        close(gradients[1], gradients[0])


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_forms_are_equal(
    layout: tuple[int, ...], positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grouped form, the form per row and the form of the factors give the same numbers."""
    fusion = product(layout)
    x = normal(7, positions, X)

    def by_position(z: Tensor) -> Tensor:
        return torch.stack([fusion(x[:, p], z) for p in range(positions)], dim=1)

    assert_forms_are_equal(fusion, x, by_position, monkeypatch)


@pytest.mark.parametrize("grouped", [True, False])
def test_gradients_of_attributes_equal_finite_differences(
    grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_: grouped)
    fusion = product((1, 2, 3))
    assert_equals_finite_differences(
        fusion, normal(3, 2, X), normal(2, Z, seed=1), torch.tensor([1, 0, 1])
    )


@pytest.mark.parametrize("context_dim", [4, 64, 256])
def test_step_ignores_size_of_context(context_dim: int) -> None:
    """A step of the weights of the context moves a new similarity by as much for any size."""
    config = ProductConfig(products=1, rank=4, groups=1)
    fusion = build_fusion(config, X, context_dim, O).double()
    assert isinstance(fusion, ProductSimilarity)
    x, z = normal(1, 1, X), normal(1, 1, context_dim, seed=1).sign()
    weight = fusion.factor_context.weight
    similarity = fusion.similarities(x, z, None).sum()
    assert similarity == 0
    with torch.no_grad():
        weight += 0.01 * torch.autograd.grad(similarity, weight)[0].sign()
    projected = fusion.factor_features[0](x)
    close(fusion.similarities(x, z, None).sum(), 0.01 * 16 * projected.abs().sum())


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_first_step_reaches_context_weights(combine: str) -> None:
    """A new fusion ignores the context, but its gradient does not."""
    config = ProductConfig(products=3, rank=2, combine=combine)
    fusion = build_map_fusion(config, X, Z, O, attribute_dims=(2, 3)).double()
    assert isinstance(fusion, ProductSimilarity)
    x, z = normal(3, 4, X), normal(3, Z, seed=1)
    y = fusion(x, z)
    close(y, fusion(x, z.flip(0)))
    y.square().sum().backward()
    assert fusion.factor_context.weight.grad.any(0).all()


def test_conjunction_is_a_product() -> None:
    """With one-hot attributes and words a product is 1 for the named pair alone."""
    config = ProductConfig(products=1, rank=3, context_scale=1.0)
    fusion = build_map_fusion(config, 6, 6, 1, attribute_dims=(3, 3))
    assert isinstance(fusion, ProductSimilarity)
    with torch.no_grad():
        for weight in fusion.parameters():
            weight.zero_()
        for factor in fusion.factor_features:
            factor.weight.copy_(torch.eye(3))
        # the first three words name the object, the others the color
        fusion.factor_context.weight.copy_(torch.eye(6))
        fusion.output.weight[0] = 1
    pairs = torch.cat([torch.eye(3).repeat_interleave(3, 0), torch.eye(3).repeat(3, 1)], dim=1)
    close(fusion(pairs.expand(9, 9, 6), pairs).squeeze(-1), torch.eye(9))


@pytest.mark.parametrize("bound", [None, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_product_for_one_context(layout: tuple[int, ...], bound: float | None) -> None:
    """For one context, with or without words, the fusion is a function of the features."""
    fusion, x, z = product(layout, bound=bound), normal(4, 3, X), normal(1, Z, seed=1)
    for words in (None, normal(1, 5, Z, seed=2)):
        folded = specialize_fusion(fusion, Context(z, None, words))
        same = torch.zeros(4, dtype=torch.int64)
        close(folded(x), fusion(x, z, same, words), rtol=1e-9, atol=1e-9)
    assert "context" not in str(list(folded.state_dict()))


@pytest.mark.parametrize("grouped", [True, False])
def test_product_in_bfloat16(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast changes the output by rounding errors alone."""
    monkeypatch.setattr(ContextGroups, "prefer_grouped", lambda *_: grouped)
    assert_bfloat16_rounds(product((1, 2, 3)))


@pytest.mark.parametrize("main_rank", [0, 2])
def test_main_path_reads_first_attributes(main_rank: int) -> None:
    """V x does not depend on the channels behind those attributes, and the form stays the same."""
    fusion = product((1, 2, 3), main_rank=main_rank, main_attributes=2)
    x, z = normal(2, 3, X), normal(2, Z, seed=1)
    other = torch.cat([x[..., :3], normal(2, 3, 3, seed=2)], dim=-1)
    close(fusion.read_main(x), fusion.read_main(other))
    expected = by_loop(fusion, x[1, 2].numpy(), z[1].numpy())
    close(fusion(x, z)[1, 2], torch.from_numpy(expected))
    specialized = specialize_fusion(fusion, Context(z[:1], None))
    close(specialized(x[0]), fusion(x, z)[0], rtol=1e-6, atol=1e-8)


def test_narrow_main_path_has_its_rank() -> None:
    """With ``main_rank`` the main path is a product of two matrices."""
    fusion = product((2, 3), main_rank=2)
    jacobian = torch.autograd.functional.jacobian(fusion.main, normal(X))
    assert torch.linalg.matrix_rank(jacobian) == 2


def test_extractor_passes_attributes() -> None:
    """The fusion of the map reads the attributes of the cells, that of the vector none."""
    high = np.broadcast_to(np.array([10, 5, 3], np.uint8), (5, 5, 3))
    grid = spaces.Box(np.zeros_like(high), high.copy(), (5, 5, 3), np.uint8)
    space = spaces.Dict({"image": grid, "task": spaces.Discrete(3)})
    extractor = FusionExtractor(
        space,
        fusion=ProductConfig(products=2, rank=3),
        context=TaskIdContextConfig(dim=8),
        encoder=GridEncoderConfig(channels=14, features_dim=12, additive=True, attributes=4),
        sites=("map", "vector"),
    )
    assert isinstance(extractor.map_fusion, ProductSimilarity)
    assert isinstance(extractor.vector_fusion, ProductSimilarity)
    assert extractor.map_fusion.parts == [(0, 4), (4, 8), (8, 12)]
    assert extractor.vector_fusion.parts == [(0, 12), (0, 12)]
