"""Wrappers that add a context to any environment: irrelevant numbers, or changing actuators.

The context is a Box of one dimension under ``context``, a key that policies take as a context by
default; all other keys stay inputs.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.envs.spaces import DEFAULT_KEY
from mirl.envs.type_aliases import AnyEnv, AnySpace, Array, Info, Observation

CONTEXT_KEY = "context"
"""Key of the context in the observations of these wrappers."""


class DistractorContext(gym.ObservationWrapper[Observation, Any, Any], RecordConstructorArgs):
    """Append n irrelevant numbers to the context, all of the same value.

    An agent that is trained with one value and evaluated with another shows whether it has learned
    to ignore them. An observation that is not a Dict is stored under ``observation``.

    Args:
        env: the environment, with or without a context.
        n: number of irrelevant numbers.
        value: the value of all of them.

    Raises:
        ConfigError: if the context would be empty, or is not a Box of one dimension.

    References:
        Beukman et al., "Dynamics Generalisation in Reinforcement Learning via Adaptive
        Context-Aware Policies", NeurIPS 2023, who add such irrelevant variables.

    Examples:
        >>> import gymnasium as gym
        >>> from mirl.envs.worlds.context_wrappers import DistractorContext
        >>> env = DistractorContext(gym.make("CartPole-v1"), n=3, value=2.0)
        >>> observation, info = env.reset(seed=0)
        >>> observation["context"].tolist()
        [2.0, 2.0, 2.0]
    """

    def __init__(self, env: AnyEnv, n: int, value: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, n=n, value=value)
        gym.ObservationWrapper.__init__(self, env)
        own = _subspaces(env)
        context = own.get(CONTEXT_KEY)
        low = np.zeros(0, np.float32)
        high = np.zeros(0, np.float32)
        if isinstance(context, spaces.Box):
            low = context.low.astype(np.float32)
            high = context.high.astype(np.float32)
        if n < 0 or low.ndim != 1 or len(low) + n == 0 or not (context is None or low.size):
            raise ConfigError(
                "expected at least one number of context, as a Box of one dimension under "
                f"'{CONTEXT_KEY}', or n of at least 1, got {n=} and the context {context}; change n"
            )
        self._distractors = np.full(n, value, np.float32)
        # Bounds that are the same for every value, so that such environments form a suite.
        unbounded = np.full(n, np.inf, np.float32)
        bounds = np.concatenate([low, -unbounded]), np.concatenate([high, unbounded])
        subspaces = {**own, CONTEXT_KEY: spaces.Box(*bounds, dtype=np.float32)}
        self.observation_space = spaces.Dict(subspaces)  # type: ignore[assignment]

    def observation(self, observation: Any) -> Observation:
        """Return an observation with the irrelevant numbers at the end of its context.

        Args:
            observation: an observation of the environment.
        """
        seen = _as_dict(observation)
        context = np.concatenate([seen.get(CONTEXT_KEY, []), self._distractors], dtype=np.float32)
        return _with_context(seen, context, self.observation_space)


class ActuatorContext(gym.Wrapper[Observation, Array, Any, Any], RecordConstructorArgs):
    """Scale, flip and swap the actions anew in each episode, and show the change as the context.

    With actions u and u' in units of half their range around its center, the environment gets
    u' = M u, clipped to [-1, 1]. Each row of the m × m matrix M has one entry that is not 0, of a
    size that is drawn uniformly from [``low``, ``high``] and, with ``flips``, of a random sign.
    It is on the diagonal, or, with ``swaps``, in half of the episodes on the antidiagonal, which
    reverses the order of the actions. The context is the diagonal of M (m,), or with
    ``swaps`` all of M, row by row (m · m,).

    Args:
        env: an environment whose actions are a bounded Box of one dimension, and whose
            observations have no ``context``.
        low: smallest size of an entry of M, at least 0.
        high: largest size of an entry of M, at most 1, so that clipping never weakens an action.
        flips: whether entries have random signs.
        swaps: whether the order of the actions is reversed in half of the episodes.

    Raises:
        ConfigError: if the environment or the sizes do not fit.

    References:
        Benad et al., "Dynamics-Aligned Shared Hypernetworks for Zero-Shot Actuator Inversion",
        arXiv:2602.06550, whose actions are flipped.

    Examples:
        >>> import gymnasium as gym
        >>> from mirl.envs.worlds.context_wrappers import ActuatorContext
        >>> env = ActuatorContext(gym.make("Pendulum-v1"), low=0.5, high=0.5, flips=False)
        >>> observation, info = env.reset(seed=0)
        >>> observation["context"].tolist()  # the motor has half of its strength
        [0.5]
    """

    def __init__(
        self,
        env: AnyEnv,
        low: float = 1.0,
        high: float = 1.0,
        flips: bool = True,
        swaps: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(self, low=low, high=high, flips=flips, swaps=swaps)
        gym.Wrapper.__init__(self, env)
        actions = env.action_space
        if not isinstance(actions, spaces.Box) or len(actions.shape) != 1:
            raise ConfigError(f"expected actions in a Box of one dimension, got {actions}")
        if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
            raise ConfigError(f"expected actions with finite bounds, got {actions}")
        m = actions.shape[0]
        if swaps and m < 2:
            raise ConfigError(f"swaps needs at least two actions, got {m}; use swaps=false")
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"expected 0 <= low <= high <= 1, got {low=}, {high=}")
        own = _subspaces(env)
        if CONTEXT_KEY in own:
            raise ConfigError(
                f"expected observations without '{CONTEXT_KEY}', got the keys {list(own)}"
            )
        self._dtype = actions.dtype
        self._low = low
        self._high = high
        self._flips = flips
        self._swaps = swaps
        self._center = (actions.low + actions.high) / 2
        self._half_range = (actions.high - actions.low) / 2
        self._rng = np.random.default_rng()
        self.matrix: NDArray[np.float64] = np.eye(m)
        """M of the running episode, (m, m)."""
        context = spaces.Box(-1.0, 1.0, (m * m if swaps else m,), np.float32)
        subspaces = {**own, CONTEXT_KEY: context}
        self.observation_space = spaces.Dict(subspaces)  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[Observation, Info]:
        """Draw M and start an episode.

        Args:
            seed: seed of the environment, and of the generator of M; None continues both.
            options: options of the environment.

        Returns:
            The observation and the info of the environment.
        """
        if seed is not None:
            # A child seed: with the seed itself, M would repeat the environment's random numbers.
            self._rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
        m = len(self.matrix)
        entries = self._rng.uniform(self._low, self._high, m)
        if self._flips:
            entries *= self._rng.choice((-1.0, 1.0), m)
        self.matrix = np.diag(entries)
        if self._swaps and self._rng.integers(2):
            self.matrix = self.matrix[:, ::-1]
        observation, info = self.env.reset(seed=seed, options=options)
        return self._add_context(observation), info

    def step(self, action: Array) -> tuple[Observation, Any, bool, bool, Info]:
        """Take a timestep with the changed action.

        Args:
            action: the action, (m,).

        Returns:
            Observation, reward, terminated, truncated and info.
        """
        units = self.matrix @ ((action - self._center) / self._half_range)
        changed = self._center + self._half_range * np.clip(units, -1.0, 1.0)
        observation, reward, terminated, truncated, info = self.env.step(
            changed.astype(self._dtype)
        )
        return self._add_context(observation), reward, terminated, truncated, info

    def _add_context(self, observation: Any) -> Observation:
        context = self.matrix.reshape(-1)
        if not self._swaps:
            context = self.matrix.diagonal()
        return _with_context(
            _as_dict(observation), context.astype(np.float32), self.observation_space
        )


def _subspaces(env: AnyEnv) -> dict[str, AnySpace]:
    """Return the observation space of an environment by key."""
    if isinstance(env.observation_space, spaces.Dict):
        return dict(env.observation_space)
    return {DEFAULT_KEY: env.observation_space}


def _as_dict(observation: Any) -> Observation:
    if isinstance(observation, dict):
        return observation
    return {DEFAULT_KEY: observation}


def _with_context(observation: Observation, context: Array, space: Any) -> Observation:
    """Return an observation with a context, its keys in the order of the space."""
    joined = {**observation, CONTEXT_KEY: context}
    return {key: joined[key] for key in space}
