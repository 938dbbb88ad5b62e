"""The observation contract: a Dict of arrays that SB3 can batch, with the index of the task."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.mission import MissionSpace
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.envs.missions import mission_space, tokenize
from mirl.envs.type_aliases import AnyEnv, AnySpace, Observation

MAX_STATE = 3
"""Largest state code of a cell; for the agent, the state is its direction."""

GRID_HIGH = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), MAX_STATE)
"""Largest object, color and state code of MiniGrid's symbolic image."""

DEFAULT_KEY = "observation"
"""Key of an observation that is not a Dict."""


class ContractObservation(gym.ObservationWrapper[Observation, Any, Any]):
    """Wrapper that converts each observation to a Dict with a ``task`` index.

    An observation that is not a Dict is stored under ``observation``; all other keys keep their
    names. Texts become token ids of shape (MAX_TOKENS,). MiniGrid's symbolic image gets the bounds
    of its codes instead of 0 to 255, which SB3 would take for pixels.

    Args:
        env: the environment.
        task_index: index of its task in the suite.
        n_tasks: number of tasks in the suite.

    Raises:
        ValueError: if ``task_index`` is not below ``n_tasks``.
        ConfigError: if an observation cannot be converted.
    """

    def __init__(self, env: AnyEnv, task_index: int = 0, n_tasks: int = 1) -> None:
        super().__init__(env)
        if not 0 <= task_index < n_tasks:
            raise ValueError(f"task_index must be in [0, n_tasks={n_tasks}), got {task_index}")
        space = env.observation_space
        self._is_dict = isinstance(space, spaces.Dict)
        inner: dict[str, AnySpace] = {DEFAULT_KEY: space}
        if isinstance(space, spaces.Dict):
            inner = dict(space)
        if TASK_KEY in inner:
            raise ConfigError(
                f"the observation already has a key '{TASK_KEY}', which is reserved for the index "
                "of the task; rename it with a wrapper"
            )
        self._text_keys = tuple(key for key, subspace in inner.items() if _is_text(subspace))
        self._task_index = np.asarray(task_index, dtype=np.int64)
        contract = {key: _contract_space(key, inner[key], env) for key in inner}
        contract[TASK_KEY] = spaces.Discrete(n_tasks)
        self.observation_space = spaces.Dict(contract)  # type: ignore[assignment]

    def observation(self, observation: Any) -> Observation:
        """Return an observation of the wrapped environment in the contract's form.

        Args:
            observation: the observation of the wrapped environment.
        """
        converted: Observation = {DEFAULT_KEY: observation}
        if self._is_dict:
            converted = dict(observation)
        for key in self._text_keys:
            converted[key] = tokenize(str(converted[key]))
        # A copy, because a wrapper or the caller may change an observation in place.
        converted[TASK_KEY] = self._task_index.copy()
        return converted


def _is_text(space: AnySpace) -> bool:
    return isinstance(space, (MissionSpace, spaces.Text))


def _contract_space(key: str, space: AnySpace, env: AnyEnv) -> AnySpace:
    """Return the space that replaces the subspace of one key."""
    if _is_text(space):
        return mission_space()
    supported = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, supported):
        raise ConfigError(
            f"the observation '{key}' must be a Box, Discrete, MultiDiscrete, MultiBinary or text, "
            f"got {type(space).__name__}; flatten it with a wrapper"
        )
    if key == "image" and isinstance(space, spaces.Box) and _is_symbolic(space, env):
        # (3,) -> (W, H, 3)
        high = np.broadcast_to(np.asarray(GRID_HIGH, dtype=np.uint8), space.shape)
        return spaces.Box(np.zeros_like(high), high.copy(), space.shape, np.uint8)
    return space


def _is_symbolic(space: spaces.Box, env: AnyEnv) -> bool:
    """Return True if an image holds MiniGrid's codes (W, H, 3), not pixels of the same dtype."""
    if not isinstance(env.unwrapped, MiniGridEnv):
        return False
    if space.dtype != np.uint8 or space.shape[2:] != (3,):
        return False
    # Wrappers may render the codes to pixels.
    wrapper: AnyEnv = env
    while isinstance(wrapper, gym.Wrapper):
        if isinstance(wrapper, (RGBImgObsWrapper, RGBImgPartialObsWrapper)):
            return False
        wrapper = wrapper.env
    # MiniGrid declares 0 to 255 for its codes; other bounds are a wrapper's, which knows better.
    return bool((space.high == 255).all())
