"""Context encoders: what the agent is asked to do, as a vector z.

Within a batch few contexts are distinct, so each encoder gives every distinct context once, with an index that says
which one belongs to each row; everything computed from the context alone is computed that often and no more.
"""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any, assert_never

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.networks import (
    ContextConfig,
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
"""Missions are read in multiples of so many, empty ones added: a processor keeps kernels for each size it has met."""


def get_task_ids(
    task: Float[Tensor, "batch ..."] | UniqueRows, n_tasks: int
) -> Int[Tensor, " batch"]:
    """The number of each row's task; SB3 gives a Discrete key as (B, n) in rollouts and as (B, 1, n) in minibatches."""
    if isinstance(task, UniqueRows):
        return task.rows.long().flatten().index_select(0, task.groups.index)
    return task.reshape(len(task), n_tasks).argmax(-1)


class TaskIdContext(nn.Module):
    """z = relu(MLP(one-hot task id)), the context encoder of the paper's multitask experiments.

    Without hidden layers there is no MLP: z is the one-hot task id.
    """

    def __init__(self, space: spaces.Space[Any], config: TaskIdContextConfig) -> None:
        super().__init__()
        if not isinstance(space, spaces.Discrete):
            raise ConfigError(
                f"context=task_id reads a Discrete space under '{config.key}', got {space}"
            )
        self.n_tasks = int(space.n)
        dims = (self.n_tasks, *config.hidden, *((config.dim,) if config.hidden else ()))
        self.out_dim = dims[-1]
        self.mlp = nn.Sequential(
            *(layer for sizes in pairwise(dims) for layer in (nn.Linear(*sizes), nn.ReLU()))
        )

    def forward(self, task: Float[Tensor, "batch ..."] | UniqueRows) -> Context:
        if not isinstance(task, UniqueRows):
            index = get_task_ids(task, self.n_tasks)
            task = UniqueRows(
                torch.arange(self.n_tasks, device=index.device), ContextGroups(index, self.n_tasks)
            )
        return Context(
            self.mlp(F.one_hot(task.rows.long().flatten(), self.n_tasks).float()), task.groups
        )


class AttentionMissionEncoder(nn.Module):
    """Embedding + sinusoidal positions → multi-head self-attention (Vaswani et al., 2017) → mean over the words."""

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, config.dim, padding_idx=0)
        layer = nn.TransformerEncoderLayer(
            config.dim,
            config.heads,
            dim_feedforward=2 * config.dim,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.attention = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, tokens: Int[Tensor, "missions length"]) -> Float[Tensor, "missions dim"]:
        words = (tokens != 0).index_fill(
            1, torch.zeros(1, dtype=torch.int64, device=tokens.device), True
        )
        located = self.embedding(tokens) + sinusoidal_positions(
            tokens.shape[1], self.embedding.embedding_dim, tokens.device
        )
        # on a processor the fused kernel goes back through bfloat16 ten times as slowly as the plain one
        plain = sdpa_kernel(SDPBackend.MATH) if located.device.type == "cpu" else nullcontext()
        with plain:
            attended = self.attention(located, src_key_padding_mask=~words)
        mean: Tensor = (attended * words.unsqueeze(-1)).sum(1) / words.sum(1, keepdim=True)
        return mean


class GruMissionEncoder(nn.Module):
    """Embedding → GRU → its state after the last word."""

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, config.dim, padding_idx=0)
        self.gru = nn.GRU(config.dim, config.dim, num_layers=config.layers, batch_first=True)

    def forward(self, tokens: Int[Tensor, "missions length"]) -> Float[Tensor, "missions dim"]:
        states, _ = self.gru(self.embedding(tokens))
        last = (tokens != 0).sum(1).sub(1).clamp(min=0)
        final: Tensor = states[torch.arange(len(tokens), device=tokens.device), last]
        return final


class BagMissionEncoder(nn.Module):
    """The mean of the words' embeddings: order is lost."""

    def __init__(self, n_tokens: int, config: MissionContextConfig) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(n_tokens, config.dim, mode="mean", padding_idx=0)

    def forward(self, tokens: Int[Tensor, "missions length"]) -> Float[Tensor, "missions dim"]:
        mean: Tensor = self.embedding(tokens)
        return mean


