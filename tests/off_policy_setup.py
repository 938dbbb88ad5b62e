"""Tiny runs of off-policy algorithms, on tasks that fit their actions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toy_goal_envs import FlipGoalEnv, MirrorReachEnv

from mirl.agents.builder import build_agent, resolve_auto
from mirl.configs.compose import compose_train
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

LIMIT = 5
"""Timesteps of an episode of ``ToyGoalReach``."""


class LeverEnv(MirrorReachEnv):
    """``MirrorReachEnv`` with two actions: push or pull a lever."""

    def __init__(self, n_steps: int = 2) -> None:
        super().__init__(n_steps)
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        return super().step(np.array([1.5 * int(action) - 0.75]))


gym.register("ToyGoalReach-v0", MirrorReachEnv, max_episode_steps=LIMIT, kwargs={"n_steps": LIMIT})
gym.register("ToyGoalLever-v0", LeverEnv, max_episode_steps=LIMIT, kwargs={"n_steps": LIMIT})
gym.register("ToyFlip-v0", FlipGoalEnv)

TINY = (
    "context=goal",
    "encoder=vector",
    "encoder.hidden=[]",
    "encoder.features_dim=8",
    "context.dim=4",
    "sites=[vector, heads]",
    "agent.net_arch=[8]",
    "agent.learning_starts=20",
    "agent.batch_size=16",
    "total_timesteps=80",
    "evaluation.episodes=4",
    "evaluation.max_steps=20",
    "videos=false",
    "progress=false",
    "device=cpu",
    "evaluation.context_use=false",  # it would take as long again
)


def tiny_off_policy(folder: Path, kind: str, *words: str) -> TrainConfig:
    """Compose a tiny configuration of an algorithm, whose runs are in a folder."""
    env_id = "ToyGoalLever-v0" if kind == "dqn" else "ToyGoalReach-v0"
    task = f"task.tasks=[{{name: reach, env_id: {env_id}, success: info}}]"
    reach = ("task.name=reach", task)
    if any(word.startswith("task.tasks") for word in words):
        reach = ()
    return compose_train([f"agent={kind}", *TINY, f"runs_dir={folder}", *reach, *words])


def build_off_policy_agent(config: TrainConfig, opened: list[SuiteVecEnv]) -> Any:
    """Build an untrained agent and append its environments to ``opened``, for the test to close."""
    env = SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend, seed=config.seed)
    opened.append(env)
    return build_agent(resolve_auto(config, env.observation_space), env)


@pytest.fixture(name="tiny")
def tiny_fixture(tmp_path: Path) -> Callable[..., TrainConfig]:
    """``tiny(kind, *words)``: a tiny configuration of an off-policy algorithm."""
    return lambda kind, *words: tiny_off_policy(tmp_path, kind, *words)


@pytest.fixture(name="make_agent")
def make_agent_fixture() -> Iterator[Callable[[TrainConfig], Any]]:
    """``make_agent(config)``: an untrained agent; its environments are closed after the test."""
    opened: list[SuiteVecEnv] = []
    yield lambda config: build_off_policy_agent(config, opened)
    for env in opened:
        env.close()
