"""A game of n agents that have to choose different actions: equal actions reduce the reward.

One network controls all agents. Their observations are the same, so only their number, the index
of their task, distinguishes them.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.envs.type_aliases import Array, Info

N_STEPS = 16
"""Timesteps of an episode. Each gives a reward of at most 1, so this is also the highest return."""


class RolesVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], Array]):
    """Games of n agents, each of which chooses one of n actions: r = 1 / (agents with the same).

    The slots of the vector are the agents: slot g · n + i is agent i of game g. The observation is
    the last joint action of the game, n one-hot rows (n · n,), the same for all of its agents. The
    joint action before the first timestep is drawn uniformly. Rewards are in [1 / n, 1], and
    they are 1 for all agents if and only if no two agents choose the same action. Episodes are only
    truncated, and the games then wait for their reset.

    Args:
        num_envs: number of slots, a multiple of ``n_agents``.
        n_agents: number of agents of a game, n.
        max_episode_steps: timesteps after which an episode is truncated.

    Raises:
        ConfigError: if a number is out of range.
    """

    metadata = {  # noqa: RUF012  (gymnasium's own declaration)
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": [],
    }

    def __init__(
        self, num_envs: int = 2, n_agents: int = 2, max_episode_steps: int = N_STEPS
    ) -> None:
        if n_agents < 2 or max_episode_steps < 1:
            raise ConfigError(
                "n_agents must be at least 2 and max_episode_steps at least 1, "
                f"got {n_agents=}, {max_episode_steps=}"
            )
        if num_envs < 1 or num_envs % n_agents:
            raise ConfigError(
                f"num_envs must be a multiple of n_agents={n_agents}, whole games, got {num_envs}"
            )
        self.num_envs = num_envs
        self.n_agents = n_agents
        self._max_episode_steps = max_episode_steps
        n_games = num_envs // n_agents
        self._joint_actions = np.zeros((n_games, n_agents), np.int64)
        self._n_steps = np.zeros(n_games, np.int64)
        # One stream per game, so that no game depends on when the others are reset.
        self._rngs = np.random.default_rng().spawn(n_games)
        self.single_observation_space = spaces.Box(0.0, 1.0, (n_agents * n_agents,), np.float32)
        self.single_action_space = spaces.Discrete(n_agents)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Start an episode in all games, or in some.

        Args:
            seed: seeds of the slots, of which each game uses that of its first agent; an integer
                is the seed of slot 0, plus i for slot i. None continues the random streams.
            options: ``reset_mask`` is True for the slots to reset, (num_envs,), whole games.

        Returns:
            The observations of all slots, (num_envs, n · n), and an empty info.

        Raises:
            ValueError: if only some agents of a game are reset.
        """
        n_games = len(self._n_steps)
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], np.bool_)
        in_games = mask.reshape(n_games, self.n_agents)  # (num_envs,) -> (games, n)
        if (in_games.any(axis=1) != in_games.all(axis=1)).any():
            raise ValueError(f"reset_mask must have whole games of {self.n_agents} slots: {mask}")
        if isinstance(seed, int):
            seed = range(seed, seed + self.num_envs)
        for game in np.flatnonzero(in_games[:, 0]).tolist():
            game_seed = None if seed is None else seed[game * self.n_agents]
            if game_seed is not None:
                self._rngs[game] = np.random.default_rng(game_seed)
            self._joint_actions[game] = self._rngs[game].integers(self.n_agents, size=self.n_agents)
            self._n_steps[game] = 0
        return self._observations(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], Array, NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Take a timestep in all games.

        Args:
            actions: actions in [0, n), (num_envs,).

        Returns:
            Observations (num_envs, n · n), rewards, terminated and truncated (num_envs,), and an
            empty info.
        """
        self._joint_actions = np.asarray(actions, np.int64).reshape(-1, self.n_agents)  # (games, n)
        # (games, n, n): True where two agents, or an agent and itself, choose the same action.
        is_same = self._joint_actions[:, :, None] == self._joint_actions[:, None, :]
        rewards = 1.0 / is_same.sum(axis=2)
        self._n_steps += 1
        truncated = np.repeat(self._n_steps >= self._max_episode_steps, self.n_agents)
        terminated = np.zeros(self.num_envs, np.bool_)
        return self._observations(), rewards.reshape(-1), terminated, truncated, {}

    def _observations(self) -> NDArray[np.float32]:
        """Return the last joint action of each game as seen by its agents, (num_envs, n · n)."""
        one_hot: Any = np.eye(self.n_agents, dtype=np.float32)[self._joint_actions]
        # (games, n, n) -> (games, n · n) -> (num_envs, n · n)
        flat = one_hot.reshape(len(one_hot), -1)
        observations: NDArray[np.float32] = np.repeat(flat, self.n_agents, axis=0)
        return observations


# There is no single environment to make: an agent needs the others.
gym.register(
    "MIRL/Roles-v0",
    vector_entry_point="mirl.envs.worlds.roles:RolesVectorEnv",
    max_episode_steps=N_STEPS,
)
