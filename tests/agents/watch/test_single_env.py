"""A single environment: its text, its first observation, and the action mask of the policy."""

from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces

from mirl.agents.watch.single_env import first_observation, open_env, render, text_of
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs.spaces import ContractObservation

DOOR = TaskConfig(name="red", env_id="MiniGrid-GoToDoor-5x5-v0", mission="red door")


class OrderEnv(gym.Env[Any, Any]):
    """An environment whose observation has a text, while it has no attribute ``mission``."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.observation_space = spaces.Dict({key: spaces.Text(20)})
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return {self.key: "Open the door!"}, {}


@pytest.mark.parametrize("key", ["mission", "order"])
def test_caption_is_text_of_observation(key: str) -> None:
    env = ContractObservation(OrderEnv(key))
    env.reset()
    assert text_of(env, "task") == "Open the door!"


def test_first_episode_has_task_mission() -> None:
    """The environment is reset until the episode has the mission of its task."""
    suite = SuiteConfig(name="doors", tasks=(DOOR,))
    env = open_env(suite, 0)
    assert env is not None
    for seed in range(5):
        first_observation(env, suite, seed)
        assert text_of(env, "red") == "go to the red door"
    assert render(env).shape[2] == 3
    env.close()
