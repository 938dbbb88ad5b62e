"""Context encoders: what the agent is asked to do, as a vector z.

A batch has few distinct contexts. Each encoder returns every distinct context once, together with
an index of the rows, so that everything that depends only on the context is computed once per
distinct context.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, TypeGuard

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AnyContextConfig,
    CombinedContextConfig,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MissionContextConfig,
    RawContextConfig,
    TaskIdContextConfig,
)
from mirl.configs.parts import Method, Part, PartConfig
from mirl.policies.encoders import (
    CellsEncoder,
    GridEncoder,
    ImageEncoder,
    flattened_dim,
    in_float32,
    is_text,
    reads_pixels,
    space_text,
)
from mirl.policies.features import (
    Context,
    Observations,
    UniqueRows,
    each_word,
    is_word,
    unique_rows,
)
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.running_norm import RunningNorm
from mirl.policies.text.words import EncodedTexts, build_mission_encoder

CONTEXT_BUCKET = 8
"""Distinct missions are padded to a multiple of this number, because oneDNN compiles and caches one
kernel per shape."""


class ContextEncoder(Part, nn.Module, ABC):
    """Base class of the context encoders: observations to a ``Context``.

    The constructor of a subclass takes the observation space, a Dict, and the config of the
    encoder, and sets ``keys`` and ``out_dim``.

    Examples:
        A custom context encoder has ``keys`` and ``out_dim`` (``docs/extending/context.md``):

        >>> import torch
        >>> from mirl.policies.contexts import ContextEncoder
        >>> from mirl.policies.features import Context
        >>> class Unchanged(ContextEncoder):
        ...     keys = ("goal",)
        ...     out_dim = 2
        ...
        ...     def forward(self, observations):
        ...         return Context(observations["goal"], groups=None)
        >>> Unchanged()({"goal": torch.tensor([[0.5, 1.0]])}).values.tolist()
        [[0.5, 1.0]]
    """

    Config: ClassVar[type[PartConfig]] = AnyContextConfig
    must_set = ("keys", "out_dim")
    explained_methods: ClassVar[Mapping[str, Method]] = {
        "update_statistics": Method(
            "is given (observations), a batch as forward takes it, and returns nothing"
        ),
    }

    keys: tuple[str, ...]
    """Observation keys that the encoder reads as the context."""
    out_dim: int
    """Z, the size of the context."""

    @property
    def grouped_key(self) -> str | None:
        """Key that may be given as ``UniqueRows``, because a batch has few distinct values of it.

        None if there is no such key, as for continuous goals.
        """
        return None

    @abstractmethod
    def forward(self, observations: Observations) -> Context:
        """Encode the contexts of a batch.

        Args:
            observations: the keys of the space, preprocessed by SB3. The value of ``grouped_key``
                may also be ``UniqueRows``.

        Returns:
            Values (G, Z), one row per distinct context, and the context of each row of the batch;
            or values (B, Z) without groups, one per row.
        """

    def update_statistics(self, observations: Observations) -> None:
        """Update running statistics of the context, if the encoder has any.

        Args:
            observations: a batch, as ``forward`` takes it.
        """


def get_task_ids(
    task: Float[Tensor, "batch ..."] | UniqueRows, n_tasks: int
) -> Int[Tensor, " batch"]:
    """Return the task index of each row.

    Args:
        task: the one-hot key, which SB3 gives as (B, n) in rollouts and as (B, 1, n) in
            minibatches; or its distinct indices.
        n_tasks: n, the number of tasks.

    Returns:
        The task indices, (B,).
    """
    if isinstance(task, UniqueRows):
        return task.rows.long().flatten().index_select(0, task.groups.index)
    # (B, n) or (B, 1, n) -> (B, n) -> (B,)
    return task.reshape(task.shape[0], n_tasks).argmax(-1)


class TaskIdContext(ContextEncoder):
    """Context z = relu(MLP(one-hot task id)); without hidden layers, the one-hot id itself.

    Args:
        space: the observation space, with a Discrete under ``config.key``.
        config: options of the context.

    Raises:
        ConfigError: if the space under the key is not Discrete.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020, in the
        multitask experiments.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Dict, Discrete
        >>> from mirl.configs.networks import TaskIdContextConfig
        >>> from mirl.policies.contexts import TaskIdContext
        >>> encoder = TaskIdContext(Dict(task=Discrete(3)), TaskIdContextConfig(hidden=()))
        >>> task = torch.eye(3)[[2, 0]]  # SB3 gives the ids one-hot
        >>> encoder({"task": task}).per_row().tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    Config = TaskIdContextConfig

    def __init__(self, space: spaces.Dict, config: TaskIdContextConfig) -> None:
        super().__init__()
        subspace = space[config.key]
        if not isinstance(subspace, spaces.Discrete):
            raise ConfigError(
                f"context=task_id needs a Discrete space under '{config.key}', got "
                f"{space_text(subspace)}; "
                "use context=auto"
            )
        self.keys = (config.key,)
        self.n_tasks = int(subspace.n)
        self.average_over: Sequence[int] | None = None
        """Tasks whose mean context replaces every task's own, for few-shot adaptation."""
        sizes = [self.n_tasks]
        # without hidden layers the MLP below stays empty and returns the one-hot id
        if config.hidden:
            sizes += [*config.hidden, config.dim]
        self.out_dim = sizes[-1]
        self.mlp = nn.Sequential()
        for in_size, out_size in pairwise(sizes):
            self.mlp.append(nn.Linear(in_size, out_size))
            self.mlp.append(nn.ReLU())

    @property
    def grouped_key(self) -> str:
        """Key of the task id."""
        return self.keys[0]

    def forward(self, observations: Observations) -> Context:
        """Encode the task ids.

        Args:
            observations: the task id under its key, one-hot (B, n) or (B, 1, n), or its distinct
                indices.

        Returns:
            The encoded tasks: all of them, or the distinct ones if they are given.
        """
        task = observations[self.keys[0]]
        if not isinstance(task, UniqueRows):
            index = get_task_ids(task, self.n_tasks)
            # encoding all n tasks costs less than a search for those in the batch
            all_tasks = torch.arange(self.n_tasks, device=index.device)
            task = UniqueRows(all_tasks, ContextGroups(index, self.n_tasks))
        one_hot = F.one_hot(task.rows.long().flatten(), self.n_tasks).float()
        values = self.mlp(one_hot)
        if self.average_over is not None:
            every_task = torch.eye(self.n_tasks, device=one_hot.device)
            # (trained tasks, Z) -> (rows, Z)
            mean = self.mlp(every_task)[list(self.average_over)].mean(0)
            values = mean.expand_as(values)
        return Context(values, task.groups)


