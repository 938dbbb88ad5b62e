"""PPO models on a toy environment with observations like MiniGrid's."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toy_goal_envs import SampledEnv

from mirl.configs.networks import GridEncoderConfig, TaskIdContextConfig
from mirl.policies import FusionExtractor, FusionPolicy

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (5, 5, 3))
GRID = spaces.Dict(
    {
        "direction": spaces.Discrete(4),
        "image": spaces.Box(np.zeros_like(CODES), CODES.copy(), (5, 5, 3), np.uint8),
        "mission": spaces.Box(0, 20, (6,), np.int16),
        "task": spaces.Discrete(3),
    }
)
TINY: dict[str, Any] = {
    "context": TaskIdContextConfig(dim=8),
    "encoder": GridEncoderConfig(channels=8, features_dim=12),
}


def grid_env(action_space: spaces.Space[Any] | None = None) -> VecEnv:
    return DummyVecEnv(
        [
            lambda seed=seed: SampledEnv(GRID, action_space or spaces.Discrete(3), seed)
            for seed in (0, 1)
        ]
    )


def with_extractor(**options: Any) -> dict[str, Any]:
    return {
        "features_extractor_class": FusionExtractor,
        "features_extractor_kwargs": options,
        "net_arch": [8],
    }


def ppo(
    policy_kwargs: dict[str, Any],
    policy: Any = FusionPolicy,
    env: VecEnv | None = None,
    **options: Any,
) -> PPO:
    return PPO(
        policy,
        env or grid_env(),
        n_steps=16,
        batch_size=8,
        n_epochs=2,
        policy_kwargs=policy_kwargs,
        seed=0,
        device="cpu",
        **options,
    )
