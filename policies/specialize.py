"""Specialization: fold one fixed context into a network, so that plain layers remain.

With z fixed, most fusions are affine in x: zᵀ𝕎 + V is a single matrix, so the specialized network
costs as much as one without a context. Weights are folded in float64 on the CPU and are copies.
"""

import copy
import math
from collections.abc import Callable
from typing import assert_never, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.policies.action_mask import mask_logits
from mirl.policies.contexts import GoalContext
from mirl.policies.extractor import FusionExtractor
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


def specialize(policy: BasePolicy, context: ArrayLike, task: int = 0) -> "SpecializedPolicy":
    """Return the policy for one context, at the cost of a plain network.

    Args:
        policy: a ``FusionPolicy`` without a memory; it is left as it is.
        context: one row as the observation holds it: token ids of a mission, the index of a task,
            or a goal.
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
    extractor: FusionExtractor, context: ArrayLike, *, normalize_images: bool = True
) -> "SpecializedExtractor":
    """Return the features extractor for one context, without a context encoder or fusions.

    Args:
        extractor: any ``FusionExtractor``; it is left as it is.
        context: one row as the observation holds it: token ids of a mission, the index of a task,
            or a goal.
        normalize_images: divide images by 255, as the policy of the extractor does.

    Returns:
        A module that computes the features from raw observations; its weights are copies.

    Raises:
        ConfigError: if the context does not fit its space.
    """
    z = encode_one_context(extractor, context, normalize_images)
    return SpecializedExtractor(extractor, z, normalize_images)


# ---------------------------------------------------------------------------------------------------------- fusions


@torch.no_grad()
def specialize_fusion(fusion: Fusion, z: Float[Tensor, " context"]) -> nn.Module:
    """y = f(x, z) for this one z, as a module of x alone: (B, X), or (B, P, X) for positions."""
    in_float64 = copy.deepcopy(fusion).cpu().double()
    folded = fold(in_float64, z.detach().cpu().double().unsqueeze(0))
    return folded.to(device=z.device, dtype=z.dtype).requires_grad_(False).eval()


def fold(fusion: Fusion, z: Float[Tensor, "1 context"]) -> nn.Module:
    """The form of each member that is left when z is known."""
    x_dim = fusion.features_dim
    match fusion:
        case Concat(project=None) | Bilinear() | LowRank() | Hyper() | Film():
            return as_linear(lambda x: fusion(x.unsqueeze(0), z).squeeze(0), x_dim)
        case Concat(project=Affine() as project):
            hidden = as_linear(lambda x: fusion.main(x) + fusion.shift(z), x_dim)
            return nn.Sequential(hidden, nn.ReLU(), as_linear(project, hidden.out_features))
        case Gate():
            gate = as_linear(lambda x: fusion.gate_features(x) + fusion.gate_context(z), x_dim)
            return Product(nn.Sequential(gate, nn.Sigmoid()), as_linear(fusion.main, x_dim))
        case AttentionMask():
            bound, scale = (nn.Softmax(-1), x_dim) if fusion.simplex else (nn.Sigmoid(), 1)
            mask = nn.Sequential(fold(fusion.to_mask, z), bound)
            return nn.Sequential(
                Product(mask, nn.Identity()), as_linear(lambda x: fusion.main(scale * x), x_dim)
            )
        case MetricSimilarity():
            return Distances(fusion, z)
        case CrossAttention():
            return CellReader(fusion, z)
        case _:
            raise TypeError(f"{type(fusion).__name__} has no specialized form")


def as_linear(f: Callable[[Tensor], Tensor], in_dim: int) -> nn.Linear:
    """An affine map of (n, in_dim) in float64 as a plain layer, read off at zero and at the unit vectors."""
    points = torch.cat([torch.zeros(1, in_dim), torch.eye(in_dim)]).double()
    at_zero, at_units = f(points).split([1, in_dim])
    # a start of its own would draw from torch's generator
    linear = cast(
        nn.Linear, nn.utils.skip_init(nn.Linear, in_dim, at_zero.shape[1], dtype=torch.float64)
    )
    linear.weight.copy_((at_units - at_zero).T)
    linear.bias.copy_(at_zero.squeeze(0))
    return linear


class Product(nn.Module):
    """y = a(x) ⊙ b(x)."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y: Tensor = self.a(x) * self.b(x)
        return y


