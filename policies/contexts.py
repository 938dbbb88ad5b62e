"""Context encoders: what the agent is asked to do, as a vector z.

A batch has few distinct contexts. Each encoder returns every distinct context once, together with
an index of the rows, so that everything that depends on the context alone is computed once per
distinct context.
"""

from contextlib import nullcontext
from itertools import pairwise
from typing import TypeGuard, assert_never

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.networks import (
    BaseContextConfig,
    GoalContextConfig,
    GridEncoderConfig,
    MissionContextConfig,
    TaskIdContextConfig,
)
from mirl.policies.encoders import CellsEncoder, GridCells
from mirl.policies.features import Context, UniqueRows, unique_rows
from mirl.policies.grouped_matmul import ContextGroups
from mirl.policies.positions import sinusoidal_positions
from mirl.policies.routing import Routing
from mirl.policies.running_norm import RunningNorm

MISSION_BUCKET = 8
"""Distinct missions are padded to a multiple of this number, because oneDNN compiles and caches one
kernel per shape."""


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
    return task.reshape(len(task), n_tasks).argmax(-1)


class TaskIdContext(nn.Module):
    """Context z = relu(MLP(one-hot task id)); without hidden layers, the one-hot id itself.

    Args:
        space: the Discrete space of the task id.
        config: options of the context.

    Raises:
        ConfigError: if the space is not Discrete.

    References:
        Jayakumar et al., "Multiplicative Interactions and Where to Find Them", ICLR 2020, in the
        multitask experiments.
    """

    def __init__(self, space: spaces.Space[object], config: TaskIdContextConfig) -> None:
        super().__init__()
        if not isinstance(space, spaces.Discrete):
            raise ConfigError(
                f"context=task_id needs a Discrete space under '{config.key}', got {space}"
            )
        self.n_tasks = int(space.n)
        sizes = [self.n_tasks]
        # without hidden layers the MLP below stays empty and returns the one-hot id
        if config.hidden:
            sizes += [*config.hidden, config.dim]
        self.out_dim = sizes[-1]
        self.mlp = nn.Sequential()
        for in_size, out_size in pairwise(sizes):
            self.mlp.append(nn.Linear(in_size, out_size))
            self.mlp.append(nn.ReLU())

    def forward(self, task: Float[Tensor, "batch ..."] | UniqueRows) -> Context:
        """Encode the task ids.

        Args:
            task: the one-hot key, (B, n) or (B, 1, n), or its distinct indices.

        Returns:
            The encoded tasks: all of them, or the distinct ones if they are given.
        """
        if not isinstance(task, UniqueRows):
            index = get_task_ids(task, self.n_tasks)
            # encoding all n tasks costs less than a search for those in the batch
            all_tasks = torch.arange(self.n_tasks, device=index.device)
            task = UniqueRows(all_tasks, ContextGroups(index, self.n_tasks))
        one_hot = F.one_hot(task.rows.long().flatten(), self.n_tasks).float()
        return Context(self.mlp(one_hot), task.groups)