class MissionContext(ContextEncoder):
    """Context z = LayerNorm(encoder(mission)); each distinct mission is encoded once.

    The normalization is an option.

    Args:
        space: the observation space, with a Box of integers (length,) under ``config.key``.
        config: options of the context.

    Raises:
        ConfigError: if the space under the key is not one of token ids.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Dict
        >>> from mirl.configs.networks import MissionContextConfig
        >>> from mirl.envs import mission_space, tokenize
        >>> from mirl.policies.contexts import MissionContext
        >>> encoder = MissionContext(Dict(mission=mission_space()), MissionContextConfig(dim=16))
        >>> tokens = torch.as_tensor(tokenize("go to the red door")).expand(5, -1)
        >>> encoder({"mission": tokens}).per_row().shape
        torch.Size([5, 16])
    """

    Config = MissionContextConfig

    def __init__(self, space: spaces.Dict, config: MissionContextConfig) -> None:
        super().__init__()
        subspace = space[config.key]
        if not has_token_ids(subspace):
            raise ConfigError(
                "context=mission needs token ids, a Box of integers (length,), under "
                f"'{config.key}' (mirl.envs.ContractObservation makes them of a text), got "
                f"{space_text(subspace)}; use context=auto"
            )
        self.keys = (config.key,)
        self.out_dim = config.dim
        self.words = build_mission_encoder(int(subspace.high.max()) + 1, config)
        self.norm: nn.Module = nn.Identity()
        if config.norm:
            self.norm = nn.LayerNorm(config.dim)

    @property
    def grouped_key(self) -> str:
        """Key of the mission."""
        return self.keys[0]

    def forward(self, observations: Observations) -> Context:
        """Encode the missions.

        Args:
            observations: token ids under their key, (B, length), padded with 0; or the distinct
                missions.

        Returns:
            The distinct missions, encoded; padded to a multiple of ``CONTEXT_BUCKET``.
        """
        tokens = observations[self.keys[0]]
        if torch.compiler.is_exporting():
            # the number of distinct missions depends on data; shapes of exported programs cannot
            assert isinstance(tokens, Tensor), "programs take no UniqueRows"
            each: EncodedTexts = self.words(tokens.long())
            return Context(self.norm(each.texts), None, each.words)
        distinct = tokens if isinstance(tokens, UniqueRows) else unique_rows(tokens.long())
        # drop the columns that are padding in every mission, but keep one for empty missions
        used_columns = (distinct.rows != 0).any(0).nonzero()
        longest = 1
        if len(used_columns):
            longest = int(used_columns[-1]) + 1
        # -n % k is the distance from n to the next multiple of k
        missing = -len(distinct.rows) % CONTEXT_BUCKET
        # (missions, length) -> (missions + missing, longest)
        padded = F.pad(distinct.rows[:, :longest].long(), (0, 0, 0, missing))
        encoded: EncodedTexts = self.words(padded)
        # the words stay as they are: normalized words learned more slowly
        return Context(self.norm(encoded.texts), distinct.groups, encoded.words)