def build_mission_encoder(n_tokens: int, config: MissionContextConfig) -> nn.Module:
    """The encoder of token ids (missions, length) that ``config`` names; 0 is padding."""
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
    """z = LayerNorm(words(mission)); each distinct mission is read once."""

    def __init__(self, space: spaces.Space[Any], config: MissionContextConfig) -> None:
        super().__init__()
        if not (
            isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind in "iu"
        ):
            raise ConfigError(
                f"context=mission reads token ids, a Box of integers (length,), under '{config.key}', got {space}; "
                "wrap the environment in mirl.envs.ContractObservation"
            )
        self.out_dim = config.dim
        self.words = build_mission_encoder(int(space.high.max()) + 1, config)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Float[Tensor, "batch length"] | UniqueRows) -> Context:
        distinct = tokens if isinstance(tokens, UniqueRows) else unique_rows(tokens.long())
        used = (distinct.rows != 0).any(0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else 1
        padded = F.pad(
            distinct.rows[:, :longest].long(), (0, 0, 0, -len(distinct.rows) % MISSION_BUCKET)
        )
        return Context(self.norm(self.words(padded)), distinct.groups)


class GoalContext(nn.Module):
    """z = relu(MLP(goal)), the goal normalized first if asked for; it is continuous, so every row has its own.

    A goal that is ``relative_to`` another key comes with that key's value subtracted.
    """

    def __init__(self, space: spaces.Dict, config: GoalContextConfig) -> None:
        super().__init__()
        self.goal_dim, self.out_dim = spaces.flatdim(space[config.key]), config.dim
        self.relative_to = config.relative_to or None
        if self.relative_to is not None:
            _check_subtracts(space, config.key, self.relative_to)
        self.normalize = RunningNorm(self.goal_dim) if config.normalize else None
        self.mlp = nn.Sequential(
            nn.Linear(self.goal_dim, config.dim), nn.ReLU(), nn.Linear(config.dim, config.dim)
        )

    def forward(self, goal: Float[Tensor, "batch ..."]) -> Context:
        flat = goal.reshape(len(goal), self.goal_dim).float()
        return Context(
            F.relu(self.mlp(flat if self.normalize is None else self.normalize(flat))), None
        )


def _check_subtracts(space: spaces.Dict, goal: str, other: str) -> None:
    if other not in space.spaces:
        raise ConfigError(
            f"context.relative_to: the observation has no key '{other}'."
            + nearest(other, space.spaces)
        )
    for key in (goal, other):
        if not isinstance(space[key], spaces.Box) or space[key].shape != space[goal].shape:
            raise ConfigError(
                f"context.relative_to subtracts numbers of one shape, and '{goal}' is {space[goal]}, "
                f"'{other}' is {space[other]}"
            )


class GoalImageContext(nn.Module):
    """z of a goal that is a picture in small integer codes, read as a symbolic view is; each distinct picture once."""

    def __init__(self, space: spaces.Space[Any], config: GoalContextConfig) -> None:
        super().__init__()
        if not (isinstance(space, spaces.Box) and len(space.shape) == 3):
            raise ConfigError(
                f"context.encoder=grid reads a picture, a Box of rank 3, under '{config.key}', got {space}"
            )
        grid = GridEncoderConfig(features_dim=config.dim)
        routing = Routing(config.key, image=config.key, others=(), others_dim=0)
        self.shape, self.out_dim = space.shape, config.dim
        self.encoder = CellsEncoder(GridCells(space, grid.channels), routing, grid)

    def forward(self, goal: Float[Tensor, "batch height width codes"] | UniqueRows) -> Context:
        distinct = goal if isinstance(goal, UniqueRows) else unique_rows(goal.flatten(1).long())
        pictures = distinct.rows.reshape(-1, *self.shape).float()
        nothing_else = pictures.new_zeros(len(pictures), 0)
        return Context(
            self.encoder.to_vector(self.encoder.to_cells(pictures), nothing_else), distinct.groups
        )


ContextEncoder = TaskIdContext | MissionContext | GoalContext | GoalImageContext


def build_context(config: ContextConfig, space: spaces.Dict) -> ContextEncoder:
    """The context encoder that ``config`` names, sized by the space under its key."""
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
            assert_never(config)
