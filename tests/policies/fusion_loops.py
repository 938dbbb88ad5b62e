"""The equation of every fusion as a naive loop, one number at a time."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mirl.policies.fusions import (
    Adapter,
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
    ProductSimilarity,
)

Array = NDArray[np.float64]


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


def scaled(z: Array, context_scale: float | None) -> Array:
    """Return c z, where c is 1/Z by default."""
    return z * (context_scale or 1 / len(z))


def relu(x: Array) -> Array:
    return np.array([max(value, 0.0) for value in x])


def low_rank_by_loop(
    w: dict[str, Array], x: Array, z: Array, scale: float, prefix: str = ""
) -> Array:
    a, b, p = (
        w[f"{prefix}{name}.weight"] for name in ("factor_features", "factor_context", "project")
    )
    y = affine(x, w[f"{prefix}main.weight"], w[f"{prefix}main.bias"]) + affine(
        z, w[f"{prefix}shift.weight"]
    )
    for o in range(len(y)):
        for r in range(p.shape[0]):
            y[o] += (
                scale
                * p[r, o]
                * sum(x[i] * a[i, r] for i in range(len(x)))
                * sum(z[k] * b[k, r] for k in range(len(z)))
            )
    return y


def adapter_by_loop(
    fusion: Adapter, w: dict[str, Array], x: Array, z: Array, context_scale: float | None
) -> Array:
    """Compute y (O,) of ``adapter`` for one feature vector and one context."""
    generated: list[float] = []
    for embedding in w["generator.chunk_embeddings"]:
        parts = [w[f"generator.{name}.weight"] for name in ("from_chunk", "from_context")]
        first = np.concatenate(parts)
        chunk = affine(
            np.concatenate([embedding, scaled(z, context_scale)]),
            first,
            w["generator.from_chunk.bias"],
        )
        for layer in range(len(fusion.generator.layers)):
            name = f"generator.layers.{layer}"
            chunk = affine(
                scaled(relu(chunk), context_scale), w[f"{name}.weight"], w[f"{name}.bias"]
            )
        generated += list(chunk)
    rest = iter(generated)
    hidden_dim, dim = fusion.bottleneck, fusion.features_dim
    # one row per output, then the bias
    down = [[next(rest) for _ in range(dim)] for _ in range(hidden_dim)]
    down_bias = [next(rest) for _ in range(hidden_dim)]
    up = [[next(rest) for _ in range(hidden_dim)] for _ in range(dim)]
    up_bias = [next(rest) for _ in range(dim)]
    hidden = relu(affine(x, np.array(down).T, np.array(down_bias)))
    y = x + relu(affine(hidden, np.array(up).T, np.array(up_bias)))
    if fusion.main is None:
        return y
    return affine(y, w["main.weight"], w["main.bias"])


def product_by_loop(
    fusion: ProductSimilarity,
    w: dict[str, Array],
    x: Array,
    words: Array,
    context_scale: float | None,
) -> Array:
    """Compute y (O,) of ``product`` for one feature vector and the words (W, Z) of one context."""
    seen = x[: fusion.main_dim]
    if "main.weight" in w:
        y = affine(seen, w["main.weight"], w["main.bias"])
    else:
        y = affine(affine(seen, w["main.0.weight"]), w["main.1.weight"], w["main.1.bias"])
    products, rank = fusion.products, fusion.rank
    similarities = np.zeros((len(fusion.parts), products))
    scale = context_scale or 16 / words.shape[1]
    for f, (start, end) in enumerate(fusion.parts):
        ours = affine(x[start:end], w[f"factor_features.{f}.weight"])
        own = slice(f * products * rank, (f + 1) * products * rank)
        for k in range(products):
            queries = w["queries"].reshape(-1, len(fusion.parts), products)[:, :, k]
            z = np.zeros(words.shape[1])
            for word in words:
                # its share for this attribute, beside the other attributes and none of them
                share = softmax(np.array([*(word @ queries), 0.0]))[f]
                z += (len(fusion.parts) + 1) * share * word / len(words)
            theirs = affine(scale * z, w["factor_context.weight"][:, own])
            for r in range(rank):
                similarities[f, k] += ours[k * rank + r] * theirs[k * rank + r]
    if fusion.bound is not None:
        similarities = fusion.bound * np.tanh(similarities / fusion.bound)
    combine = np.prod if fusion.combine == "product" else np.sum
    terms = [float(combine(similarities[:, k])) for k in range(products)]
    for row in similarities:
        terms += list(row)
    return y + affine(np.array(terms), w["output.weight"])


def by_loop(
    fusion: Fusion,
    x: Array,
    z: Array,
    context_scale: float | None = None,
    features_scale: float | None = None,
) -> Array:
    """Compute y (O,) for one feature vector and one context by the equation of the paper.

    Args:
        fusion: the fusion, in float64.
        x: features, (X,).
        z: context, (Z,); the words of a context, (W, Z), for ``product``.
        context_scale: the option of the fusion.
        features_scale: the option of ``low_rank`` and ``metric``.
    """
    w = weights_of(fusion)
    scale = context_scale or 1 / z.shape[-1]
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
                    y += scale * z[k] * w["weight"][k, i] * x[i]
            return y
        case LowRank():
            rank = w["project.weight"].shape[0]
            return low_rank_by_loop(w, x, z, scale * (features_scale or 1 / rank))
        case Hyper():
            for layer in range(len(fusion.hidden)):
                name = f"hidden.{layer}"
                z = relu(affine(scaled(z, context_scale), w[f"{name}.weight"], w[f"{name}.bias"]))
            shares = scaled(z, context_scale)
            weight = (
                sum(shares[k] * w["generate.weight"][k] for k in range(len(z)))
                + w["generate.main.weight"]
            )
            return affine(x, weight, affine(z, w["generate.shift.weight"], w["generate.main.bias"]))
        case Film():
            scale_shift = affine(z, w["to_scale_shift.weight"])
            factor, shift = scale_shift[: fusion.out_dim], scale_shift[fusion.out_dim :]
            return (1 + scale * factor) * affine(x, w["main.weight"], w["main.bias"]) + shift
        case Gate():
            logits = affine(x, w["gate_features.weight"], w["gate_features.bias"]) + affine(
                z, w["gate_context.weight"]
            )
            return sigmoid(logits) * affine(x, w["main.weight"], w["main.bias"])
        case AttentionMask():
            logits = low_rank_by_loop(w, x, z, scale, "to_mask.")
            mask = len(x) * softmax(logits) if fusion.simplex else sigmoid(logits)
            return affine(mask * x, w["main.weight"], w["main.bias"])
        case MetricSimilarity():
            rank = w["project_features.weight"].shape[1] // fusion.projections
            ours = affine((features_scale or 1 / rank) * x, w["project_features.weight"]).reshape(
                fusion.projections, -1
            )
            theirs = affine(scale * z, w["project_context.weight"]).reshape(fusion.projections, -1)
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
        case Adapter():
            return adapter_by_loop(fusion, w, x, z, context_scale)
        case ProductSimilarity():
            return product_by_loop(fusion, w, x, np.atleast_2d(z), context_scale)
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