def has_token_ids(space: spaces.Space[object]) -> TypeGuard[spaces.Box]:
    """Return True if a space is a Box of non-negative integers (length,).

    Args:
        space: any space.
    """
    if not isinstance(space, spaces.Box):
        return False
    if len(space.shape) != 1 or space.dtype.kind not in "iu":
        return False
    return bool((space.low >= 0).all())


class GoalContext(ContextEncoder):
    """Context z = relu(MLP(goal)), with the goal normalized first if ``normalize`` is set.

    Goals are continuous, so every row has its own context. With ``relative_to``, the value of that
    key is subtracted from the goal.

    Args:
        space: the space of the observations.
        config: options of the context.

    Raises:
        ConfigError: if the goal cannot be relative to the key that ``relative_to`` names.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import GoalContextConfig
        >>> from mirl.policies.contexts import GoalContext
        >>> space = Dict(desired_goal=Box(-1, 1, (2,)), achieved_goal=Box(-1, 1, (2,)))
        >>> encoder = GoalContext(space, GoalContextConfig(dim=16, relative_to="achieved_goal"))
        >>> encoder({key: torch.zeros(5, 2) for key in space}).values.shape
        torch.Size([5, 16])
    """

    Config = GoalContextConfig

    def __init__(self, space: spaces.Dict, config: GoalContextConfig) -> None:
        super().__init__()
        self.keys = (config.key,)
        self.goal_dim = spaces.flatdim(space[config.key])
        self.out_dim = config.dim
        self.relative_to = config.relative_to or None
        if self.relative_to is not None:
            _check_relative_to(space, config.key, self.relative_to)
        self.normalize: RunningNorm | None = None
        if config.normalize:
            self.normalize = RunningNorm(self.goal_dim)
        self.mlp = nn.Sequential(
            nn.Linear(self.goal_dim, config.dim),
            nn.ReLU(),
            nn.Linear(config.dim, config.dim),
        )

    def forward(self, observations: Observations) -> Context:
        """Encode the goals.

        Args:
            observations: the goal under its key, (B, *goal).

        Returns:
            One context per row.
        """
        flat = self._flat_goal(observations)
        if self.normalize is not None:
            flat = self.normalize(flat)
        first, *later = self.mlp
        # goals in physical units would lose their last digits in bfloat16
        hidden = in_float32(first, flat)
        for layer in later:
            hidden = layer(hidden)
        return Context(F.relu(hidden), None)

    def update_statistics(self, observations: Observations) -> None:
        """Update the running statistics of the goal, if it is normalized.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        if self.normalize is not None:
            self.normalize.update(self._flat_goal(observations))

    def _flat_goal(self, observations: Observations) -> Float[Tensor, "batch goal"]:
        """Return the goal, minus the ``relative_to`` key's value if set, flattened."""
        goal = observations[self.keys[0]]
        assert isinstance(goal, Tensor), "goals are continuous and never come as UniqueRows"
        if self.relative_to is not None:
            other = observations[self.relative_to]
            assert isinstance(other, Tensor), "only the context may come as UniqueRows"
            goal = goal - other
        # (B, *goal) -> (B, goal_dim)
        return goal.reshape(goal.shape[0], self.goal_dim).float()