class AttentionMissionEncoder(nn.Module):
    """Mission encoder: embeddings with sinusoidal positions, self-attention, mean over the words.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, config.dim, padding_idx=0)
        layer = nn.TransformerEncoderLayer(
            config.dim,
            config.heads,
            dim_feedforward=2 * config.dim,
            dropout=0.0,  # dropout would make the probability ratios of PPO random
            batch_first=True,
            norm_first=True,
        )
        # PyTorch has no nested tensors for norm_first, and warns if they are enabled
        self.attention = nn.TransformerEncoder(
            layer,
            config.layers,
            enable_nested_tensor=False,
        )

    def forward(self, tokens: Int[Tensor, "missions length"]) -> Float[Tensor, "missions dim"]:
        """Encode missions.

        Args:
            tokens: token ids, (missions, length).

        Returns:
            One vector per mission, (missions, dim).
        """
        # the first token always counts as a word, so that an empty mission has a mean, too
        first = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        words = (tokens != 0).index_fill(1, first, True)
        positions = sinusoidal_positions(
            tokens.shape[1], self.embedding.embedding_dim, tokens.device
        )
        located = self.embedding(tokens) + positions
        # on a CPU the backward pass of the fused kernel in bfloat16 is ten times as slow
        on_cpu = located.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            attended = self.attention(located, src_key_padding_mask=~words)
        # mean over the words alone: (missions, length, dim) -> (missions, dim)
        total = (attended * words.unsqueeze(-1)).sum(1)
        mean: Tensor = total / words.sum(1, keepdim=True)
        return mean


class GruMissionEncoder(nn.Module):
    """Mission encoder: embeddings, then the state of a GRU after the last word.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.
    """

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, config.dim, padding_idx=0)
        self.gru = nn.GRU(
            config.dim,
            config.dim,
            num_layers=config.layers,
            batch_first=True,
        )

    def forward(self, tokens: Int[Tensor, "missions length"]) -> Float[Tensor, "missions dim"]:
        """Encode missions.

        Args:
            tokens: token ids, (missions, length).

        Returns:
            One vector per mission, (missions, dim).
        """
        states, _ = self.gru(self.embedding(tokens))
        # the GRU also runs over the padding behind the last word, whose states are not used;
        # an empty mission has the state after its first token
        last_word = (tokens != 0).sum(1).sub(1).clamp(min=0)
        missions = torch.arange(len(tokens), device=tokens.device)
        final: Tensor = states[missions, last_word]
        return final


class BagMissionEncoder(nn.Module):
    """Mission encoder: the mean of the words' embeddings, which ignores their order.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.
    """

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        # padding_idx leaves the padding out of the mean
        self.embedding = nn.EmbeddingBag(
            n_tokens,
            config.dim,
            mode="mean",
            padding_idx=0,
        )

    def forward(self, tokens: Int[Tensor, "missions length"]) -> Float[Tensor, "missions dim"]:
        """Encode missions.

        Args:
            tokens: token ids, (missions, length).

        Returns:
            One vector per mission, (missions, dim).
        """
        mean: Tensor = self.embedding(tokens)
        return mean


MissionEncoder = AttentionMissionEncoder | GruMissionEncoder | BagMissionEncoder


def build_mission_encoder(n_tokens: int, config: MissionContextConfig) -> MissionEncoder:
    """Build the mission encoder that ``config`` names.

    Args:
        n_tokens: size of the vocabulary, with 0 as padding.
        config: options of the mission encoder.

    Returns:
        A module from token ids (missions, length) to vectors (missions, dim).
    """
    match config.encoder:
        case "attention":
            return AttentionMissionEncoder(n_tokens, config)
        case "gru":
            return GruMissionEncoder(n_tokens, config)
        case "bag":
            return BagMissionEncoder(n_tokens, config)
        case _:
            assert_never(config.encoder)


class MissionContext(nn.Module):
    """Context z = LayerNorm(encoder(mission)); each distinct mission is encoded once.

    Args:
        space: the space of the mission, a Box of integers (length,).
        config: options of the context.

    Raises:
        ConfigError: if the space is not one of token ids.
    """

    def __init__(self, space: spaces.Space[object], config: MissionContextConfig) -> None:
        super().__init__()
        if not _has_token_ids(space):
            raise ConfigError(
                "context=mission needs token ids, a Box of integers (length,), under "
                f"'{config.key}', got {space}; wrap the environment in "
                "mirl.envs.ContractObservation"
            )
        self.out_dim = config.dim
        self.words = build_mission_encoder(int(space.high.max()) + 1, config)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Float[Tensor, "batch length"] | UniqueRows) -> Context:
        """Encode the missions.

        Args:
            tokens: token ids, (B, length), padded with 0; or the distinct missions.

        Returns:
            The distinct missions, encoded; padded to a multiple of ``MISSION_BUCKET``.
        """
        distinct = tokens if isinstance(tokens, UniqueRows) else unique_rows(tokens.long())
        # drop the columns that are padding in every mission, but keep one for empty missions
        used_columns = (distinct.rows != 0).any(0).nonzero()
        longest = 1
        if len(used_columns):
            longest = int(used_columns[-1]) + 1
        # -n % k is the distance from n to the next multiple of k
        missing = -len(distinct.rows) % MISSION_BUCKET
        # (missions, length) -> (missions + missing, longest)
        padded = F.pad(distinct.rows[:, :longest].long(), (0, 0, 0, missing))
        return Context(self.norm(self.words(padded)), distinct.groups)


def _has_token_ids(space: spaces.Space[object]) -> TypeGuard[spaces.Box]:
    """Return True if the space is a Box of integers (length,)."""
    if not isinstance(space, spaces.Box):
        return False
    return len(space.shape) == 1 and space.dtype.kind in "iu"


class GoalContext(nn.Module):
    """Context z = relu(MLP(goal)), with the goal normalized first if ``normalize`` is set.

    Goals are continuous, so every row has its own context. A goal that is ``relative_to`` another
    key arrives with the value of that key subtracted.

    Args:
        space: the space of the observations.
        config: options of the context.

    Raises:
        ConfigError: if the goal cannot be relative to the key that ``relative_to`` names.
    """

    def __init__(self, space: spaces.Dict, config: GoalContextConfig) -> None:
        super().__init__()
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

    def forward(self, goal: Float[Tensor, "batch ..."]) -> Context:
        """Encode the goals.

        Args:
            goal: (B, *goal).

        Returns:
            One context per row.
        """
        # (B, *goal) -> (B, goal_dim)
        flat = goal.reshape(len(goal), self.goal_dim).float()
        if self.normalize is not None:
            flat = self.normalize(flat)
        return Context(F.relu(self.mlp(flat)), None)


def _check_relative_to(space: spaces.Dict, goal: str, other: str) -> None:
    if other not in space.spaces:
        raise ConfigError(
            f"context.relative_to: the observation has no key '{other}'."
            + nearest(other, space.spaces)
        )
    # the subtraction needs equal shapes, and has no meaning for the codes of a Discrete space
    for key in (goal, other):
        if not isinstance(space[key], spaces.Box) or space[key].shape != space[goal].shape:
            raise ConfigError(
                "context.relative_to needs two Box spaces of the same shape, "
                f"and '{goal}' is {space[goal]}, '{other}' is {space[other]}"
            )


class GoalImageContext(nn.Module):
    """Context from a goal in MiniGrid's symbolic form; each distinct goal is encoded once.

    Args:
        space: the space of the goal, a Box (H, W, codes) of small integers.
        config: options of the context.

    Raises:
        ConfigError: if the space is not one of symbolic images.
    """

    def __init__(self, space: spaces.Space[object], config: GoalContextConfig) -> None:
        super().__init__()
        if not (isinstance(space, spaces.Box) and len(space.shape) == 3):
            raise ConfigError(
                f"context.encoder=grid needs a Box of rank 3 under '{config.key}', got {space}"
            )
        grid = GridEncoderConfig(features_dim=config.dim)
        routing = Routing(config.key, image=config.key, others=(), others_dim=0)
        self.shape = space.shape
        self.out_dim = config.dim
        self.encoder = CellsEncoder(GridCells(space, grid.channels), routing, grid)

    def forward(self, goal: Float[Tensor, "batch height width codes"] | UniqueRows) -> Context:
        """Encode the goals.

        Args:
            goal: (B, H, W, codes), or its distinct rows.

        Returns:
            The distinct goals, encoded.
        """
        # (B, H, W, codes) -> (B, H * W * codes)
        distinct = goal if isinstance(goal, UniqueRows) else unique_rows(goal.flatten(1).long())
        # (goals, H * W * codes) -> (goals, H, W, codes)
        images = distinct.rows.reshape(-1, *self.shape).float()
        # a goal is the image alone, without keys such as the direction
        no_others = images.new_zeros(len(images), 0)
        z = self.encoder.to_vector(self.encoder.to_cells(images), no_others)
        return Context(z, distinct.groups)


ContextEncoder = TaskIdContext | MissionContext | GoalContext | GoalImageContext


def build_context(config: BaseContextConfig, space: spaces.Dict) -> ContextEncoder:
    """Build the context encoder that ``config`` names.

    Args:
        config: kind, key and options of the context.
        space: the space of the observations, from which all sizes are read.

    Returns:
        A module from the value of the key to a ``Context``.

    Raises:
        ConfigError: if the space under the key does not fit.
    """
    match config:
        case TaskIdContextConfig():
            return TaskIdContext(space[config.key], config)
        case MissionContextConfig():
            return MissionContext(space[config.key], config)
        case GoalContextConfig(encoder="mlp"):
            return GoalContext(space, config)
        case GoalContextConfig():
            return GoalImageContext(space[config.key], config)
        case _:
            raise ConfigError(f"context={config.kind} cannot be built")
