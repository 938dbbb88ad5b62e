"""Gymnasium's CartPole with a pole whose length differs between episodes and is the context.

References:
    Benjamins et al., "Contextualize Me – The Case for Context in Reinforcement Learning", TMLR
    2023, whose CartPole has such contexts (CARL).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.envs.type_aliases import Info

N_STEPS = 500
"""Timesteps of an episode, each with a reward of 1, as in CartPole-v1."""

FloatObservation = dict[str, NDArray[np.float32]]


class PoleLengthEnv(CartPoleEnv):
    """CartPole-v1 with a pole of a new length in each episode.

    The observation holds CartPole's own observation (4,) under ``observation`` and the length of
    the pole, relative to CartPole's, (1,) under ``context``.

    Args:
        lengths: smallest and largest relative length; it is drawn uniformly between them.
        render_mode: render mode of CartPole.

    Raises:
        ConfigError: if the lengths are not a range of positive numbers.
    """

    def __init__(
        self, lengths: Sequence[float] = (0.5, 2.0), render_mode: str | None = None
    ) -> None:
        super().__init__(render_mode=render_mode)
        if len(lengths) != 2 or not 0 < lengths[0] <= lengths[1]:
            raise ConfigError(f"lengths must be two numbers, 0 < low <= high, got {lengths}")
        self._low, self._high = lengths
        self._own_length = self.length
        self._relative_length = 1.0
        context = spaces.Box(0.0, np.inf, (1,), np.float32)
        subspaces = {"context": context, "observation": self.observation_space}
        self.observation_space = spaces.Dict(subspaces)  # type: ignore[assignment]

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[FloatObservation, Info]:
        """Draw an initial state as CartPole does, and a length.

        Args:
            seed: seed of the generator; None continues it.
            options: options of CartPole.

        Returns:
            The observation and an empty info.
        """
        state, info = super().reset(seed=seed, options=options)
        self._relative_length = float(self.np_random.uniform(self._low, self._high))
        self.length = self._own_length * self._relative_length
        self.polemass_length = self.masspole * self.length
        return self._observation(state), info

    def step(  # type: ignore[override]
        self, action: Any
    ) -> tuple[FloatObservation, float, bool, bool, Info]:
        """Take a timestep of CartPole.

        Args:
            action: 0 to push the cart to the left, 1 to the right.

        Returns:
            Observation, reward, terminated, truncated and info.
        """
        state, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return self._observation(state), float(reward), terminated, truncated, info

    def _observation(self, state: NDArray[np.float32]) -> FloatObservation:
        return {"context": np.array([self._relative_length], np.float32), "observation": state}


gym.register(
    "MIRL/PoleLength-v0",
    entry_point="mirl.envs.worlds.cart_pole:PoleLengthEnv",
    max_episode_steps=N_STEPS,
)
