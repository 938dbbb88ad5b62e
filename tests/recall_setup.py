"""Environments in which an agent must recall what it has seen, and recurrent agents for them."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from multitask_setup import evaluate_samples
from stable_baselines3.common.vec_env import DummyVecEnv

from mirl.agents import A2C, PPO
from mirl.configs.networks import (
    RecurrentConfig,
    choose,
)
from mirl.policies import RecurrentFusionPolicy

MEMORIES = ("lstm", "gru", "mi_lstm", "fast_weights", "attention")
"""Every kind of recurrent core."""
DELAY = 3
"""Timesteps between the sign and the question in ``RecallEnv``."""


class RecallEnv(gym.Env[dict[str, Any], Any]):
    """A sign is shown once; the action must repeat it some timesteps later.

    In one of the two tasks the opposite is right. Episodes are terminated or truncated at different
    lengths; all other actions have reward 0.
    """

    def __init__(self, truncate: bool = False, continuous: bool = False) -> None:
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-1, 1, (2,), np.float32), task=spaces.Discrete(2)
        )
        self.action_space = spaces.Box(-1, 1, (1,)) if continuous else spaces.Discrete(2)
        self.truncate = truncate

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.sign = int(self.np_random.choice([-1, 1]))
        self.task = int(self.np_random.integers(2))
        self.left = DELAY
        return self.observe(self.sign), {}

    def observe(self, shown: int) -> dict[str, Any]:
        return {
            "observation": np.array([shown, self.left == 0], np.float32),
            "task": np.int64(self.task),
        }

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.left:
            self.left -= 1
            truncate = self.truncate and self.left == 1 and bool(self.np_random.random() < 0.3)
            return self.observe(0), 0.0, False, truncate, {}
        assert self.action_space.contains(action)
        right = (2 * int(np.sum(action) > 0) - 1) * (2 * self.task - 1) == self.sign
        return self.observe(0), float(right), True, False, {"is_success": right}


def recall_envs(n_envs: int = 4, **options: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: RecallEnv(**options)] * n_envs)


def build_recurrent_agent(
    kind: type[PPO | A2C] = PPO, memory: str | RecurrentConfig = "lstm", **options: Any
) -> Any:
    """Build an agent whose core has an effect from the start."""
    core = choose(memory, RecurrentConfig)
    core = core.model_copy(
        update={"skip_connection": options.pop("skip_connection", core.skip_connection)}
    )
    policy_kwargs = {
        "memory": core,
        "sites": ("vector", "heads"),
        **options.pop("policy_kwargs", {}),
    }
    env = recall_envs(truncate=True, continuous=options.pop("continuous", False))
    model = kind(RecurrentFusionPolicy, env, policy_kwargs=policy_kwargs, seed=0, **options)
    for name, weight in model.policy.named_parameters():
        if name.endswith("core.add.weight"):  # starts at zero, which would hide the memory
            torch.nn.init.normal_(weight)
    return model


def evaluate_minibatches(model: Any) -> list[tuple[Any, Any]]:
    """Return each minibatch of an epoch and the policy's evaluation of it."""
    return [
        (samples, evaluate_samples(model, samples))
        for samples in model.rollout_buffer.get(getattr(model, "batch_size", None))
    ]