class RawContext(ContextEncoder):
    """Context z = scale × value, without an encoder; each distinct value is one context.

    Args:
        space: the space of the observations.
        config: options of the context.

    Raises:
        ConfigError: if the space under the key is a text, whose token ids are not quantities.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import RawContextConfig
        >>> from mirl.policies.contexts import RawContext
        >>> space = Dict(gravity=Box(0, 20, (1,)))
        >>> encoder = RawContext(space, RawContextConfig(key="gravity", scale=0.5))
        >>> encoder({"gravity": torch.tensor([[9.0], [2.0], [9.0]])}).per_row().tolist()
        [[4.5], [1.0], [4.5]]
    """

    Config = RawContextConfig

    def __init__(self, space: spaces.Dict, config: RawContextConfig) -> None:
        super().__init__()
        if is_text(space[config.key]):
            raise ConfigError(
                f"context=raw needs numbers, and '{config.key}' is a text; use context=mission"
            )
        self.keys = (config.key,)
        self.scale = config.scale
        self.out_dim = flattened_dim(space, self.keys)

    def forward(self, observations: Observations) -> Context:
        """Scale the numbers.

        Args:
            observations: the numbers under their key, (B, *shape).

        Returns:
            The distinct values.
        """
        value = observations[self.keys[0]]
        assert isinstance(value, Tensor), "numbers never come as UniqueRows"
        rows = value.reshape(value.shape[0], self.out_dim).float()
        if torch.compiler.is_exporting():
            return Context(self.scale * rows, None)
        # compared by their bits, because rows are hashed as integers
        distinct = unique_rows(rows.contiguous().view(torch.int32))
        values = distinct.rows.view(torch.float32)
        return Context(self.scale * values, distinct.groups)


def _check_relative_to(space: spaces.Dict, goal: str, other: str) -> None:
    if other not in space.spaces:
        raise ConfigError(
            f"context.relative_to: the observation has no key '{other}'; remove context.relative_to"
        )
    # the subtraction needs equal shapes, and has no meaning for the codes of a Discrete space
    for key in (goal, other):
        if not isinstance(space[key], spaces.Box) or space[key].shape != space[goal].shape:
            raise ConfigError(
                "context.relative_to needs two Box spaces of the same shape, "
                f"and '{goal}' is {space_text(space[goal])}, '{other}' is "
                f"{space_text(space[other])}; "
                "remove context.relative_to"
            )


