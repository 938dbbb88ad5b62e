"""Tasks whose rewards differ in scale, and agents for them."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from mirl.agents import PPO
from mirl.agents.on_policy.action_evaluation import ActionEvaluation, evaluate_actions
from mirl.agents.on_policy.minibatch import (
    Samples,
)
from mirl.envs import ContractObservation
from mirl.policies import FusionPolicy

SMALL_PPO: dict[str, Any] = {"n_steps": 8, "batch_size": 32, "n_epochs": 2}
"""Sizes of a quick PPO."""


class SidesEnv(gym.Env[Any, Any]):
    """Episodes of one timestep: the right action is the sign of x₀, or the opposite.

    Both tasks look the same. The right action is rewarded half of the time, so that the returns
    vary even after the task was learned.
    """

    def __init__(self, opposite: bool, pay: float) -> None:
        self.opposite = opposite
        self.pay = pay
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation = self.np_random.choice([-1.0, 1.0], 3).astype(np.float32)
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = bool(action) == (bool(self.observation[0] > 0) ^ self.opposite)
        paid = right and self.np_random.random() < 0.5
        return self.observation, self.pay * paid, True, False, {"is_success": right}


def sides(*pays: float, n_envs: int = 8) -> VecEnv:
    """Return environments over several tasks, one for each reward scale in ``pays``."""

    def make(env_index: int) -> Callable[[], gym.Env[Any, Any]]:
        task = env_index % len(pays)
        return lambda: ContractObservation(
            SidesEnv(bool(task % 2), pays[task]), task, len(pays), task_key=True
        )

    return DummyVecEnv([make(env_index) for env_index in range(n_envs)])


def build_multitask_agent(
    algorithm: Any,
    *pays: float,
    popart: bool = False,
    scale_values: bool = False,
    **options: Any,
) -> Any:
    """Build an untrained agent whose only context is the task id."""
    sizes = SMALL_PPO if algorithm is PPO else {"n_steps": 8}
    policy: dict[str, Any] = {
        "fusion": "film",
        "context": "task_id",
        "net_arch": [16],
        "popart": popart,
        "scale_values": scale_values,
    }
    return algorithm(
        FusionPolicy,
        sides(*pays),
        policy_kwargs=policy,
        **{**sizes, "seed": 0, "device": "cpu", **options},
    )


def evaluate_samples(agent: Any, samples: Samples) -> ActionEvaluation:
    """Evaluate the actions of a minibatch with the agent's current weights."""
    return evaluate_actions(agent.policy, samples, agent.precision)
