"""Fusions, extractors and policies for one context: what depends on it alone is computed once, and plain layers remain.

With z fixed, most of the family is affine in x: zᵀ𝕎 + V is one matrix, so that deploying one task costs what a network
costs that never heard of tasks. Weights are folded in float64 on the CPU, and are copies.
"""

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import ArrayLike
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, TASK_KEY
from mirl.policies.action_mask import mask_logits
from mirl.policies.contexts import GoalContext
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
    Metric,
)
from mirl.policies.positions import sinusoidal_positions

if TYPE_CHECKING:  # they import this module
    from mirl.policies.extractor import FusionExtractor
    from mirl.policies.policy import FusionPolicy


# ---------------------------------------------------------------------------------------------------------- fusions


@torch.no_grad()
def specialise_fusion(fusion: Fusion, z: Float[Tensor, " context"]) -> nn.Module:
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
        case Metric():
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
    """``Metric`` of one z: the inner products are affine in x and join V x + b, the distances remain.

    y = linear(x) + read(‖A_k x − B_k z‖² for every k)
    """

    def __init__(self, fusion: Metric, z: Float[Tensor, "1 context"]) -> None:
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
    extractor: "FusionExtractor", context: ArrayLike, normalize_images: bool
) -> Float[Tensor, " context"]:
    """z of one row of the context's key, as the observation holds it.

    :raises ConfigError: when the row does not fit its space.
    """
    key = extractor.routing.context
    if isinstance(extractor.context, GoalContext) and extractor.context.relative_to is not None:
        raise ConfigError(
            "a goal that is relative to what is achieved changes at every step: no policy for it alone"
        )
    space, row = observation_space_of(extractor)[key], np.asarray(context)
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


def observation_space_of(extractor: "FusionExtractor") -> spaces.Dict:
    """The space that an extractor was built for."""
    return cast(spaces.Dict, extractor._observation_space)


class SpecialisedExtractor(nn.Module):
    """``FusionExtractor`` for one context: raw observations → features (B, features_dim).

    ``forward`` takes tensors as the environment gives their arrays (an image as uint8 (B, H, W, C), a Discrete key as
    (B,) …), the keys that are seen and no context; others are not read.
    """

    def __init__(
        self, extractor: "FusionExtractor", z: Float[Tensor, " context"], normalize_images: bool
    ) -> None:
        super().__init__()
        self.space, self.normalize_images = observation_space_of(extractor), normalize_images
        image = extractor.routing.image
        self.keys = (*(() if image is None else (image,)), *extractor.routing.others)
        self.trunk = copy.deepcopy(extractor)
        del self.trunk.context
        for site in ("map_fusion", "vector_fusion"):
            if isinstance(fusion := getattr(extractor, site), Fusion):
                setattr(self.trunk, site, specialise_fusion(fusion, z))
        self.requires_grad_(False).eval()

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        check_keys(self.keys, observations)
        seen = {key: self._as_trained(key, observations[key]) for key in self.keys}
        return self.trunk.fuse(
            cast(dict[str, Tensor], preprocess_obs(seen, self.space, self.normalize_images))
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


class SpecialisedPolicy(nn.Module):
    """``FusionPolicy`` for one context: raw observations → parameters of the action distribution, and value (B, 1).

    The parameters are what the distribution is made from: logits for discrete actions, the mean for a ``Box`` (before
    gSDE's squashing). Observations are those of ``SpecialisedExtractor``, with ``action_mask`` (B, actions) if the
    policy masks.

    :param task: whose value it is, where values are per task (PopArt) and the context is another than the task.
    """

    def __init__(self, policy: "FusionPolicy", context: ArrayLike, task: int) -> None:
        super().__init__()
        actor, critic = (
            cast("FusionExtractor", extractor)
            for extractor in (policy.pi_features_extractor, policy.vf_features_extractor)
        )
        z_actor, z_critic = (
            encode_one_context(each, context, policy.normalize_images) for each in (actor, critic)
        )
        self.extractor = SpecialisedExtractor(actor, z_actor, policy.normalize_images)
        self.critic_extractor = (
            None
            if critic is actor
            else SpecialisedExtractor(critic, z_critic, policy.normalize_images)
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


class Specializable(Protocol):
    """A policy or value head over ``Features``."""

    def specialize(self, z: Float[Tensor, " context"], task: int) -> nn.Module:
        """What is left of it for one context and one task: a module of the vector alone."""


def _mlp_and_head(
    mlp: nn.Module, head: nn.Module, z: Float[Tensor, " context"], task: int
) -> nn.Sequential:
    plain = head if isinstance(head, nn.Linear) else cast(Specializable, head).specialize(z, task)
    return copy.deepcopy(nn.Sequential(mlp, plain))
