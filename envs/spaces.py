"""The observation contract: a Dict of arrays that SB3 can batch, with the index of the task."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ENV_TASK_KEY, TASK_KEY
from mirl.configs.texts import TextForm
from mirl.envs.texts.codec import TextCodec, text_codec
from mirl.envs.texts.draw import default_length, is_raw_text
from mirl.envs.type_aliases import AnyEnv, AnySpace, Observation

MAX_STATE = 3
"""Largest state code of a cell; for the agent, the state is its direction."""

GRID_HIGH = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), MAX_STATE)
"""Largest object, color and state code of MiniGrid's symbolic image."""

DEFAULT_KEY = "observation"
"""Key of an observation that is not a Dict."""


class ContractObservation(gym.ObservationWrapper[Observation, Any, Any]):
    """Wrapper that converts each observation to a Dict with a ``task`` index.

    An observation that is not a Dict is stored under ``observation``; an environment's own key
    ``task`` becomes ``env_task``, and all other keys keep their names. Texts under any key become
    token ids, a Box of int16 of shape (text_length,). MiniGrid's symbolic image gets the bounds
    of its codes instead of 0 to 255, which SB3 would take for pixels.

    Args:
        env: the environment.
        task_index: index of its task in the suite.
        n_tasks: number of tasks in the suite.
        vocabulary: words with token ids of their own, beside MiniGrid's and BabyAI's;
            ``mirl.envs.draw_vocabulary`` collects those of an environment. All other words share
            64 ids.
        text_length: length of each text, in words; longer ones are cut. None for 80 where the
            texts are MiniGrid's, and otherwise for what the space allows, at most 256.
        text_form: ``tokens``, or ``utf8`` for the text's bytes plus 1.

    Raises:
        ValueError: if ``task_index`` is not below ``n_tasks``.
        ConfigError: if an observation cannot be converted.
    """

    def __init__(
        self,
        env: AnyEnv,
        task_index: int = 0,
        n_tasks: int = 1,
        vocabulary: Sequence[str] = (),
        text_length: int | None = None,
        *,
        text_form: TextForm = "tokens",
    ) -> None:
        super().__init__(env)
        if not 0 <= task_index < n_tasks:
            raise ValueError(f"task_index must be in [0, n_tasks={n_tasks}), got {task_index}")
        space = env.observation_space
        self._is_dict = isinstance(space, spaces.Dict)
        inner: dict[str, AnySpace] = {DEFAULT_KEY: space}
        if isinstance(space, spaces.Dict):
            inner = _without_task_key(dict(space))
        self._has_task_key = self._is_dict and TASK_KEY in space
        self._codecs: dict[str, TextCodec] = {}
        for key, subspace in inner.items():
            if is_raw_text(subspace):
                length = text_length or default_length(subspace, env, text_form)
                self._codecs[key] = text_codec(tuple(vocabulary), length, text_form)
        self._task_index = np.asarray(task_index, dtype=np.int64)
        contract = {}
        for key, subspace in inner.items():
            codec = self._codecs.get(key)
            contract[key] = codec.space() if codec else _contract_space(key, subspace, env)
        contract[TASK_KEY] = spaces.Discrete(n_tasks)
        self.observation_space = spaces.Dict(contract)  # type: ignore[assignment]

    @property
    def text_keys(self) -> tuple[str, ...]:
        """Keys of the texts."""
        return tuple(self._codecs)

    def observation(self, observation: Any) -> Observation:
        """Return an observation of the wrapped environment in the contract's form.

        Args:
            observation: the observation of the wrapped environment.
        """
        converted: Observation = {DEFAULT_KEY: observation}
        if self._is_dict:
            converted = dict(observation)
        if self._has_task_key:
            converted[ENV_TASK_KEY] = converted.pop(TASK_KEY)
        for key, codec in self._codecs.items():
            converted[key] = codec.encode(str(converted[key]), key)
        # A copy, because a wrapper or the caller may change an observation in place.
        converted[TASK_KEY] = self._task_index.copy()
        return converted


def _without_task_key(inner: dict[str, AnySpace]) -> dict[str, AnySpace]:
    """Return the subspaces with the environment's own ``task`` under ``env_task``."""
    if TASK_KEY not in inner:
        return inner
    if ENV_TASK_KEY in inner:
        raise ConfigError(
            f"the observation has both '{TASK_KEY}' and '{ENV_TASK_KEY}', and the first is renamed "
            f"to the second, because '{TASK_KEY}' is the index of the task; rename one of them "
            "with a wrapper"
        )
    return {ENV_TASK_KEY if key == TASK_KEY else key: space for key, space in inner.items()}


def _contract_space(key: str, space: AnySpace, env: AnyEnv) -> AnySpace:
    """Return the space that replaces the subspace of one key."""
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
