"""Episodes of one environment, shown while they are played, with their outcomes."""

from enum import Enum
from typing import Any

import numpy as np
from gymnasium import spaces

from mirl.agents.watch.single_env import Env, first_observation, text_of
from mirl.configs.tasks import SuiteConfig
from mirl.envs.pools.backend import NOT_REPORTED
from mirl.envs.pools.gymnasium import reported_success
from mirl.envs.success import is_success, pays_as_minigrid
from mirl.envs.type_aliases import Observations


class EpisodePlayer:
    """Episodes of a task, played one action at a time by an agent or a person.

    Args:
        env: an environment from ``open_env``.
        suite: its suite.
        task_index: index of the task in the suite.
    """

    def __init__(self, env: Env, suite: SuiteConfig, task_index: int) -> None:
        self.env = env
        self.task = suite.tasks[task_index]
        self.action_names = _action_names(env)
        """Name of each action; empty unless the actions are ``Discrete``."""
        self._suite = suite
        self.timestep = 0
        self.episode_return = 0.0
        self.last_action = ""
        """Name of the action that led to the current timestep; empty at the first one."""
        self.outcome = "running"
        """``running``, ``success``, ``failure``, or ``over`` if no success is reported."""
        self.is_truncated = False
        """True if a time limit ended the episode."""
        self._best_report = NOT_REPORTED

    @property
    def is_over(self) -> bool:
        """True if the episode has ended."""
        return self.outcome != "running"

    @property
    def mission(self) -> str:
        """The mission or another text of the episode, or the name of the task."""
        return text_of(self.env, self.task.name)

    @property
    def ending(self) -> str:
        """The outcome in words: ``success``, ``failure: time limit``; empty while running."""
        match self.outcome, self.is_truncated:
            case "running", _:
                return ""
            case "failure", True:
                return "failure: time limit"
            case "over", True:
                return "time limit"
            case "over", False:
                return "episode over"
            case outcome, _:
                return outcome

    def start(self, seed: int | None) -> Observations:
        """Start an episode; return its first observation.

        Args:
            seed: seed of the environment; None to continue with its generator.
        """
        observation = first_observation(self.env, self._suite, seed)
        self.timestep = 0
        self.episode_return = 0.0
        self.last_action = ""
        self.outcome = "running"
        self.is_truncated = False
        self._best_report = NOT_REPORTED
        return observation

    def step(self, action: Any) -> Observations:
        """Take an action; return the observation after it.

        Args:
            action: an action, in the form that the environment expects.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        last_report = reported_success(info)
        self.timestep += 1
        self.episode_return += float(reward)
        self.last_action = self.name_of(action)
        self._best_report = max(self._best_report, last_report)
        if terminated or truncated:
            self.is_truncated = not terminated
            self.outcome = self._judge(float(reward), last_report)
        new: Observations = observation
        return new

    def name_of(self, action: Any) -> str:
        """Return an action in words: its name, its number, or its numbers.

        Args:
            action: an action, in the form that the environment expects.
        """
        if isinstance(self.env.action_space, spaces.Discrete):
            return self.action_names[int(action)]
        return " ".join(f"{number:.2f}" for number in np.ravel(action))

    def _judge(self, last_reward: float, last_report: int) -> str:
        success = is_success(
            self.task,
            last_reward,
            self.episode_return,
            last_report,
            self._best_report,
            has_minigrid_reward=pays_as_minigrid(self.task),
        )
        if success is None:
            return "over"
        return "success" if success else "failure"


def _action_names(env: Env) -> list[str]:
    space = env.action_space
    if not isinstance(space, spaces.Discrete):
        return []
    # MiniGrid's actions; an environment may use fewer of them
    named = getattr(env.unwrapped, "actions", None)
    if isinstance(named, type) and issubclass(named, Enum) and len(named) >= space.n:
        return [member.name for member in named][: int(space.n)]
    return [str(index) for index in range(int(space.n))]
