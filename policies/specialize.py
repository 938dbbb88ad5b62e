"""Specialization: fold one fixed context into a network, so that plain layers remain.

With z fixed, most fusions are affine in x: zᵀ𝕎 + V is a single matrix, so the specialized network
costs as much as one without a context. Weights are folded in float64 on the CPU and are copies.
"""

import copy
from collections.abc import Iterator, Mapping
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
from mirl.configs.parts import explain_own_errors, own_place
from mirl.policies.action_mask import mask_logits
from mirl.policies.contexts import GoalContext
from mirl.policies.extractor import FusionExtractor
from mirl.policies.features import Context, join_similarities
from mirl.policies.fusions import Fusion
from mirl.policies.heads import FusionHead, VectorHead
from mirl.policies.policy import FusionPolicy
from mirl.policies.popart import PopArtHead, ScaledHead

Head = nn.Linear | FusionHead | VectorHead | PopArtHead | ScaledHead
"""A policy or value head of ``FusionPolicy``."""
FLOAT64_ERROR = 1e-6
"""Largest difference between a fusion and its specialized form, relative to the largest output."""
FLOAT32_ERROR = 1e-4
"""The same if the specialized form has weights in float32."""
OneContext = ArrayLike | Mapping[str, ArrayLike]
"""One row as in the observation; a dictionary of rows if the context has several keys."""


def specialize(policy: BasePolicy, context: OneContext, task: int = 0) -> "SpecializedPolicy":
    """Return the policy for one context, at the cost of a plain network.

    Args:
        policy: a ``FusionPolicy`` without a memory; it is not changed.
        context: one row as in the observation: token ids of a mission, the index of a task,
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
            f"only policies of PPO and A2C have a specialized form, got {type(policy).__name__}; "
            "mirl.policies.programs.build_program(policy, context) fixes the context of any policy"
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
        extractor: any ``FusionExtractor``; it is not changed.
        context: one row as in the observation: token ids of a mission, the index of a task,
            or a goal; a dictionary of rows if the context has several keys.
        normalize_images: divide images by 255, as the policy of the extractor does.

    Returns:
        A module that computes the features from raw observations; its weights are copies.

    Raises:
        ConfigError: if the context does not fit its space.
    """
    encoded = encode_one_context(extractor, context, normalize_images)
    return SpecializedExtractor(extractor, encoded, normalize_images)


# ------------------------------------------------------------------------------------------ fusions


@torch.no_grad()
def specialize_fusion(fusion: Fusion, context: Context) -> nn.Module:
    """Return y = f(x, z) for one z as a module of x only.

    Args:
        fusion: f; it is not changed.
        context: one encoded context: z as (1, Z), and its words if it is a text.

    Returns:
        A module that maps x of shape (B, X) or (B, P, X) to y; its weights are copies.

    Raises:
        ConfigError: if the fusion is of a class without a specialized form, or if that form
            computes another function.
    """
    # in float64 the rounding errors of folding stay below the precision of float32
    in_float64 = copy.deepcopy(fusion).cpu().double().eval()
    one = _in_float64(context)
    folded = in_float64.specialize(in_float64.choose_context(one.values, one.words))
    # a custom class may build layers of torch's default dtype, float32, which rounds more
    max_error = FLOAT64_ERROR
    if any(weight.dtype == torch.float32 for weight in _weights(folded)):
        max_error = FLOAT32_ERROR
    folded = folded.double()
    _check_same_function(in_float64, folded, one, max_error)
    values = context.values
    return folded.to(device=values.device, dtype=values.dtype).requires_grad_(False).eval()


def _in_float64(context: Context) -> Context:
    """Return a context without groups in float64 on the CPU."""
    return context.map(lambda vectors: vectors.detach().cpu().double())


def _weights(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _check_same_function(
    fusion: Fusion, folded: nn.Module, context: Context, max_error: float
) -> None:
    """Raise if a specialized form, which may be custom, differs from its fusion."""
    # a separate generator leaves torch's global one unchanged
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, fusion.features_dim, dtype=torch.float64, generator=generator)
    expected = fusion(x, *context)
    fusion_class = type(fusion)
    name = f"{fusion_class.__module__}:{fusion_class.__qualname__}.specialize"
    must_return = f"specialize(z) must return a module of x (B, P, {fusion.features_dim}) alone"
    with explain_own_errors(
        fusion_class, "specialize", lambda: f"returns a module that was called; {must_return}"
    ):
        got: object = folded(x)
    place = own_place(fusion_class, "specialize")
    if not isinstance(got, Tensor):
        raise ConfigError(
            f"{name} returns a module that returns {type(got).__name__}{place}; {must_return}, "
            "which returns a tensor"
        )
    if got.dtype != expected.dtype:  # it computes in float32, whatever it is given
        max_error = FLOAT32_ERROR
    tolerance = max_error * max(1.0, expected.abs().max().item())
    if got.shape != expected.shape or not torch.allclose(
        got.double(), expected, rtol=0, atol=tolerance, equal_nan=True
    ):
        raise ConfigError(
            f"{name}(z) returns a module of another function than the fusion itself{place}; mend "
            "the method, or use the policy as it is"
        )


