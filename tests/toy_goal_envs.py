"""Small environments whose goal reverses the meaning of the observation, learned in seconds.

Each episode of the ``Flip`` environments has one timestep. The observation is x ∈ {−1, 1}^k, the
goal is a sign g, and the right action is the sign of x₀ · g: an exclusive or. A policy whose logits
are a(x) + c(g) is right in at most three of the four cases.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = dict[str, Any]

MISSIONS = ("go to the red door", "go away from the red door")
"""Missions of ``FlipMissionEnv``: the right action is the sign of x₀, or the opposite."""

ADDITIVE_LIMIT = 0.75
"""Highest success rate of an additive policy in a ``Flip`` environment.

In each of the four cases, the advantage of the right action is d(x, g) x₀ g, where d = a(x) + c(g)
is the difference of the two logits. Its sum over the cases is zero, because each of a and c occurs
with both signs, so at least one case is wrong.
"""


class FlipGoalEnv(gym.Env[Observation, Any]):
    """Environment with a sign as its goal, under ``desired_goal``."""

    goal_key = "desired_goal"
    goal_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, n_features: int = 2) -> None:
        self.x_space = spaces.Box(-1, 1, (n_features,), np.float32)
        self.observation_space = spaces.Dict(
            {"observation": self.x_space, self.goal_key: self.goal_space}
        )
        self.action_space = spaces.Discrete(2)

    def goal(self, sign: int) -> Any:
        """Return the observed goal."""
        return np.array([sign], np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        x = self.np_random.choice([-1.0, 1.0], self.x_space.shape).astype(np.float32)
        sign = int(self.np_random.choice([-1, 1]))
        self.right_action = int(x[0] * sign > 0)
        self.current_observation = {"observation": x, self.goal_key: self.goal(sign)}
        return self.current_observation, {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        success = int(action) == self.right_action
        return self.current_observation, float(success), True, False, {"is_success": success}


class FlipTaskEnv(FlipGoalEnv):
    """Environment with one of two tasks as its goal, under ``task``."""

    goal_key = "task"
    goal_space = spaces.Discrete(2)

    def goal(self, sign: int) -> Any:
        return np.int64(sign > 0)


class FlipMissionEnv(FlipGoalEnv):
    """Environment with a written goal, under ``mission``."""

    goal_key = "mission"
    goal_space = spaces.Text(100)

    def goal(self, sign: int) -> Any:
        return MISSIONS[0] if sign > 0 else MISSIONS[1]


class MirrorReachEnv(gym.Env[Observation, Any]):
    """Reach a point on a line with a lever that may be mirrored.

    An action a moves the point from p = 0 by p ← p + m a with m ∈ {−1, 1}. The right action depends
    on the product of the observation m and the goal. The reward is sparse: −1 until the point is
    within ``TOLERANCE`` of the goal. Episodes have ``n_steps`` timesteps.
    """

    TOLERANCE = 0.25

    def __init__(self, n_steps: int = 2) -> None:
        self.n_steps = n_steps
        point = spaces.Box(-2, 2, (1,), np.float32)
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-2, 2, (2,), np.float32),
                "achieved_goal": point,
                "desired_goal": point,
            }
        )
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _observation(self) -> Observation:
        return {
            "observation": np.array([self.mirror, self.point], np.float32),
            "achieved_goal": np.array([self.point], np.float32),
            "desired_goal": np.array([self.target], np.float32),
        }

    def compute_reward(
        self, achieved: NDArray[np.float32], desired: NDArray[np.float32], info: Any
    ) -> NDArray[np.float32]:
        return -(np.abs(achieved - desired)[..., 0] > self.TOLERANCE).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.mirror = float(self.np_random.choice([-1.0, 1.0]))
        self.target = float(self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.5, 1.0))
        self.point = 0.0
        self.count = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.point = float(np.clip(self.point + self.mirror * float(action[0]), -2, 2))
        self.count += 1
        observation = self._observation()
        reward = float(
            self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})
        )
        return observation, reward, False, self.count == self.n_steps, {"is_success": reward == 0}


class SampledEnv(gym.Env[Observation, Any]):
    """Environment with any spaces: sampled observations, random rewards, five timesteps."""

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space[Any], seed: int = 0
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.observation_space.seed(seed)
        self.count = 0

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.count += 1
        observation = self.observation_space.sample()
        reward = float(self.np_random.normal())
        return observation, reward, self.count % 5 == 0, False, {}