class GoalImageContext(ContextEncoder):
    """Context from a goal that is a grid of codes or a picture; each distinct goal is encoded once.

    Args:
        space: the observation space, with a Box (H, W, codes) of small integers or an image under
            ``config.key``.
        config: options of the context.

    Raises:
        ConfigError: if the encoder cannot read the space under the key.

    Examples:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.configs.networks import GoalContextConfig
        >>> from mirl.policies.contexts import GoalImageContext
        >>> space = Dict(desired_goal=Box(0, 1, (32, 32, 3)))  # a picture of what is to be reached
        >>> encoder = GoalImageContext(space, GoalContextConfig(encoder="image", dim=16))
        >>> encoder({"desired_goal": torch.zeros(5, 32, 32, 3)}).values.shape
        torch.Size([5, 16])
    """

    def __init__(self, space: spaces.Dict, config: GoalContextConfig) -> None:
        super().__init__()
        subspace = space[config.key]
        if len(subspace.shape or ()) not in (2, 3):
            raise ConfigError(
                f"context.encoder={config.encoder} needs a Box of rank 3 under '{config.key}', got "
                f"{space_text(subspace)}; use context.encoder=mlp"
            )
        self.keys = (config.key,)
        self.shape = tuple(subspace.shape or ())
        self.out_dim = config.dim
        goal_space = spaces.Dict({config.key: subspace})
        is_integer = subspace.dtype is not None and subspace.dtype.kind in "iub"
        self.has_codes = config.encoder == "grid" and is_integer
        self.encoder: CellsEncoder
        other = "grid" if config.encoder == "image" else "image"
        fits = reads_pixels(subspace)
        if config.encoder == "grid":
            fits = not is_image_space(subspace)
        if not fits:
            raise ConfigError(
                f"context.encoder={config.encoder} does not read the goal '{config.key}', "
                f"{space_text(subspace)}; use context.encoder={other}"
            )
        if config.encoder == "grid":
            grid = GridEncoderConfig(features_dim=config.dim, attributes=0)
            self.encoder = GridEncoder(goal_space, grid)
        else:
            self.encoder = ImageEncoder(goal_space, ImageEncoderConfig(features_dim=config.dim))

    @property
    def grouped_key(self) -> str | None:
        """Key of the goal if it is a grid of codes."""
        # a picture as UniqueRows would lack SB3's scaling of pixels
        return self.keys[0] if self.has_codes else None

    def forward(self, observations: Observations) -> Context:
        """Encode the goals.

        Args:
            observations: the goal under its key, (B, H, W, codes) or (B, *image), or its distinct
                rows.

        Returns:
            The distinct goals, encoded; one per row for pictures.
        """
        key = self.keys[0]
        goal = observations[key]
        if not self.has_codes:
            assert isinstance(goal, Tensor), "pictures never come as UniqueRows"
            return Context(self.encoder({key: goal}), None)
        if torch.compiler.is_exporting():
            assert isinstance(goal, Tensor), "programs take no UniqueRows"
            return Context(self.encoder({key: goal.float()}), None)
        # (B, H, W, codes) -> (B, H * W * codes)
        distinct = goal if isinstance(goal, UniqueRows) else unique_rows(goal.flatten(1).long())
        # (goals, H * W * codes) -> (goals, H, W, codes)
        images = distinct.rows.reshape(-1, *self.shape).float()
        return Context(self.encoder({key: images}), distinct.groups)