class Distances(nn.Module):
    """``MetricSimilarity`` of one z: the inner products are affine in x and join V x + b, the distances remain.

    y = linear(x) + read(‖A_k x − B_k z‖² for every k)
    """

    def __init__(self, fusion: MetricSimilarity, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        self.projections = fusion.projections
        read_inner, read_distances = fusion.output.weight.split(fusion.projections)

        def inner(x: Tensor) -> Tensor:
            return fusion.similarities(x.unsqueeze(0), z, None)[0, :, : fusion.projections]

        self.linear = as_linear(
            lambda x: fusion.main(x) + inner(x) @ read_inner, fusion.features_dim
        )
        self.apart = as_linear(
            lambda x: fusion.project_features(x) - fusion.project_context(z), fusion.features_dim
        )
        self.output = as_linear(lambda distances: distances @ read_distances, fusion.projections)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        distances = self.apart(x).unflatten(-1, (self.projections, -1)).square().sum(-1)
        y: Tensor = self.linear(x) + self.output(distances)
        return y


class CellReader(nn.Module):
    """``CrossAttention`` of one z: q(z) · k(x_j) / √d is affine in the cell, and so is P v of what a head has read.

    y_i = main(x_i) + read(Σ_j softmax_j(score(x_j)) x_j for every head)
    """

    def __init__(self, fusion: CrossAttention, z: Float[Tensor, "1 context"]) -> None:
        super().__init__()
        x_dim, heads = fusion.features_dim, fusion.heads

        def score(x: Tensor) -> Tensor:
            key, _ = fusion.key_value(x).chunk(2, dim=-1)
            return (fusion.query(z) * key).unflatten(-1, (heads, -1)).sum(-1) / math.sqrt(
                x_dim // heads
            )

        def read(located: Tensor) -> Tensor:
            _, value = fusion.key_value(located.unflatten(-1, (heads, x_dim))).chunk(2, dim=-1)
            own = value.unflatten(-1, (heads, -1)).diagonal(
                dim1=1, dim2=2
            )  # a head's part of what that head has read
            return fusion.project(own.transpose(1, 2).flatten(1))

        self.main = as_linear(fusion.main, x_dim)
        self.score = as_linear(score, x_dim)
        self.output = as_linear(read, heads * x_dim)

    def forward(self, cells: Float[Tensor, "batch cells in"]) -> Float[Tensor, "batch cells out"]:
        located = cells + sinusoidal_positions(cells.shape[1], cells.shape[2], cells.device)
        weights = self.score(located).softmax(1)  # (B, P, heads)
        y: Tensor = self.main(cells) + self.output(
            (weights.transpose(1, 2) @ located).flatten(1)
        ).unsqueeze(1)
        return y


# ------------------------------------------------------------------------------------------- extractors and policies


@torch.no_grad()
def encode_one_context(
    extractor: FusionExtractor, context: ArrayLike, normalize_images: bool
) -> Float[Tensor, " context"]:
    """z of one row of the context's key, as the observation holds it.

    :raises ConfigError: when the row does not fit its space.
    """
    key = extractor.routing.context
    if isinstance(extractor.context, GoalContext) and extractor.context.relative_to is not None:
        raise ConfigError(
            "a goal that is relative to what is achieved changes at every step: no policy for it alone"
        )
    space, row = extractor.observation_space[key], np.asarray(context)
    whole = space.dtype is not None and space.dtype.kind in "iu"
    if row.shape != space.shape or row.dtype.kind not in ("iu" if whole else "iuf"):
        hint = "; mirl.envs.tokenize makes token ids of a text" if row.dtype.kind == "U" else ""
        raise ConfigError(
            f"expected one context as the observation holds it under '{key}', shape {space.shape} of {space.dtype}, "
            f"got shape {row.shape} of {row.dtype}{hint}"
        )
    if whole and not space.contains(row.astype(space.dtype)):
        raise ConfigError(f"expected a context in {space} under '{key}', got {row.tolist()}")
    device = next(extractor.parameters()).device
    observed = preprocess_obs(
        torch.as_tensor(row, device=device).unsqueeze(0), space, normalize_images
    )
    z: Tensor = extractor.context(observed).per_row()[0]
    return z


class SpecializedExtractor(nn.Module):
    """``FusionExtractor`` for one context: raw observations → features (B, features_dim).

    ``forward`` takes tensors as the environment gives their arrays (an image as uint8 (B, H, W, C), a Discrete key as
    (B,) …), the keys that are seen and no context; others are not read.
    """

    def __init__(
        self, extractor: FusionExtractor, z: Float[Tensor, " context"], normalize_images: bool
    ) -> None:
        super().__init__()
        self.space, self.normalize_images = extractor.observation_space, normalize_images
        image = extractor.routing.image
        self.keys = (*(() if image is None else (image,)), *extractor.routing.others)
        self.trunk = copy.deepcopy(extractor)
        del self.trunk.context
        for site in ("map_fusion", "vector_fusion"):
            if isinstance(fusion := getattr(extractor, site), Fusion):
                setattr(self.trunk, site, specialize_fusion(fusion, z))
        self.requires_grad_(False).eval()

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        check_keys(self.keys, observations)
        seen = {key: self._as_trained(key, observations[key]) for key in self.keys}
        return self.trunk.fuse(
            cast(dict[str, Tensor], preprocess_obs(seen, self.space, self.normalize_images)), None
        )

    def _as_trained(self, key: str, given: Tensor) -> Tensor:
        value, shape = given, self.space[key].shape
        if value.ndim == 4 and value.shape[1:] != shape:
            value = value.permute(
                0, 3, 1, 2
            )  # (B, H, W, C) -> (B, C, H, W), in which SB3 trains on pixels
        if value.shape[1:] != shape:
            raise ValueError(f"'{key}' expects a batch of shape {shape}, got {tuple(given.shape)}")
        return value


def check_keys(keys: tuple[str, ...], observations: dict[str, Tensor]) -> None:
    """:raises ValueError: when one of the keys is missing."""
    if any(key not in observations for key in keys):
        raise ValueError(f"expected the keys {', '.join(keys)}, got {', '.join(observations)}")


class SpecializedPolicy(nn.Module):
    """``FusionPolicy`` for one context: raw observations → parameters of the action distribution, and value (B, 1).

    The parameters are what the distribution is made from: logits for discrete actions, the mean for a ``Box`` (before
    gSDE's squashing). Observations are those of ``SpecializedExtractor``, with ``action_mask`` (B, actions) if the
    policy masks.

    :param task: whose value it is, where values are per task (PopArt) and the context is another than the task.
    """

    def __init__(self, policy: FusionPolicy, context: ArrayLike, task: int) -> None:
        super().__init__()
        actor, critic = (
            cast(FusionExtractor, extractor)
            for extractor in (policy.pi_features_extractor, policy.vf_features_extractor)
        )
        z_actor, z_critic = (
            encode_one_context(each, context, policy.normalize_images) for each in (actor, critic)
        )
        self.extractor = SpecializedExtractor(actor, z_actor, policy.normalize_images)
        self.critic_extractor = (
            None
            if critic is actor
            else SpecializedExtractor(critic, z_critic, policy.normalize_images)
        )
        if actor.routing.context == TASK_KEY:
            task = int(np.asarray(context))
        self.actor = _mlp_and_head(
            policy.mlp_extractor.policy_net, policy.action_net, z_actor, task
        )
        self.critic = _mlp_and_head(
            policy.mlp_extractor.value_net, policy.value_net, z_critic, task
        )
        self.masks_actions = policy.masks_actions
        self.keys = (*self.extractor.keys, *((ACTION_MASK_KEY,) if self.masks_actions else ()))
        self.requires_grad_(False).eval()

    def forward(
        self, observations: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch parameters"], Float[Tensor, "batch 1"]]:
        check_keys(self.keys, observations)
        features = self.extractor(observations)
        features_of_critic = (
            features if self.critic_extractor is None else self.critic_extractor(observations)
        )
        parameters = self.actor(features)
        if self.masks_actions:
            parameters = mask_logits(parameters, observations[ACTION_MASK_KEY] != 0)
        return parameters, self.critic(features_of_critic)


def _mlp_and_head(
    mlp: nn.Module, head: nn.Module, z: Float[Tensor, " context"], task: int
) -> nn.Sequential:
    specialized = specialize_head(cast(Head, head), z, task)
    return copy.deepcopy(nn.Sequential(mlp, specialized))


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
    deviation = head.deviation[task]
    weight = head.weight[task].double()
    bias = head.bias[task].double()
    # an initialization of its own would draw from torch's generator
    row = nn.utils.skip_init(
        nn.Linear, weight.numel(), 1, dtype=head.weight.dtype, device=head.weight.device
    )
    row.weight.copy_(deviation * weight)
    row.bias.copy_(deviation * bias + head.mean[task])
    if head.fusion is None:
        return row
    return nn.Sequential(specialize_fusion(head.fusion, z), nn.ReLU(), row)
