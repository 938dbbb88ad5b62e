"""Specialization: fold one fixed context into a network, so that plain layers remain.

With z fixed, most fusions are affine in x: zᵀ𝕎 + V is a single matrix, so the specialized network
costs as much as one without a context. Weights are folded in float64 on the CPU and are copies.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, assert_never, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import TensorDict
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.policies.action_mask import mask_logits
from mirl.policies.contexts import GoalContext
from mirl.policies.extractor import FusionExtractor
from mirl.policies.features import Context
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
from mirl.policies.heads import FusionHead, VectorHead
from mirl.policies.policy import FusionPolicy
from mirl.policies.popart import PopArtHead
from mirl.policies.positions import sinusoidal_positions

Head = nn.Linear | FusionHead | VectorHead | PopArtHead
"""A policy or value head of ``FusionPolicy``."""
OneContext = ArrayLike | Mapping[str, ArrayLike]
"""One row as the observation holds it; a dictionary of rows if the context has several keys."""


def specialize(policy: BasePolicy, context: OneContext, task: int = 0) -> "SpecializedPolicy":
    """Return the policy for one context, at the cost of a plain network.

    Args:
        policy: a ``FusionPolicy`` without a memory; it is left as it is.
        context: one row as the observation holds it: token ids of a mission, the index of a task,
            or a goal; a dictionary of rows if the context has several keys.
        task: index of the task whose value is computed if values are per task (``popart``);
            ignored if the context is the task.

    Returns:
        A module that computes the parameters of the action distribution and the value from raw
        observations; its weights are copies.

    Raises:
        ConfigError: if the policy has no specialized form, if the context does not fit its space,
            or if there is no such task.
    """
    if not isinstance(policy, FusionPolicy):
        raise ConfigError(
            "policies of PPO and A2C can be specialized and exported, those of other algorithms "
            f"cannot; got {type(policy).__name__}"
        )
    if policy.is_recurrent:
        raise ConfigError(
            f"a policy with memory={policy.network.memory.kind} has no form for one context alone "
            "to export"
        )
    if policy.popart and not 0 <= task < policy.n_tasks:
        raise ConfigError(f"expected a task from 0 to {policy.n_tasks - 1}, got {task}")
    return SpecializedPolicy(policy, context, task)


def specialize_extractor(
    extractor: FusionExtractor, context: OneContext, *, normalize_images: bool = True
) -> "SpecializedExtractor":
    """Return the features extractor for one context, without a context encoder or fusions.

    Args:
        extractor: any ``FusionExtractor``; it is left as it is.
        context: one row as the observation holds it: token ids of a mission, the index of a task,
            or a goal; a dictionary of rows if the context has several keys.
        normalize_images: divide images by 255, as the policy of the extractor does.

    Returns:
        A module that computes the features from raw observations; its weights are copies.

    Raises:
        ConfigError: if the context does not fit its space.
    """
    z = encode_one_context(extractor, context, normalize_images)
    return SpecializedExtractor(extractor, z, normalize_images)


# ------------------------------------------------------------------------------------------ fusions


@torch.no_grad()
def specialize_fusion(fusion: Fusion, z: Float[Tensor, " context"]) -> nn.Module:
    """Return y = f(x, z) for one z as a module of x alone.

    Args:
        fusion: f; it is left as it is.
        z: the encoded context, (Z,).

    Returns:
        A module that maps x of shape (B, X) or (B, P, X) to y; its weights are copies.

    Raises:
        TypeError: if the fusion is of a class without a specialized form.
    """
    # in float64 the rounding errors of folding stay below the precision of float32
    in_float64 = copy.deepcopy(fusion).cpu().double()
    folded = fold(in_float64, z.detach().cpu().double().unsqueeze(0))
    return folded.to(device=z.device, dtype=z.dtype).requires_grad_(False).eval()


def fold(fusion: Fusion, z: Float[Tensor, "1 context"]) -> nn.Module:
    """Build the form of a fusion that is left if z is known.

    Args:
        fusion: a fusion in float64 on the CPU.
        z: the encoded context in float64, (1, Z).

    Returns:
        A module of x alone, in float64.

    Raises:
        TypeError: if the fusion is of a class without a specialized form.
    """
    x_dim = fusion.features_dim
    match fusion:
        case Concat(project=None) | Bilinear() | LowRank() | Hyper() | Film():
            # all terms are constant or linear in x, so the sum is one affine map
            return as_linear(lambda x: fusion(x.unsqueeze(0), z).squeeze(0), x_dim)
        case Concat(project=Affine() as project):
            # the ReLU stands between two affine maps
            hidden = as_linear(lambda x: fusion.main(x) + fusion.shift(z), x_dim)
            return nn.Sequential(hidden, nn.ReLU(), as_linear(project, hidden.out_features))
        case Gate():
            # the gate is affine in x up to its sigmoid
            gate = as_linear(lambda x: fusion.gate_features(x) + fusion.gate_context(z), x_dim)
            return Product(nn.Sequential(gate, nn.Sigmoid()), as_linear(fusion.main, x_dim))
        case AttentionMask():
            logits = fold(fusion.to_mask, z)
            if fusion.simplex:
                mask = nn.Sequential(logits, nn.Softmax(-1))
                # m = X * softmax: the factor X goes into the main path
                main = as_linear(lambda x: fusion.main(x_dim * x), x_dim)
            else:
                mask = nn.Sequential(logits, nn.Sigmoid())
                main = as_linear(fusion.main, x_dim)
            return nn.Sequential(Product(mask, nn.Identity()), main)
        case MetricSimilarity():
            return SpecializedMetric(fusion, z)
        case CrossAttention():
            return SpecializedCrossAttention(fusion, z)
        case _:
            raise TypeError(f"{type(fusion).__name__} has no specialized form")


def as_linear(f: Callable[[Tensor], Tensor], in_dim: int) -> nn.Linear:
    """Convert an affine function to a linear layer, by its values at zero and at the unit vectors.

    Args:
        f: an affine function of (n, in_dim) in float64.
        in_dim: size of its argument.

    Returns:
        The layer, in float64.
    """
    # f(0) = b, and f(e_i) − b is column i of the matrix
    points = torch.cat([torch.zeros(1, in_dim), torch.eye(in_dim)]).double()
    at_zero, at_units = f(points).split([1, in_dim])
    # an initialization of its own would draw from torch's generator
    layer = nn.utils.skip_init(nn.Linear, in_dim, at_zero.shape[1], dtype=torch.float64)
    linear = cast(nn.Linear, layer)
    linear.weight.copy_((at_units - at_zero).T)
    linear.bias.copy_(at_zero.squeeze(0))
    return linear


class Product(nn.Module):
    """Elementwise product y = a(x) ⊙ b(x).

    Args:
        a: first factor.
        b: second factor.
    """

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a = a
        self.b = b

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return a(x) ⊙ b(x)."""
        y: Tensor = self.a(x) * self.b(x)
        return y


