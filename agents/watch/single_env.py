"""A single rendered environment of a run's suite, and the policy's view of it."""

from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8
from stable_baselines3.common.policies import BasePolicy

from mirl.configs.keys import ACTION_MASK_KEY, MISSION_KEY
from mirl.configs.tasks import SuiteConfig
from mirl.envs import make_env
from mirl.envs.actions import with_action_mask
from mirl.envs.holdout import EpisodeFilter
from mirl.envs.make import is_game
from mirl.envs.texts.codec import suite_codec
from mirl.envs.type_aliases import EnvIndices, Observations
from mirl.envs.vector import NO_HOLDOUT

Env = gym.Env[Any, Any]
Frame = UInt8[np.ndarray, "height width 3"]


def open_env(suite: SuiteConfig, task_index: int, render_mode: str = "rgb_array") -> Env | None:
    """Return an environment of a task that renders pictures; None if it cannot render.

    Args:
        suite: the suite.
        task_index: index of the task in the suite.
        render_mode: ``rgb_array`` for pictures, ``human`` for the environment's own window.
    """
    task = suite.tasks[task_index]
    if is_game(task):
        return None
    n_tasks = len(suite.tasks)
    # rendering may need a display, so request it only if it is possible
    probe = make_env(
        task, task_index, n_tasks, suite.observation, unknown_codes=suite.unknown_codes
    )
    probe.close()
    if render_mode not in probe.metadata.get("render_modes", ()):
        return None
    return make_env(
        task,
        task_index,
        n_tasks,
        suite.observation,
        render_mode=render_mode,
        unknown_codes=suite.unknown_codes,
        texts=suite_codec(suite),
    )


def render(env: Env) -> Frame:
    """Return the picture of an environment.

    Args:
        env: an environment from ``open_env``.
    """
    return cast(np.ndarray, env.render())


def text_of(env: Env, task: str) -> str:
    """Return the mission or another text of an episode that has begun, or the name of the task.

    Args:
        env: an environment from ``open_env``.
        task: name of its task.
    """
    texts: Mapping[str, str] = env.get_wrapper_attr("texts")
    mission = texts.get(MISSION_KEY, getattr(env.unwrapped, "mission", None))
    if mission is None:
        mission = next(iter(texts.values()), task)
    return str(mission)


def first_observation(env: Env, suite: SuiteConfig, seed: int | None) -> Observations:
    """Reset until the episode has the mission of the task, if the task names one.

    Args:
        env: an environment from ``open_env``.
        suite: its suite.
        seed: seed of the first reset; None to continue with the environment's generator.

    Returns:
        The observation, without a batch axis.
    """
    seeds = chain([seed], repeat(None))  # only the first reset is seeded

    def reset(_rows: EnvIndices) -> Observations:
        observation, _ = env.reset(seed=next(seeds))
        return _add_batch_axis(observation)

    assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
    episode_filter = EpisodeFilter(suite, NO_HOLDOUT, "trained", env.observation_space)
    batch = episode_filter.draw(reset, 1)
    return {key: values[0] for key, values in batch.items()}


def as_batch(observation: Observations, env: Env, policy: BasePolicy) -> Observations:
    """Return a batch of one observation, with an action mask if the policy expects one.

    Args:
        observation: an observation of the environment.
        env: the environment.
        policy: the policy.
    """
    batch = _add_batch_axis(observation)
    # the env has the actions of its own task, the policy the largest action space of the suite
    task_actions = env.action_space
    all_actions = policy.action_space
    if not isinstance(task_actions, spaces.Discrete) or not isinstance(
        all_actions, spaces.Discrete
    ):
        return batch
    observation_space = cast(spaces.Dict, policy.observation_space)
    if ACTION_MASK_KEY not in observation_space.spaces:
        return batch
    return with_action_mask(batch, int(task_actions.n), int(all_actions.n))


def _add_batch_axis(observation: Observations) -> Observations:
    return {key: np.asarray(value)[None] for key, value in observation.items()}
