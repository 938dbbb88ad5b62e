"""Missions as token ids, and their context encoders."""

from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from mirl.configs.networks import MissionContextConfig
from mirl.policies.contexts import ContextEncoder, build_context
from mirl.policies.features import Context

Words = Literal["attention", "gru", "bag"]
WORDS: tuple[Words, ...] = ("attention", "gru", "bag")

LENGTH, N_TOKENS, N_TASKS = 10, 30, 4
SPACE = spaces.Dict(
    {
        "mission": spaces.Box(0, N_TOKENS - 1, (LENGTH,), np.int16),
        "task": spaces.Discrete(N_TASKS),
        "desired_goal": spaces.Box(-1, 1, (2, 3), np.float32),
    }
)


def missions(*texts: list[int]) -> Tensor:
    """Token ids as SB3 gives them: floats, padded with zeros."""
    return torch.tensor([text + [0] * (LENGTH - len(text)) for text in texts], dtype=torch.float32)


def mission_context(words: Words, seed: int = 0, **options: Any) -> ContextEncoder:
    torch.manual_seed(seed)
    return build_context(MissionContextConfig(encoder=words, dim=8, heads=2, **options), SPACE)


def encode(module: ContextEncoder, observation: Tensor) -> Tensor:
    """Return the context of each row of an observation with one key."""
    [key] = module.keys
    context: Context = module({key: observation})
    return context.per_row()
