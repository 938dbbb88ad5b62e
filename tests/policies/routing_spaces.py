"""Spaces of observations with keys of every kind."""

from typing import Any

import numpy as np
from gymnasium import spaces

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (7, 7, 3))

SUBSPACES: dict[str, spaces.Space[Any]] = {
    "observation": spaces.Box(-1, 1, (5,), np.float32),
    "direction": spaces.Discrete(4),
    "grid": spaces.Box(np.zeros_like(CODES), CODES.copy(), (7, 7, 3), np.uint8),
    "pixels": spaces.Box(0, 255, (40, 40, 3), np.uint8),
    "task": spaces.Discrete(3),
    "mission": spaces.Box(0, 20, (6,), np.int16),
    "desired_goal": spaces.Box(-1, 1, (2,), np.float32),
    "context": spaces.Box(-1, 1, (3,), np.float32),
    "action_mask": spaces.MultiBinary(4),
}


def dict_of(*keys: str) -> spaces.Dict:
    return spaces.Dict({key: SUBSPACES[key] for key in keys})
