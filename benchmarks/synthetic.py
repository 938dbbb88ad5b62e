"""Environments of configurable sizes, with random observations and missions.

No two observations are equal, and every mission differs, so that an agent can share as little work
between them as possible. Stepping costs almost nothing. ``scaling.py`` trains an agent on them.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from mirl.agents import PPO
from mirl.configs.keys import MISSION_KEY
from mirl.policies import FusionPolicy

MOST_CODES = (10, 5, 2)
"""Maximum codes of object, color and state of a cell, as in MiniGrid."""
N_WORDS = 50
N_ACTIONS = 7
EPISODE = 32
"""Timesteps per episode."""
N_POOLED = 64
"""Steps whose observations are sampled in advance and reused in turn with other missions."""


class SyntheticVecEnv(VecEnv):
    """Grids of random codes with random missions, in place of a task.

    Args:
        n_envs: number of environments.
        contexts: number of distinct missions; each environment has one of them.
        words: length of each mission.
        view: side V of the view, (V, V, 3).
    """

    def __init__(self, n_envs: int, contexts: int, words: int, view: int) -> None:
        shape = (view, view, len(MOST_CODES))
        high = np.broadcast_to(np.array(MOST_CODES, np.uint8), shape)
        space = spaces.Dict(
            {
                "image": spaces.Box(np.zeros(shape, np.uint8), high),
                MISSION_KEY: spaces.Box(0, N_WORDS, (words,), np.int16),
            }
        )
        super().__init__(n_envs, space, spaces.Discrete(N_ACTIONS))
        rng = np.random.default_rng(0)
        codes = np.array(MOST_CODES) + 1
        self._images = rng.integers(codes, size=(N_POOLED, n_envs, *shape)).astype(np.uint8)
        # word 0 is the padding
        missions = rng.integers(1, N_WORDS + 1, size=(contexts, words)).astype(np.int16)
        self._missions = missions[np.arange(n_envs) % contexts]
        self._rewards = rng.random((N_POOLED, n_envs), np.float32)
        # not all environments end at the same step
        self._starts = rng.integers(EPISODE, size=n_envs)
        self._steps = 0

    def _observe(self) -> VecEnvObs:
        # copies, because a rollout keeps references to the arrays
        image = self._images[self._steps % N_POOLED].copy()
        return {"image": image, MISSION_KEY: self._missions.copy()}

    def reset(self) -> VecEnvObs:
        """Return the first observations."""
        return self._observe()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Ignore the actions."""

    def step_wait(self) -> VecEnvStepReturn:
        """Return the next observations with random rewards."""
        self._steps += 1
        dones = (self._steps + self._starts) % EPISODE == 0
        observation = self._observe()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env_index in np.flatnonzero(dones):
            last = {key: values[env_index] for key, values in observation.items()}
            infos[env_index] = {"terminal_observation": last, "TimeLimit.truncated": False}
        return observation, self._rewards[self._steps % N_POOLED], dones, infos

    def close(self) -> None:
        """Do nothing, because there is nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return None for each environment, none of which has attributes."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Ignore the attribute."""

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Return None for each environment, none of which has methods."""
        return [None for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each environment."""
        return [False for _ in self._get_indices(indices)]


def synthetic_ppo(*sizes: str) -> PPO:
    """Build PPO with the default policy on synthetic environments.

    Args:
        *sizes: parameters of ``SyntheticVecEnv`` that differ from the defaults, as ``view=9``.
    """
    chosen = {"n_envs": 256, "contexts": 32, "words": 10, "view": 7}
    for size in sizes:
        name, _, value = size.partition("=")
        if name not in chosen:
            raise ValueError(f"expected a size of {', '.join(chosen)}, got {size!r}")
        chosen[name] = int(value)
    env = SyntheticVecEnv(**chosen)
    return PPO(FusionPolicy, env, n_steps=8, batch_size=1024, n_epochs=4, precision="auto", seed=0)