# -------------------------------------------------------------------------- extractors and policies


@torch.no_grad()
def encode_one_context(
    extractor: FusionExtractor, context: OneContext, normalize_images: bool
) -> Context:
    """Encode one context.

    Args:
        extractor: the extractor whose context encoder is used.
        context: one row as in the observation.
        normalize_images: divide images by 255.

    Returns:
        The encoded context, with z as (1, Z).

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
    if any(key not in values for key in keys):
        raise ConfigError(
            f"expected a context for {', '.join(keys)}, got one for {', '.join(values) or 'none'}"
        )
    device = next(extractor.parameters()).device
    batch: dict[str, Tensor] = {}
    for key in keys:
        space = extractor.observation_space[key]
        row = _check_row(key, space, values[key])
        # a batch of one row, because SB3's preprocessing and the encoders take batches
        one_row = torch.as_tensor(row, device=device).unsqueeze(0)
        batch[key] = cast(Tensor, preprocess_obs(one_row, space, normalize_images))
    encoded: Context = extractor.context(batch)
    return encoded.ungrouped()


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
    (B, H, W, C), a Discrete key as (B,), and so on). It only needs the keys of the inputs.

    Args:
        extractor: the extractor; it is copied.
        context: the encoded context, with z as (1, Z).
        normalize_images: divide images by 255.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies import FusionExtractor, specialize_extractor
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> specialized = specialize_extractor(FusionExtractor(space), [0.5, 1.0])  # one goal
        >>> specialized.keys
        ('observation',)
        >>> specialized({"observation": torch.zeros(5, 3)}).shape
        torch.Size([5, 128])
    """

    def __init__(
        self, extractor: FusionExtractor, context: Context, normalize_images: bool
    ) -> None:
        super().__init__()
        self.space = extractor.observation_space
        self.normalize_images = normalize_images
        self.keys = extractor.encoder.keys
        self.trunk = copy.deepcopy(extractor)
        # the encoded context replaces it
        del self.trunk.context
        if isinstance(extractor.map_fusion, Fusion):
            self.trunk.map_fusion = specialize_fusion(extractor.map_fusion, context)
        if isinstance(extractor.vector_fusion, Fusion):
            self.trunk.vector_fusion = specialize_fusion(extractor.vector_fusion, context)
        self.requires_grad_(False).eval()

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        """Return the features.

        Args:
            observations: raw observations with at least ``keys``.

        Raises:
            ValueError: if a key is missing or has another shape.
        """
        return self.encode(observations)[0]

    def encode(
        self, observations: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch similarities"] | None]:
        """Return the features, and the similarities of the cells if the heads read them.

        Args:
            observations: raw observations with at least ``keys``.

        Raises:
            ValueError: if a key is missing or has another shape.
        """
        check_keys(self.keys, observations)
        inputs = {}
        for key in self.keys:
            inputs[key] = channels_first(key, observations[key], self.space)
        preprocessed = preprocess_obs(inputs, self.space, self.normalize_images)
        return self.trunk.fuse(cast(TensorDict, preprocessed), None)


def channels_first(key: str, raw: Tensor, space: spaces.Dict) -> Tensor:
    """Return a key in the shape that SB3 trains on, with the channels of an image first.

    Args:
        key: the key.
        raw: its values as the environment returns them, (B, *shape) or (B, H, W, C).
        space: the space that the policy was built for.

    Returns:
        The values, (B, *shape).

    Raises:
        ValueError: if they have another shape.
    """
    value = raw
    shape = space[key].shape
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
        context: one row as in the observation.
        task: index of the task whose value is computed if values are per task and the context is
            not the task.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict, Discrete
        >>> from mirl.policies import FusionPolicy, specialize
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> policy = FusionPolicy(space, Discrete(4), lambda _: 3e-4)
        >>> specialized = specialize(policy, [0.5, 1.0])  # one goal
        >>> logits, values = specialized({"observation": torch.zeros(5, 3)})
        >>> logits.shape, values.shape
        (torch.Size([5, 4]), torch.Size([5, 1]))
    """

    def __init__(self, policy: FusionPolicy, context: OneContext, task: int) -> None:
        super().__init__()
        actor = cast(FusionExtractor, policy.pi_features_extractor)
        critic = cast(FusionExtractor, policy.vf_features_extractor)
        normalize_images = policy.normalize_images
        actor_context = encode_one_context(actor, context, normalize_images)
        critic_context = encode_one_context(critic, context, normalize_images)
        self.extractor = SpecializedExtractor(actor, actor_context, normalize_images)
        self.critic_extractor = None
        if critic is not actor:
            self.critic_extractor = SpecializedExtractor(critic, critic_context, normalize_images)
        # if the context is the task, it decides which task's value is computed
        if TASK_KEY in actor.context.keys:
            index = context[TASK_KEY] if isinstance(context, Mapping) else context
            task = int(np.asarray(index))
        mlp = policy.mlp_extractor
        self.actor = _mlp_and_head(mlp.policy_net, policy.action_net, actor_context, task)
        self.critic = _mlp_and_head(mlp.value_net, policy.value_net, critic_context, task)
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
        actor_features = self.extractor.encode(observations)
        critic_features = actor_features
        if self.critic_extractor is not None:
            critic_features = self.critic_extractor.encode(observations)
        parameters = self.actor(*actor_features)
        if self.masks_actions:
            parameters = mask_logits(parameters, observations[ACTION_MASK_KEY] != 0)
        return parameters, self.critic(*critic_features)


class MlpAndHead(nn.Module):
    """MLP and a plain head, which also reads the similarities of cells if there are any.

    Args:
        mlp: the MLP of the actor or of the critic.
        head: its head, without a fusion.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from mirl.policies.specialize import MlpAndHead
        >>> network = MlpAndHead(nn.Linear(8, 16), nn.Linear(16 + 3, 4))
        >>> network(torch.zeros(5, 8), similarities=torch.zeros(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(self, mlp: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.head = head

    def forward(
        self,
        features: Float[Tensor, "batch features"],
        similarities: Float[Tensor, "batch similarities"] | None,
    ) -> Float[Tensor, "batch out"]:
        """Return the output of the head, (B, O)."""
        y: Tensor = self.head(join_similarities(self.mlp(features), similarities))
        return y


class _Multiply(nn.Module):
    """Multiply by a constant.

    Args:
        factor: the constant, a scalar.
    """

    factor: Float[Tensor, ""]

    def __init__(self, factor: Float[Tensor, ""]) -> None:
        super().__init__()
        self.register_buffer("factor", factor.float())

    def forward(self, values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the products, of the same shape."""
        return self.factor * values


def _mlp_and_head(mlp: nn.Module, head: nn.Module, context: Context, task: int) -> MlpAndHead:
    plain_head = specialize_head(cast(Head, head), context, task)
    # SB3's own layers are still shared with the policy, which must not change
    return copy.deepcopy(MlpAndHead(mlp, plain_head))


@torch.no_grad()
def specialize_head(head: Head, context: Context, task: int) -> nn.Module:
    """Return a policy or value head for one context, as plain layers.

    Args:
        head: a head over ``Features``, or SB3's own linear layer.
        context: the encoded context, with z as (1, Z).
        task: index of the task, for a head with values per task.

    Returns:
        A module whose only input is the vector.
    """
    match head:
        case nn.Linear():
            return head
        case VectorHead():
            return head.linear
        case FusionHead():
            return specialize_fusion(head.fusion, context)
        case PopArtHead():
            return _specialize_popart(head, context, task)
        case ScaledHead():
            plain = specialize_head(cast(Head, head.head), context, task)
            return nn.Sequential(plain, _Multiply(head.unit))
        case _:
            assert_never(head)


def _specialize_popart(head: PopArtHead, context: Context, task: int) -> nn.Module:
    std = head.std[task]
    weight = head.weight[task].double()
    bias = head.bias[task].double()
    # without initialization, which would draw from torch's generator
    row = nn.utils.skip_init(
        nn.Linear, weight.numel(), 1, dtype=head.weight.dtype, device=head.weight.device
    )
    # σ (w · h + b) + μ = (σ w) · h + (σ b + μ)
    row.weight.copy_(std * weight)
    row.bias.copy_(std * bias + head.mean[task])
    if head.fusion is None:
        return row
    return nn.Sequential(specialize_fusion(head.fusion, context), nn.ReLU(), row)
