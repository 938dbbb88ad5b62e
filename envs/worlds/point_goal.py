"""A point in a square that is driven to a goal: a minimal continuous-control task in the plane."""

import math

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.envs.type_aliases import Info

N_STEPS = 50
"""Timesteps of an episode. Each gives a reward of at most 1, so this is also the highest return."""
STEP_SIZE = 0.1
"""Maximum distance along each axis in one timestep."""
SUCCESS_DISTANCE = 0.1
"""Distance to the goal within which a timestep is successful."""
MAX_DISTANCE = 2 * math.sqrt(2)
"""Distance between opposite corners of the square [-1, 1]²."""


class PointGoalEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Drive a point p in [-1, 1]² to a goal g: p' = p + 0.1 a, clipped to the square.

    The observation is (p, g), (4,), both of which are drawn uniformly at the start. The reward is
    1 - ‖p - g‖ / (2 √2), in [0, 1], and ``is_success`` is True within 0.1 of the goal. Episodes are
    only truncated.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position: NDArray[np.float64] = np.zeros(2)
        """p, (2,)."""
        self.goal: NDArray[np.float64] = np.zeros(2)
        """g, (2,)."""

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Draw a start and a goal.

        Args:
            seed: seed of the generator; None continues it.
            options: unused.

        Returns:
            The observation and an empty info.
        """
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.0, 1.0, 2)
        self.goal = self.np_random.uniform(-1.0, 1.0, 2)
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Move the point.

        Args:
            action: the direction, in [-1, 1]², (2,).

        Returns:
            Observation, reward, terminated, truncated and info.
        """
        self.position = np.clip(self.position + STEP_SIZE * action, -1.0, 1.0)
        distance = float(np.linalg.norm(self.position - self.goal))
        info = {"is_success": distance < SUCCESS_DISTANCE}
        return self._observation(), 1 - distance / MAX_DISTANCE, False, False, info

    def _observation(self) -> NDArray[np.float32]:
        return np.concatenate([self.position, self.goal]).astype(np.float32)


gym.register(
    "MIRL/PointGoal-v0",
    entry_point="mirl.envs.worlds.point_goal:PointGoalEnv",
    max_episode_steps=N_STEPS,
)
