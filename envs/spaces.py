"""The observation contract: every observation is a Dict of arrays that SB3 can batch, plus the index of its task."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.mission import MissionSpace
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.envs.missions import mission_space, tokenize

GRID_HIGH = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), 3)
"""Largest object, color and state code of MiniGrid's symbolic image; the state of an agent is its direction."""

Observation = dict[str, NDArray[Any]]


class ContractObservation(gym.ObservationWrapper[Observation, Any, Any]):
    """Makes each observation a Dict that keeps its keys' names and gains ``task``.

    An observation that is not a Dict goes under ``observation``. Texts become token ids, shape (MAX_TOKENS,), and
    MiniGrid's symbolic image gets the bounds that it keeps instead of 0–255 (which SB3 would take for pixels).
    """

    def __init__(self, env: gym.Env[Any, Any], task_index: int = 0, n_tasks: int = 1) -> None:
        super().__init__(env)
        if not 0 <= task_index < n_tasks:
            raise ValueError(f"task_index must be in [0, n_tasks={n_tasks}), got {task_index}")
        space = env.observation_space
        self._has_keys = isinstance(space, spaces.Dict)
        inner: dict[str, spaces.Space[Any]] = (
            dict(space) if isinstance(space, spaces.Dict) else {"observation": space}
        )
        if TASK_KEY in inner:
            raise ConfigError(
                f"the observation has a key '{TASK_KEY}' of its own, which is kept for the task index"
            )
        self._texts = tuple(
            key for key, part in inner.items() if isinstance(part, (MissionSpace, spaces.Text))
        )
        self._task = np.asarray(task_index, dtype=np.int64)
        contract = {key: _contract_space(key, part, env) for key, part in inner.items()}
        self.observation_space = spaces.Dict({**contract, TASK_KEY: spaces.Discrete(n_tasks)})  # type: ignore[assignment]

    def observation(self, observation: Any) -> Observation:
        """One observation under the contract."""
        named: Observation = dict(observation) if self._has_keys else {"observation": observation}
        for key in self._texts:
            named[key] = tokenize(str(named[key]))
        named[TASK_KEY] = self._task.copy()
        return named


def _contract_space(
    key: str, space: spaces.Space[Any], env: gym.Env[Any, Any]
) -> spaces.Space[Any]:
    if isinstance(space, (MissionSpace, spaces.Text)):
        return mission_space()
    if not isinstance(
        space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    ):
        raise ConfigError(
            f"the observation '{key}' must be a Box, Discrete, MultiDiscrete, MultiBinary or text, "
            f"got {type(space).__name__}; flatten it with a wrapper"
        )
    if key == "image" and isinstance(space, spaces.Box) and _is_symbolic(space, env):
        high = np.broadcast_to(np.asarray(GRID_HIGH, dtype=np.uint8), space.shape)
        return spaces.Box(np.zeros_like(high), high.copy(), space.shape, np.uint8)
    return space


def _is_symbolic(space: spaces.Box, env: gym.Env[Any, Any]) -> bool:
    """Whether an image space is MiniGrid's (width, height, 3) of codes, and not pixels of the same dtype and bounds."""
    if (
        not isinstance(env.unwrapped, MiniGridEnv)
        or space.dtype != np.uint8
        or space.shape[2:] != (3,)
    ):
        return False
    wrapper: gym.Env[Any, Any] = env
    while isinstance(wrapper, gym.Wrapper):
        if isinstance(wrapper, (RGBImgObsWrapper, RGBImgPartialObsWrapper)):
            return False
        wrapper = wrapper.env
    return bool((space.high == 255).all())
