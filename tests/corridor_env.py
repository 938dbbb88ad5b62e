"""A corridor that pays −1 per timestep, registered when this module is imported."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 4
"""Cells of the corridor."""


class CorridorEnv(gym.Env[Any, Any]):
    """Environment that ends in the last cell and pays −1 for every timestep.

    ``reports`` puts ``is_success`` into the last info of every episode; by default no info says
    anything, and no reward is positive.
    """

    def __init__(self, reports: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {
                "position": spaces.Box(0, 1, (LENGTH,), np.float32),
                "desired_goal": spaces.Box(0, 1, (1,), np.float32),
            }
        )
        self.action_space = spaces.Discrete(2)
        self._reports = reports
        self._cell = 0
        self._timestep = 0

    def _observation(self) -> dict[str, np.ndarray]:
        position = np.eye(LENGTH, dtype=np.float32)[self._cell]
        return {"position": position, "desired_goal": np.ones(1, np.float32)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._cell = int(self.np_random.integers(LENGTH - 1))
        self._timestep = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = 1 if action else -1
        self._cell = min(max(self._cell + move, 0), LENGTH - 1)
        self._timestep += 1
        is_there = self._cell == LENGTH - 1
        is_late = self._timestep == 4 * LENGTH
        info = {}
        if self._reports and (is_there or is_late):
            info["is_success"] = is_there
        return self._observation(), -1.0, is_there, is_late, info


if "ToyCorridor-v0" not in gym.registry:
    gym.register("ToyCorridor-v0", entry_point=CorridorEnv)

VECTORS = (
    "encoder=vector",
    "encoder.hidden=[]",
    "encoder.features_dim=8",
    "context=goal",
    "context.dim=4",
    "sites=[vector]",
    "agent.net_arch=[8]",
)
"""Command-line arguments of a tiny network for it."""


def corridor(*tasks: str) -> list[str]:
    """Return command-line arguments of a suite of corridors.

    Args:
        *tasks: further fields of each task in Hydra's syntax, such as ``"success: reward"``.
    """
    listed = []
    for index, fields in enumerate(tasks):
        separator = ", " if fields else ""
        listed.append(f"{{name: task{index}, env_id: ToyCorridor-v0{separator}{fields}}}")
    return ["task.name=corridor", f"task.tasks=[{', '.join(listed)}]", *VECTORS]