class SpecializedMetric(nn.Module):
    """``MetricSimilarity`` for one z: y = linear(x) + output(‖A_k x − B_k z‖² for every k).

    The inner products are affine in x and join V x + b; the distances remain.

    Args:
        fusion: the fusion, in float64.
        z: the encoded context in float64, (1, Z).
    """

    def __init__(self, fusion: MetricSimilarity, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        self.projections = fusion.projections
        x_dim = fusion.features_dim
        # the rows of W: K for the inner products, then K for the distances
        inner_weight, distance_weight = fusion.output.weight.split(fusion.projections)

        def main_and_inner_products(x: Tensor) -> Tensor:
            similarities = fusion.similarities(x.unsqueeze(0), z, None)[0]
            return fusion.main(x) + similarities[:, : fusion.projections] @ inner_weight

        def difference(x: Tensor) -> Tensor:
            return fusion.project_features(x) - fusion.project_context(z)

        self.linear = as_linear(main_and_inner_products, x_dim)
        self.apart = as_linear(difference, x_dim)
        self.output = as_linear(lambda distances: distances @ distance_weight, fusion.projections)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the output for each row of x."""
        # (*B, K * R) -> (*B, K, R)
        differences = self.apart(x).unflatten(-1, (self.projections, -1))
        y: Tensor = self.linear(x) + self.output(differences.square().sum(-1))
        return y


class SpecializedCrossAttention(nn.Module):
    """``CrossAttention`` for one z.

        y_i = main(x_i) + output(Σ_j softmax_j(score(x_j)) x_j for every head)

    The score q(z) · k(x_j) / √d is affine in the cell, and so is the projection P v of the weighted
    sum of each head.

    Args:
        fusion: the fusion, in float64.
        z: the encoded context in float64, (1, Z).
    """

    def __init__(self, fusion: CrossAttention, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        x_dim = fusion.features_dim
        heads = fusion.heads

        def score(x: Tensor) -> Tensor:
            key, _ = fusion.key_value(x).chunk(2, dim=-1)
            # (n, heads * d) -> (n, heads, d) -> (n, heads)
            products = (fusion.query(z) * key).unflatten(-1, (heads, -1)).sum(-1)
            return products / math.sqrt(x_dim // heads)

        def project_sums(sums: Tensor) -> Tensor:
            # (n, heads * X) -> (n, heads, X) -> (n, heads, heads * d)
            _, value = fusion.key_value(sums.unflatten(-1, (heads, x_dim))).chunk(2, dim=-1)
            # each head uses its own part of the value of its own sum:
            # (n, heads, heads, d) -> (n, d, heads) -> (n, heads * d)
            own = value.unflatten(-1, (heads, -1)).diagonal(dim1=1, dim2=2)
            return fusion.project(own.transpose(1, 2).flatten(1))

        self.main = as_linear(fusion.main, x_dim)
        self.score = as_linear(score, x_dim)
        self.output = as_linear(project_sums, heads * x_dim)

    def forward(self, cells: Float[Tensor, "batch cells in"]) -> Float[Tensor, "batch cells out"]:
        """Return the output for each cell, (B, P, O)."""
        located = cells + sinusoidal_positions(cells.shape[1], cells.shape[2], cells.device)
        weights = self.score(located).softmax(1)  # (B, P, heads)
        # (B, heads, P) x (B, P, X) -> (B, heads * X)
        sums = (weights.transpose(1, 2) @ located).flatten(1)
        y: Tensor = self.main(cells) + self.output(sums).unsqueeze(1)
        return y


# -------------------------------------------------------------------------- extractors and policies


@torch.no_grad()
def encode_one_context(
    extractor: FusionExtractor, context: OneContext, normalize_images: bool
) -> Float[Tensor, " context"]:
    """Encode one context.

    Args:
        extractor: the extractor whose context encoder is used.
        context: one row as the observation holds it.
        normalize_images: divide images by 255.

    Returns:
        z, (Z,).

    Raises:
        ConfigError: if the context does not fit its space, or if it changes at every timestep.
    """
    for module in extractor.context.modules():
        if isinstance(module, GoalContext) and module.relative_to is not None:
            raise ConfigError(
                f"context.relative_to={module.relative_to}: the relative goal changes at every "
                "step, so a policy for one context does not exist; use the policy itself"
            )
    keys = extractor.context.keys
    values: Mapping[str, ArrayLike]
    if isinstance(context, Mapping):
        values = context
    elif len(keys) == 1:
        values = {keys[0]: context}
    else:
        raise ConfigError(
            f"expected the context as a dictionary with the keys {', '.join(keys)}, got "
            f"{type(context).__name__}"
        )
    missing = [key for key in keys if key not in values]
    if missing:
        raise ConfigError(f"expected a context for {', '.join(keys)}, got none for {missing[0]}")
    device = next(extractor.parameters()).device
    batch: dict[str, Tensor] = {}
    for key in keys:
        space = extractor.observation_space[key]
        row = _check_row(key, space, values[key])
        # a batch of one row, because SB3's preprocessing and the encoders take batches
        one_row = torch.as_tensor(row, device=device).unsqueeze(0)
        batch[key] = cast(Tensor, preprocess_obs(one_row, space, normalize_images))
    encoded: Context = extractor.context(batch)
    return encoded.per_row()[0]


def _check_row(key: str, space: spaces.Space[object], value: ArrayLike) -> NDArray[Any]:
    """Return the value of one key as an array, if its space contains it."""
    row = np.asarray(value)
    is_integer = space.dtype is not None and space.dtype.kind in "iu"
    # integers fit a space of floats, but not the other way round
    kinds = "iu" if is_integer else "iuf"
    if row.shape != space.shape or row.dtype.kind not in kinds:
        hint = ""
        if row.dtype.kind == "U":
            hint = "; mirl.envs.tokenize makes token ids of a text"
        raise ConfigError(
            f"expected one context as the observation holds it under '{key}', shape {space.shape} "
            f"of {space.dtype}, got shape {row.shape} of {row.dtype}{hint}"
        )
    if is_integer and not space.contains(row.astype(space.dtype)):
        raise ConfigError(f"expected a context in {space} under '{key}', got {row.tolist()}")
    return row


class SpecializedExtractor(nn.Module):
    """``FusionExtractor`` for one context: raw observations to features (B, features_dim).

    ``forward`` takes batches of arrays as the environment returns them (an image as uint8
    (B, H, W, C), a Discrete key as (B,), and so on). It needs the keys of the inputs only.

    Args:
        extractor: the extractor; it is copied.
        z: the encoded context, (Z,).
        normalize_images: divide images by 255.
    """

    def __init__(
        self, extractor: FusionExtractor, z: Float[Tensor, " context"], normalize_images: bool
    ) -> None:
        super().__init__()
        self.space = extractor.observation_space
        self.normalize_images = normalize_images
        self.keys = extractor.encoder.keys
        self.trunk = copy.deepcopy(extractor)
        # z replaces it
        del self.trunk.context
        if isinstance(extractor.map_fusion, Fusion):
            self.trunk.map_fusion = specialize_fusion(extractor.map_fusion, z)
        if isinstance(extractor.vector_fusion, Fusion):
            self.trunk.vector_fusion = specialize_fusion(extractor.vector_fusion, z)
        self.requires_grad_(False).eval()

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        """Return the features.

        Args:
            observations: raw observations with at least ``keys``.

        Raises:
            ValueError: if a key is missing or has another shape.
        """
        check_keys(self.keys, observations)
        inputs = {}
        for key in self.keys:
            inputs[key] = self._channels_first(key, observations[key])
        preprocessed = preprocess_obs(inputs, self.space, self.normalize_images)
        return self.trunk.fuse(cast(TensorDict, preprocessed), None)

    def _channels_first(self, key: str, raw: Tensor) -> Tensor:
        """Return a key in the shape that SB3 trains on, with the channels of an image first."""
        value = raw
        shape = self.space[key].shape
        if value.ndim == 4 and value.shape[1:] != shape:
            value = value.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        if value.shape[1:] != shape:
            raise ValueError(f"'{key}' expects a batch of shape {shape}, got {tuple(raw.shape)}")
        return value


def check_keys(keys: tuple[str, ...], observations: dict[str, Tensor]) -> None:
    """Check that all keys are present.

    Args:
        keys: keys that are needed.
        observations: a batch of observations.

    Raises:
        ValueError: if a key is missing.
    """
    if any(key not in observations for key in keys):
        raise ValueError(f"expected the keys {', '.join(keys)}, got {', '.join(observations)}")


class SpecializedPolicy(nn.Module):
    """``FusionPolicy`` for one context: raw observations to action parameters and a value (B, 1).

    The parameters are those of the action distribution: logits for discrete actions, the mean for a
    Box (before gSDE's squashing). The observations are those of ``SpecializedExtractor``, with
    ``action_mask`` (B, actions) if the policy masks actions.

    Args:
        policy: the policy; it is copied.
        context: one row as the observation holds it.
        task: index of the task whose value is computed if values are per task and the context is
            not the task.
    """

    def __init__(self, policy: FusionPolicy, context: OneContext, task: int) -> None:
        super().__init__()
        actor = cast(FusionExtractor, policy.pi_features_extractor)
        critic = cast(FusionExtractor, policy.vf_features_extractor)
        normalize_images = policy.normalize_images
        actor_z = encode_one_context(actor, context, normalize_images)
        critic_z = encode_one_context(critic, context, normalize_images)
        self.extractor = SpecializedExtractor(actor, actor_z, normalize_images)
        self.critic_extractor = None
        if critic is not actor:
            self.critic_extractor = SpecializedExtractor(critic, critic_z, normalize_images)
        # if the context is the task, it decides which task's value is computed
        if TASK_KEY in actor.context.keys:
            index = context[TASK_KEY] if isinstance(context, Mapping) else context
            task = int(np.asarray(index))
        mlp = policy.mlp_extractor
        self.actor = _mlp_and_head(mlp.policy_net, policy.action_net, actor_z, task)
        self.critic = _mlp_and_head(mlp.value_net, policy.value_net, critic_z, task)
        self.masks_actions = policy.masks_actions
        self.keys = self.extractor.keys
        if self.masks_actions:
            self.keys = (*self.keys, ACTION_MASK_KEY)
        self.requires_grad_(False).eval()

    def forward(
        self, observations: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch parameters"], Float[Tensor, "batch 1"]]:
        """Return the parameters of the action distribution and the value.

        Args:
            observations: raw observations with at least ``keys``.

        Raises:
            ValueError: if a key is missing or has another shape.
        """
        check_keys(self.keys, observations)
        actor_features = self.extractor(observations)
        critic_features = actor_features
        if self.critic_extractor is not None:
            critic_features = self.critic_extractor(observations)
        parameters = self.actor(actor_features)
        if self.masks_actions:
            parameters = mask_logits(parameters, observations[ACTION_MASK_KEY] != 0)
        return parameters, self.critic(critic_features)


def _mlp_and_head(
    mlp: nn.Module, head: nn.Module, z: Float[Tensor, " context"], task: int
) -> nn.Sequential:
    plain_head = specialize_head(cast(Head, head), z, task)
    # SB3's own layers are still shared with the policy, which stays as it is
    return copy.deepcopy(nn.Sequential(mlp, plain_head))


@torch.no_grad()
def specialize_head(head: Head, z: Float[Tensor, " context"], task: int) -> nn.Module:
    """Return the plain layers that are left of a policy or value head.

    Args:
        head: a head over ``Features``, or SB3's own linear layer.
        z: the encoded context, shape (Z,).
        task: index of the task, for a head with values per task.

    Returns:
        A module of the vector alone.
    """
    match head:
        case nn.Linear():
            return head
        case VectorHead():
            return head.linear
        case FusionHead():
            return specialize_fusion(head.fusion, z)
        case PopArtHead():
            return _specialize_popart(head, z, task)
        case _:
            assert_never(head)


def _specialize_popart(head: PopArtHead, z: Float[Tensor, " context"], task: int) -> nn.Module:
    std = head.std[task]
    weight = head.weight[task].double()
    bias = head.bias[task].double()
    # an initialization of its own would draw from torch's generator
    row = nn.utils.skip_init(
        nn.Linear, weight.numel(), 1, dtype=head.weight.dtype, device=head.weight.device
    )
    # σ (w · h + b) + μ = (σ w) · h + (σ b + μ)
    row.weight.copy_(std * weight)
    row.bias.copy_(std * bias + head.mean[task])
    if head.fusion is None:
        return row
    return nn.Sequential(specialize_fusion(head.fusion, z), nn.ReLU(), row)
