"""Every fusion, compared with independent forms in float64 and with random weights."""

import math

import numpy as np
import pytest
import torch
from fusion_cases import (
    CROSS,
    MEMBERS,
    VECTOR_CONFIGS,
    O,
    X,
    Z,
    fresh,
    normal,
    randomize,
    randomized,
)
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mirl.configs.networks import (
    AttentionConfig,
    BilinearConfig,
    ConcatConfig,
    FilmConfig,
    GateConfig,
    HyperConfig,
    LowRankConfig,
    MetricConfig,
)
from mirl.policies import build_fusion, build_map_fusion, count_parameters
from mirl.policies.fusions import (
    Affine,
    AttentionMask,
    Bilinear,
    Concat,
    CrossAttention,
    Film,
    Fusion,
    Gate,
    Hyper,
    LowRank,
    MetricSimilarity,
)

close = torch.testing.assert_close
Array = NDArray[np.float64]


# ---------------------------------------------------------------- naive loops, one number at a time


def weights_of(fusion: nn.Module) -> dict[str, Array]:
    return {name: parameter.detach().numpy() for name, parameter in fusion.named_parameters()}


def affine(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = [sum(x[i] * weight[i, o] for i in range(len(x))) for o in range(weight.shape[1])]
    return np.array(y) + (0.0 if bias is None else bias)


def sigmoid(x: Array) -> Array:
    return np.array([1 / (1 + math.exp(-value)) for value in x])


def softmax(x: Array) -> Array:
    powers = np.array([math.exp(value) for value in x])
    return powers / powers.sum()


def relu(x: Array) -> Array:
    return np.array([max(value, 0.0) for value in x])


def low_rank_by_loop(w: dict[str, Array], x: Array, z: Array, prefix: str = "") -> Array:
    a, b, p = (
        w[f"{prefix}{name}.weight"] for name in ("factor_features", "factor_context", "project")
    )
    y = affine(x, w[f"{prefix}main.weight"], w[f"{prefix}main.bias"]) + affine(
        z, w[f"{prefix}shift.weight"]
    )
    for o in range(len(y)):
        for r in range(p.shape[0]):
            y[o] += (
                p[r, o]
                * sum(x[i] * a[i, r] for i in range(len(x)))
                * sum(z[k] * b[k, r] for k in range(len(z)))
            )
    return y


def by_loop(fusion: Fusion, x: Array, z: Array) -> Array:
    """Compute y (O,) for one feature vector and one context by the equation of the paper."""
    w = weights_of(fusion)
    match fusion:
        case Concat(project=None):
            return affine(x, w["main.weight"], w["main.bias"]) + affine(z, w["shift.weight"])
        case Concat():
            hidden = relu(
                affine(x, w["main.weight"], w["main.bias"]) + affine(z, w["shift.weight"])
            )
            return affine(hidden, w["project.weight"], w["project.bias"])
        case Bilinear():
            y = affine(x, w["main.weight"], w["main.bias"]) + affine(z, w["shift.weight"])
            for k in range(len(z)):
                for i in range(len(x)):
                    y += z[k] * w["weight"][k, i] * x[i]
            return y
        case LowRank():
            return low_rank_by_loop(w, x, z)
        case Hyper():
            for layer in range(len(fusion.hidden)):
                z = relu(affine(z, w[f"hidden.{layer}.weight"], w[f"hidden.{layer}.bias"]))
            weight = (
                sum(z[k] * w["generate.weight"][k] for k in range(len(z)))
                + w["generate.main.weight"]
            )
            return affine(x, weight, affine(z, w["generate.shift.weight"], w["generate.main.bias"]))
        case Film():
            scale_shift = affine(z, w["to_scale_shift.weight"])
            scale, shift = scale_shift[: fusion.out_dim], scale_shift[fusion.out_dim :]
            return (1 + scale) * affine(x, w["main.weight"], w["main.bias"]) + shift
        case Gate():
            logits = affine(x, w["gate_features.weight"], w["gate_features.bias"]) + affine(
                z, w["gate_context.weight"]
            )
            return sigmoid(logits) * affine(x, w["main.weight"], w["main.bias"])
        case AttentionMask():
            logits = low_rank_by_loop(w, x, z, "to_mask.")
            mask = len(x) * softmax(logits) if fusion.simplex else sigmoid(logits)
            return affine(mask * x, w["main.weight"], w["main.bias"])
        case MetricSimilarity():
            ours = affine(x, w["project_features.weight"]).reshape(fusion.projections, -1)
            theirs = affine(z, w["project_context.weight"]).reshape(fusion.projections, -1)
            inner = [
                sum(a * b for a, b in zip(*rows, strict=True))
                for rows in zip(ours, theirs, strict=True)
            ]
            apart = [
                sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
                for rows in zip(ours, theirs, strict=True)
            ]
            return affine(x, w["main.weight"], w["main.bias"]) + affine(
                np.array(inner + apart), w["output.weight"]
            )
    raise AssertionError(f"no loop for {type(fusion).__name__}")


def cross_attention_by_loop(fusion: CrossAttention, x: Array, z: Array) -> Array:
    """Compute y (P, O) for the P cells of one row."""
    w = weights_of(fusion)
    located = np.array(
        [
            [cell[i] + position(p, i, len(cell)) for i in range(len(cell))]
            for p, cell in enumerate(x)
        ]
    )
    query = affine(z, w["query.weight"], w["query.bias"])
    keys_values = [affine(cell, w["key_value.weight"], w["key_value.bias"]) for cell in located]
    width = len(query) // fusion.heads
    read = []
    for head in range(fusion.heads):
        own = slice(head * width, (head + 1) * width)
        keys = [both[: len(query)][own] for both in keys_values]
        values = [both[len(query) :][own] for both in keys_values]
        weights = softmax(np.array([query[own] @ key / math.sqrt(width) for key in keys]))
        read.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    answer = affine(np.concatenate(read), w["project.weight"])
    return np.array([affine(cell, w["main.weight"], w["main.bias"]) + answer for cell in x])


def position(p: int, i: int, dim: int) -> float:
    angle = p / 10_000 ** (2 * (i // 2) / dim)
    return math.sin(angle) if i % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_fusion_equals_loop(member: str) -> None:
    """Every fusion of vectors equals its equation, computed by loops over single numbers."""
    fusion, x, z = randomized(member), normal(4, X, seed=1), normal(4, Z, seed=2)
    expected = np.stack([by_loop(fusion, x[b].numpy(), z[b].numpy()) for b in range(4)])
    close(fusion(x, z), torch.from_numpy(expected))


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_fusion_of_cells_equals_loop(member: str) -> None:
    """Every fusion of cells equals its equation for each cell."""
    fusion, x, z = randomized(member), normal(3, 2, 2, X, seed=1), normal(3, Z, seed=2)
    y = fusion(x, z)
    assert y.shape == (3, 2, 2, O)
    for b, row, column in np.ndindex(3, 2, 2):
        close(
            y[b, row, column],
            torch.from_numpy(by_loop(fusion, x[b, row, column].numpy(), z[b].numpy())),
        )


def test_cross_attention_equals_loop() -> None:
    """Cross-attention equals its equation, computed by loops over single numbers."""
    fusion, x, z = randomized(CROSS), normal(3, 5, X, seed=1), normal(3, Z, seed=2)
    assert isinstance(fusion, CrossAttention)
    expected = np.stack(
        [cross_attention_by_loop(fusion, x[b].numpy(), z[b].numpy()) for b in range(3)]
    )
    close(fusion(x, z), torch.from_numpy(expected))


# -------------------------------------------------------------------------------- torch's own forms


def test_concat_equals_linear_layer() -> None:
    """``concat`` equals a linear layer over the concatenation."""
    fusion, x, z = (
        randomize(build_fusion(ConcatConfig(), X, Z, O).double()),
        normal(4, X),
        normal(4, Z, seed=1),
    )
    assert isinstance(fusion, Concat)
    weight = torch.cat([fusion.main.weight, fusion.shift.weight]).T
    close(fusion(x, z), F.linear(torch.cat([x, z], dim=1), weight, fusion.main.bias))


def test_hidden_concat_equals_mlp() -> None:
    """``concat`` with a hidden layer equals an MLP over the concatenation."""
    fusion = randomize(build_fusion(ConcatConfig(hidden=9), X, Z, O).double())
    assert isinstance(fusion, Concat)
    assert fusion.project is not None
    mlp = nn.Sequential(nn.Linear(X + Z, 9), nn.ReLU(), nn.Linear(9, O)).double()
    mlp.load_state_dict(
        {
            "0.weight": torch.cat([fusion.main.weight, fusion.shift.weight]).T,
            "0.bias": fusion.main.bias,
            "2.weight": fusion.project.weight.T,
            "2.bias": fusion.project.bias,
        }
    )
    x, z = normal(4, X), normal(4, Z, seed=1)
    close(fusion(x, z), mlp(torch.cat([x, z], dim=1)))


def test_bilinear_equals_torch_layers() -> None:
    """``bilinear`` equals ``nn.Bilinear`` plus a linear layer over the concatenation."""
    fusion = randomize(build_fusion(BilinearConfig(), X, Z, O).double())
    assert isinstance(fusion, Bilinear)
    product, linear = nn.Bilinear(Z, X, O, bias=False).double(), nn.Linear(X + Z, O).double()
    product.load_state_dict({"weight": fusion.weight.permute(2, 0, 1)})
    linear.load_state_dict(
        {"weight": torch.cat([fusion.main.weight, fusion.shift.weight]).T, "bias": fusion.main.bias}
    )
    x, z = normal(4, X), normal(4, Z, seed=1)
    close(fusion(x, z), product(z, x) + linear(torch.cat([x, z], dim=1)))


def multi_head_attention(fusion: CrossAttention) -> nn.MultiheadAttention:
    """Return torch's layer with the weights of ours; its query is as wide as the features."""
    layer = nn.MultiheadAttention(fusion.features_dim, fusion.heads, batch_first=True).double()
    assert fusion.query.bias is not None
    assert fusion.key_value.bias is not None
    dim = fusion.features_dim
    layer.load_state_dict(
        {
            "in_proj_weight": torch.cat([fusion.query.weight, fusion.key_value.weight], dim=1).T,
            "in_proj_bias": torch.cat([fusion.query.bias, fusion.key_value.bias]),
            "out_proj.weight": torch.eye(dim, dtype=torch.float64),
            "out_proj.bias": torch.zeros(dim, dtype=torch.float64),
        }
    )
    return layer


def test_cross_attention_equals_torch_multihead() -> None:
    """The attention output equals ``nn.MultiheadAttention`` with the same weights."""
    fusion = randomized(CROSS, context_dim=X)
    assert isinstance(fusion, CrossAttention)
    x, z = normal(3, 5, X), normal(3, X, seed=1)
    located = x + torch.tensor(
        [[position(p, i, X) for i in range(X)] for p in range(5)], dtype=torch.float64
    )
    expected, _ = multi_head_attention(fusion)(z.unsqueeze(1), located, located)
    close(
        fusion.attend(x, z, None), expected, rtol=1e-6, atol=1e-6
    )  # the positions are computed in float32


def test_cross_attention_equals_torch_dot_product() -> None:
    """With one head the fusion equals torch's scaled dot-product attention."""
    fusion = randomize(build_map_fusion(AttentionConfig(heads=1), X, Z, O).double())
    assert isinstance(fusion, CrossAttention)
    x, z = normal(3, 5, X), normal(3, Z, seed=1)
    located = x + torch.tensor(
        [[position(p, i, X) for i in range(X)] for p in range(5)], dtype=torch.float64
    )
    query = torch.einsum("bz,zd->bd", z, fusion.query.weight) + fusion.query.bias
    key, value = (
        torch.einsum("bpx,xd->bpd", located, fusion.key_value.weight) + fusion.key_value.bias
    ).chunk(2, -1)
    read = F.scaled_dot_product_attention(query.unsqueeze(1), key, value)
    expected = (
        torch.einsum("bpx,xo->bpo", x, fusion.main.weight)
        + fusion.main.bias
        + read @ fusion.project.weight
    )
    close(fusion(x, z), expected, rtol=1e-6, atol=1e-6)


# -------------------------------------------------------- special cases of the bilinear interaction


def constrained_bilinear(weight: Tensor, shift: Tensor, main: Tensor, bias: Tensor) -> Bilinear:
    """Return a bilinear layer with 𝕎 (Z, X, O), U (Z, O), V (X, O) and b (O)."""
    fusion = build_fusion(BilinearConfig(), main.shape[0], shift.shape[0], main.shape[1]).double()
    fusion.load_state_dict(
        {"weight": weight, "shift.weight": shift, "main.weight": main, "main.bias": bias}
    )
    assert isinstance(fusion, Bilinear)
    return fusion


def assert_same_function(fusion: Fusion, other: Fusion, z: Tensor) -> None:
    x = normal(len(z), fusion.features_dim, seed=3)
    close(fusion(x, z), other(x, z), rtol=1e-6, atol=1e-6)
    cells = normal(len(z), 4, fusion.features_dim, seed=4)
    close(fusion(cells, z), other(cells, z), rtol=1e-6, atol=1e-6)


def test_low_rank_equals_full_bilinear_form() -> None:
    """``low_rank`` equals the bilinear form with the tensor of its factors."""
    fusion = randomize(build_fusion(LowRankConfig(rank=4), X, Z, O).double())
    assert isinstance(fusion, LowRank)
    weight = torch.einsum(
        "zr,xr,ro->zxo",
        fusion.factor_context.weight,
        fusion.factor_features.weight,
        fusion.project.weight,
    )
    full = constrained_bilinear(weight, fusion.shift.weight, fusion.main.weight, fusion.main.bias)
    assert_same_function(fusion, full, normal(5, Z))


def test_affine_hyper_equals_bilinear_form() -> None:
    """A hypernetwork without hidden layers equals the bilinear form."""
    fusion = randomize(build_fusion(HyperConfig(hidden=()), X, Z, O).double())
    assert isinstance(fusion, Hyper)
    g = fusion.generate
    full = constrained_bilinear(g.weight, g.shift.weight, g.main.weight, g.main.bias)
    assert_same_function(fusion, full, normal(5, Z))


def test_hyper_equals_mlp_generated_layer() -> None:
    """A hypernetwork is an MLP that generates the weights of a linear layer."""
    fusion = randomize(build_fusion(HyperConfig(hidden=(9,)), X, Z, O).double())
    assert isinstance(fusion, Hyper)
    (hidden,), g = fusion.hidden, fusion.generate
    assert isinstance(hidden, Affine)
    mlp = nn.Sequential(nn.Linear(Z, 9), nn.ReLU(), nn.Linear(9, (X + 1) * O)).double()
    mlp.load_state_dict(
        {
            "0.weight": hidden.weight.T,
            "0.bias": hidden.bias,
            "2.weight": torch.cat([g.weight, g.shift.weight.unsqueeze(1)], dim=1).flatten(1).T,
            "2.bias": torch.cat([g.main.weight, g.main.bias.unsqueeze(0)]).flatten(),
        }
    )
    x, z = normal(4, X), normal(4, Z, seed=1)
    written = mlp(z).unflatten(1, (X + 1, O))  # W′(z), and b′(z) as its last row
    expected = [
        F.linear(row, weights[:X].T, weights[X]) for row, weights in zip(x, written, strict=True)
    ]
    close(fusion(x, z), torch.stack(expected))


def test_film_equals_diagonal_bilinear_form() -> None:
    """FiLM equals the bilinear form with a diagonal context matrix."""
    fusion = randomize(build_fusion(FilmConfig(), X, Z, O).double())
    assert isinstance(fusion, Film)
    scale, shift = fusion.to_scale_shift.weight[:, :O], fusion.to_scale_shift.weight[:, O:]
    diagonal = torch.stack([torch.diag(row) for row in scale])  # W′(z) = V diag(1 + γ(z))
    weight = torch.einsum("xp,zpo->zxo", fusion.main.weight, diagonal)
    full = constrained_bilinear(
        weight,
        shift + torch.einsum("p,zpo->zo", fusion.main.bias, diagonal),
        fusion.main.weight,
        fusion.main.bias,
    )
    assert_same_function(fusion, full, normal(5, Z))


def test_one_hot_gate_equals_bilinear_form() -> None:
    """For one-hot contexts the gate equals a bilinear form."""
    fusion = randomize(build_fusion(GateConfig(), X, Z, O).double())
    assert isinstance(fusion, Gate)
    fusion.gate_features.weight.data.zero_()
    gates = torch.sigmoid(
        fusion.gate_context.weight + fusion.gate_features.bias
    )  # (Z, O), one row per context
    full = constrained_bilinear(
        torch.einsum("zo,xo->zxo", gates, fusion.main.weight),
        gates * fusion.main.bias,
        torch.zeros(X, O, dtype=torch.float64),
        torch.zeros(O, dtype=torch.float64),
    )
    assert_same_function(fusion, full, torch.eye(Z, dtype=torch.float64))


# ------------------------------------------------------------------------------------------- metric


def one_metric(projection: Tensor) -> MetricSimilarity:
    """Project both sides by one matrix, so that y = [inner product, distance]."""
    dim = len(projection)
    fusion = build_fusion(MetricConfig(projections=1, rank=dim), dim, dim, 2).double()
    assert isinstance(fusion, MetricSimilarity)
    with torch.no_grad():
        fusion.main.weight.zero_()
        for side in (fusion.project_features, fusion.project_context):
            side.weight.copy_(projection.T)
        fusion.output.weight.copy_(torch.eye(2))
    return fusion


def test_metric_of_identity_is_inner_product() -> None:
    """With the identity as projection the first similarity is the inner product."""
    fusion, x, z = one_metric(torch.eye(X)), normal(5, X), normal(5, X, seed=1)
    close(fusion(x, z)[:, 0], torch.stack([torch.dot(a, b) for a, b in zip(z, x, strict=True)]))


def test_metric_gives_mahalanobis_distance() -> None:
    """With a factor of C⁻¹ the second similarity is the squared Mahalanobis distance."""
    root = normal(X, X, seed=2)
    covariance = root @ root.T + torch.eye(X)
    inverse = np.linalg.inv(covariance.numpy())
    lower = np.linalg.cholesky(inverse)  # C⁻¹ = lower lowerᵀ, so L = lowerᵀ
    fusion, x, z = one_metric(torch.from_numpy(lower.T.copy())), normal(5, X), normal(5, X, seed=1)
    expected = [mahalanobis(a, b, inverse) ** 2 for a, b in zip(x.numpy(), z.numpy(), strict=True)]
    close(fusion(x, z)[:, 1], torch.tensor(expected))


# --------------------------------------------------------------------------------------------- mask


def attention_mask(mask: str) -> AttentionMask:
    fusion = randomized(f"attention-{mask}")
    assert isinstance(fusion, AttentionMask)
    return fusion


def test_sigmoid_mask_is_bounded() -> None:
    """The sigmoid mask is between 0 and 1."""
    fusion = attention_mask("sigmoid")
    mask = fusion.mask(10 * normal(50, 1, X), 10 * normal(50, Z, seed=1), None)
    assert mask.shape == (50, 1, X)
    assert ((mask >= 0) & (mask <= 1)).all()
    assert mask.min() < 0.1
    assert mask.max() > 0.9


def test_softmax_mask_is_scaled_simplex() -> None:
    """The softmax mask is non-negative and sums to the number of features."""
    mask = attention_mask("softmax").mask(3 * normal(50, 1, X), 3 * normal(50, Z, seed=1), None)
    assert (mask >= 0).all()
    close(mask.sum(-1), torch.full((50, 1), float(X), dtype=torch.float64))
    assert mask.max() > 2


def test_softmax_mask_starts_as_identity() -> None:
    """The initial softmax mask changes nothing."""
    fusion, x = fresh("attention-softmax"), normal(4, X)
    assert isinstance(fusion, AttentionMask)
    close(fusion(x, normal(4, Z)), x @ fusion.main.weight + fusion.main.bias)


# --------------------------------------------------------------------------------- the whole family


@pytest.mark.parametrize("member", MEMBERS)
def test_permuted_batch_permutes_output(member: str) -> None:
    """Permuting the rows permutes the output."""
    fusion, x, z = randomized(member), normal(7, 3, X), normal(7, Z, seed=1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(order, torch.arange(7))
    close(fusion(x[order], z[order]), fusion(x, z)[order])


@pytest.mark.parametrize("member", MEMBERS)
def test_permuted_index_permutes_output(member: str) -> None:
    """Permuting the rows and their index permutes the output."""
    fusion, x, z = randomized(member), normal(7, 3, X), normal(3, Z, seed=1)
    index, order = torch.tensor([2, 0, 0, 1, 2, 2, 0]), torch.tensor([4, 6, 0, 3, 1, 5, 2])
    close(fusion(x[order], z, index[order]), fusion(x, z, index)[order])


@pytest.mark.parametrize("member", MEMBERS)
def test_leading_dimensions_equal_flat_batch(member: str) -> None:
    """Several leading dimensions give the output of the flattened batch."""
    fusion, x, z = randomized(member), normal(2, 3, 4, X), normal(2, 3, 4, Z, seed=1)
    y = fusion(x, z)
    assert y.shape == (2, 3, 4, O)
    close(y.reshape(24, O), fusion(x.reshape(24, X), z.reshape(24, Z)))


@pytest.mark.parametrize("member", VECTOR_CONFIGS)
def test_shared_context_equals_loop_over_positions(member: str) -> None:
    """Cells that share a context equal one call per position."""
    fusion, x, z = randomized(member), normal(3, 4, X), normal(3, Z, seed=1)
    close(fusion(x, z), torch.stack([fusion(x[:, p], z) for p in range(4)], dim=1))


@pytest.mark.parametrize("indexed", [False, True], ids=["rows", "grouped"])
@pytest.mark.parametrize("cells", [(), (2,)], ids=["vector", "cells"])
@pytest.mark.parametrize("member", MEMBERS)
def test_gradients_equal_finite_differences(
    member: str, cells: tuple[int, ...], indexed: bool
) -> None:
    fusion = randomized(member, 4, 3, 2)
    names = [name for name, _ in fusion.named_parameters()]
    index = torch.tensor([1, 0, 1]) if indexed else None
    inputs = (normal(3, *cells, 4), normal(2 if indexed else 3, 3, seed=1), *fusion.parameters())

    def forward(x: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
        result: Tensor = functional_call(
            fusion, dict(zip(names, weights, strict=True)), (x, z, index)
        )
        return result

    leaves = tuple(each.detach().clone().requires_grad_() for each in inputs)
    assert torch.autograd.gradcheck(forward, leaves, fast_mode=True)


@pytest.mark.parametrize("member", MEMBERS)
def test_initial_output_ignores_context(member: str) -> None:
    """At initialization the output does not depend on the context."""
    fusion, x = fresh(member), normal(4, 3, X)
    close(fusion(x, normal(4, Z, seed=1)), fusion(x, normal(4, Z, seed=2)), rtol=0, atol=0)


@pytest.mark.parametrize("member", MEMBERS)
def test_trained_output_depends_on_context(member: str) -> None:
    """With random weights the output depends on the context of every row."""
    fusion, x = randomized(member), normal(4, 3, X)
    assert (fusion(x, normal(4, Z, seed=1)) - fusion(x, normal(4, Z, seed=2))).abs().amax(
        dim=(1, 2)
    ).min() > 1e-3


@pytest.mark.parametrize("member", MEMBERS)
def test_first_step_enables_context_gradient(member: str) -> None:
    """The context has no gradient at initialization and has one after one gradient step."""
    fusion, x, z = fresh(member), normal(8, 3, X), normal(8, Z, seed=1).requires_grad_()
    target = normal(8, 3, O, seed=2)
    (fusion(x, z) - target).square().mean().backward()
    assert z.grad is not None
    assert not z.grad.any()
    torch.optim.SGD(fusion.parameters(), lr=0.1).step()
    (fusion(x, z) - target).square().mean().backward()
    assert z.grad.any()


@pytest.mark.parametrize("member", [member for member in MEMBERS if member != "concat-hidden"])
def test_initial_map_is_orthogonal(member: str) -> None:
    """At initialization the fusion is an orthogonal map times the gain."""
    fusion = fresh(member, X, Z, X)
    jacobian = torch.autograd.functional.jacobian(lambda x: fusion(x, normal(1, Z)), normal(1, X))[
        0, :, 0
    ]
    close(jacobian @ jacobian.T, 2 * torch.eye(X, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("member", MEMBERS)
def test_sb3_initialization_leaves_fusions_unchanged(member: str) -> None:
    """SB3's orthogonal initialization does not change a fusion."""
    fusion = fresh(member)
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    fusion.apply(lambda module: ActorCriticPolicy.init_weights(module, gain=math.sqrt(2)))
    close(fusion.state_dict(), before, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("features", "context", "index"),
    [
        pytest.param((4, X + 1), (4, Z), None, id="wrong features"),
        pytest.param((4, X), (4, Z + 1), None, id="wrong context"),
        pytest.param((4, X), (3, Z), None, id="other number of rows"),
        pytest.param((4, X), (1, Z), None, id="one context for all, without an index"),
        pytest.param((1, X), (4, Z), None, id="one row for all contexts"),
        pytest.param((4, X), (4, 1, Z), None, id="the (B, 1, n) form of SB3's minibatches"),
        pytest.param((4, 1, X), (1, 4, Z), None, id="crossed leading dimensions"),
        pytest.param((4, 2, X), (4, 3, Z), None, id="other number of positions"),
        pytest.param((4, 2, X), (2, Z), None, id="contexts per position"),
        pytest.param((4, X), (Z,), None, id="a single context"),
        pytest.param((4, X), (2, Z), (3,), id="index too short"),
        pytest.param((4, X), (2, Z), (1,), id="one index for all"),
        pytest.param((4, X), (2, Z), (4, 1), id="index with a dimension too many"),
        pytest.param((4, X), (2, 1, Z), (4,), id="grouped contexts with a dimension too many"),
    ],
)
@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.usefixtures("as_users_run_it")
def test_wrong_shapes_raise(
    member: str, features: tuple[int, ...], context: tuple[int, ...], index: tuple[int, ...] | None
) -> None:
    where = None if index is None else torch.zeros(index, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expects features|index must give"):
        randomized(member)(normal(*features), normal(*context), where)


def test_shape_error_names_both_shapes() -> None:
    """The error names the expected shapes and the given ones."""
    with pytest.raises(
        ValueError,
        match=r"Film expects features \(\.\.\., 6\) and context \(4, 5\), got \(4, 6\) and",
    ):
        randomized("film")(normal(4, X), normal(4, 1, Z))


@pytest.mark.parametrize(("features_dim", "heads"), [(6, 4), (5, 5)])
def test_heads_must_divide_features(features_dim: int, heads: int) -> None:
    """The number of heads must divide the features of a cell."""
    with pytest.raises(ValueError, match=f"got heads={heads}"):
        build_map_fusion(AttentionConfig(heads=heads), features_dim, Z, O)


def test_count_parameters_skips_frozen_weights() -> None:
    """Frozen parameters are not counted."""
    fusion = build_fusion(BilinearConfig(), X, Z, O)
    assert count_parameters(fusion) == Z * X * O + Z * O + X * O + O
    fusion.get_parameter("weight").requires_grad_(False)
    assert count_parameters(fusion) == Z * O + X * O + O