class CombinedContext(ContextEncoder):
    """Context z = relu(V [z₁, z₂, …] + b) of several contexts: a goal, a task id, a mission.

    If a batch has few distinct values of every part, it has few distinct combinations, and each is
    computed once. The words of the combination are V_i w + b for the words w of each part i, with
    the columns V_i of V that belong to that part; a part that is not a text counts as one word.

    Args:
        space: the space of the observations.
        config: options of the context, with the config of each part.

    Raises:
        ConfigError: if the space under a part's key does not fit.

    Examples:
        >>> from gymnasium.spaces import Box, Dict, Discrete
        >>> from mirl.configs import networks
        >>> from mirl.policies.contexts import build_context
        >>> space = Dict(desired_goal=Box(-1, 1, (2,)), task=Discrete(3))
        >>> parts = (networks.GoalContextConfig(), networks.TaskIdContextConfig())
        >>> encoder = build_context(networks.CombinedContextConfig(parts=parts, dim=32), space)
        >>> encoder.keys, encoder.out_dim
        (('desired_goal', 'task'), 32)
    """

    Config = CombinedContextConfig

    def __init__(self, space: spaces.Dict, config: CombinedContextConfig) -> None:
        super().__init__()
        self.parts = nn.ModuleList([build_context(part, space) for part in config.parts])
        keys: list[str] = []
        joined_dim = 0
        for part in self._encoders():
            keys += part.keys
            joined_dim += part.out_dim
        self.keys = tuple(dict.fromkeys(keys))
        self.out_dim = config.dim
        self.join = nn.Linear(joined_dim, config.dim)

    @property
    def grouped_key(self) -> str | None:
        """Grouped key of the first part that has one."""
        for part in self._encoders():
            if part.grouped_key is not None:
                return part.grouped_key
        return None

    def forward(self, observations: Observations) -> Context:
        """Encode the parts and join them.

        Args:
            observations: a batch with the keys of all parts.

        Returns:
            The distinct combinations; one context per row if a part is continuous.
        """
        contexts: list[Context] = [part(observations) for part in self._encoders()]
        groups = join_groups([context.groups for context in contexts])
        joint: ContextGroups | None = None
        if groups is None:
            # every row is a combination of its own
            parts = [context.ungrouped() for context in contexts]
        else:
            indices, joint = groups
            pairs = zip(contexts, indices, strict=True)
            parts = [context.select(index) for context, index in pairs]
        # (combinations, Z₁ + Z₂ + …)
        joined = torch.cat([part.values for part in parts], dim=1)
        return Context(F.relu(self.join(joined)), joint, self._words(parts))

    def update_statistics(self, observations: Observations) -> None:
        """Update the running statistics of every part.

        Args:
            observations: a batch, as ``forward`` takes it.
        """
        for part in self._encoders():
            part.update_statistics(observations)

    def _words(
        self, parts: Sequence[Context]
    ) -> Float[Tensor, "combinations words context"] | None:
        """Return V_i w + b for the words w of each part i; None if no part is a text."""
        if all(part.words is None for part in parts):
            return None
        words: list[Tensor] = []
        start = 0
        for part in parts:
            end = start + part.values.shape[1]
            of_part = each_word(part.values, part.words)
            projected = F.linear(of_part, self.join.weight[:, start:end], self.join.bias)
            words.append(projected * is_word(of_part))
            start = end
        return torch.cat(words, dim=1)

    def _encoders(self) -> list[ContextEncoder]:
        return [part for part in self.parts if isinstance(part, ContextEncoder)]


def join_groups(
    groups: Sequence[ContextGroups | None],
) -> tuple[list[Int[Tensor, " combinations"]], ContextGroups] | None:
    """Find the distinct combinations of several groupings of the same rows.

    Args:
        groups: the groups of each part, or None for a part that has a context per row.

    Returns:
        For each part the index of its context in each combination, and the combination of each
        row; None if a part has no groups. The number of combinations is padded to a multiple of
        ``CONTEXT_BUCKET``.
    """
    known = [part for part in groups if part is not None]
    if len(known) < len(groups):
        return None
    # a mixed-radix number per row: one digit per part
    code = torch.zeros_like(known[0].index)
    for part in known:
        code = code * part.count + part.index
    combinations, index = torch.unique(code, return_inverse=True)
    count = len(combinations)
    # the padding repeats combination 0; no row refers to these copies
    padded = F.pad(combinations, (0, -count % CONTEXT_BUCKET))
    indices: list[Tensor] = []
    for part in reversed(known):
        indices.insert(0, padded % part.count)
        padded = padded // part.count
    return indices, ContextGroups(index, len(padded))


def build_context(config: AnyContextConfig, space: spaces.Dict) -> ContextEncoder:
    """Build the context encoder that ``config`` belongs to.

    Args:
        config: kind, key and options of the context.
        space: the space of the observations, from which all sizes are read.

    Returns:
        A module from observations to a ``Context``.

    Raises:
        ConfigError: if the space under the key does not fit.
    """
    # a user's class with options of this kind is looked up like any other
    if type(config) is GoalContextConfig and config.encoder != "mlp":
        return GoalImageContext(space, config)
    return ContextEncoder.class_of(config).construct(space=space, config=config)
