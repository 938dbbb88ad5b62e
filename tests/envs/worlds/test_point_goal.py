"""Tests of the point that is driven to a goal."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from mirl.envs.worlds.point_goal import N_STEPS, PointGoalEnv


def test_checkers_accept_the_environment() -> None:
    check_env(PointGoalEnv(), skip_render_check=True)
    sb3_check_env(PointGoalEnv())


def test_episode_equals_a_plain_loop() -> None:
    """Positions, rewards and success equal those of a loop, and the last timestep truncates."""
    env = gym.make("MIRL/PointGoal-v0", disable_env_checker=True)
    observation, _ = env.reset(seed=0)
    x, y, goal_x, goal_y = map(float, observation)
    rng = np.random.default_rng(0)
    for timestep in range(1, N_STEPS + 1):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        x = max(-1.0, min(1.0, x + 0.1 * float(action[0])))
        y = max(-1.0, min(1.0, y + 0.1 * float(action[1])))
        distance = math.hypot(x - goal_x, y - goal_y)
        assert observation == pytest.approx([x, y, goal_x, goal_y], abs=1e-5)
        assert reward == pytest.approx(1 - distance / math.sqrt(8), abs=1e-5)
        assert info["is_success"] == (distance < 0.1)
        assert (terminated, truncated) == (False, timestep == N_STEPS)


def test_straight_way_reaches_the_goal() -> None:
    env = PointGoalEnv()
    for seed in range(20):
        env.reset(seed=seed)
        info = {}
        for _ in range(N_STEPS):
            *_, info = env.step(np.clip(10 * (env.goal - env.position), -1, 1))
        assert info["is_success"]
