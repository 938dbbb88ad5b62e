"""A point on a line whose control depends on a context: ẋ = Re Σᵢ cᵢ (F a)ⁱ.

The context c holds the coefficients of the polynomial, a is the action and F a constant force.

References:
    Beukman, Jarvis, Klein, James, Rosman, "Dynamics Generalization in Reinforcement Learning via
    Adaptive Context-Aware Policies", NeurIPS 2023, and the published configuration of its
    experiments.
"""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.envs.type_aliases import AnySpace, Info

FloatObservation = dict[str, NDArray[np.float32]]

N_STEPS = 200
"""Timesteps of an episode. Each gives a reward of at most 1, so this is also the highest return."""

DT = 0.01
"""Seconds per timestep."""

X_LIMIT = 20.0
"""x is clipped to [-X_LIMIT, X_LIMIT]."""

BANDS = ((0.05, 1.0), (0.1, 1 / 2), (0.2, 1 / 3), (0.5, 1 / 4), (2.0, 0.05))
"""(distance, reward) of the bands around the origin; outside of all bands the reward is 0."""


class ODEEnv(gym.Env[FloatObservation, NDArray[np.float32]]):
    """Drive x to the origin by ẋ = Re Σᵢ cᵢ (F a)ⁱ for i = 1 … k, with complex actions a₀ + j a₁.

    The observation holds x (1,) under ``observation`` and c / ``context_scale`` (k,) under
    ``context``; the latter can be hidden if the agent is to know the index of its task instead.
    The reward decreases with the distance to the origin in steps (``BANDS``), and ``is_success``
    is True within the innermost band. Episodes are only truncated.

    Args:
        contexts: vectors of coefficients, (k,) each, one of which is drawn per episode. If there
            are none, the coefficients are drawn uniformly from a box.
        low: lower corner of that box, (k,).
        high: upper corner of that box, (k,).
        spacing: if it is not 0, the coefficients are drawn from the points of a grid with this
            spacing, which starts at ``low``.
        starts: values of x, one of which is drawn per episode.
        force: F, the factor of actions in [-1, 1]².
        context_scale: divisor of the observed context.
        shows_context: whether the observation holds the context.

    Raises:
        ConfigError: if the contexts differ in size, or the box is empty.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(
        self,
        contexts: Sequence[Sequence[float]] = (),
        low: Sequence[float] = (-5.0, -5.0),
        high: Sequence[float] = (5.0, 5.0),
        spacing: float = 0.0,
        starts: Sequence[float] = (-1.0, -0.5, 0.5, 1.0),
        force: float = 10.0,
        context_scale: float = 5.0,
        shows_context: bool = True,
    ) -> None:
        self._distribution = _ContextDistribution(contexts, low, high, spacing)
        self._starts = tuple(starts)
        self._force = force
        self._context_scale = context_scale
        self._shows_context = shows_context
        self.context: NDArray[np.float64] = np.zeros(self._distribution.size)
        """Coefficients c of the running episode, (k,)."""
        self.x = 0.0
        """Position of the point."""
        subspaces: dict[str, AnySpace] = {
            "observation": spaces.Box(-X_LIMIT, X_LIMIT, (1,), np.float32)
        }
        if shows_context:
            size = self._distribution.size
            subspaces["context"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        dict_space = spaces.Dict(subspaces)
        self._keys = tuple(dict_space)  # in the order of the space
        self.observation_space = dict_space  # type: ignore[assignment]
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[FloatObservation, Info]:
        """Draw a context and a start.

        Args:
            seed: seed of the generator; None continues it.
            options: unused.

        Returns:
            The observation and an empty info.
        """
        super().reset(seed=seed)
        self.context = self._distribution.draw(self.np_random)
        self.x = float(self.np_random.choice(self._starts))
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[FloatObservation, float, bool, bool, Info]:
        """Move the point by ẋ dt.

        Args:
            action: real and imaginary part of a, (2,).

        Returns:
            Observation, reward, terminated, truncated and info.
        """
        scaled = self._force * complex(*action)  # F a
        velocity = 0.0
        for power, coefficient in enumerate(self.context.tolist(), start=1):
            velocity += coefficient * (scaled**power).real
        # One Euler step of ẋ.
        self.x = float(np.clip(self.x + velocity * DT, -X_LIMIT, X_LIMIT))
        reward = 0.0
        # The innermost band that contains x decides.
        for distance, band_reward in BANDS:
            if abs(self.x) < distance:
                reward = band_reward
                break
        success_distance, _ = BANDS[0]
        info = {"is_success": abs(self.x) < success_distance}
        return self._observation(), reward, False, False, info

    def _observation(self) -> FloatObservation:
        observation = {"observation": np.array([self.x], np.float32)}
        if self._shows_context:
            observation["context"] = (self.context / self._context_scale).astype(np.float32)
        return {key: observation[key] for key in self._keys}


class _ContextDistribution:
    """Distribution of the context of an episode; see ``ODEEnv`` for its arguments."""

    def __init__(
        self,
        contexts: Sequence[Sequence[float]],
        low: Sequence[float],
        high: Sequence[float],
        spacing: float,
    ) -> None:
        vectors = list(contexts) or [low, high]
        sizes = {len(vector) for vector in vectors}
        if len(sizes) != 1 or 0 in sizes:
            raise ConfigError(
                f"contexts must be vectors of one size, at least 1, got {vectors}; the sizes of "
                "low and high must be equal too"
            )
        self._listed = np.asarray(list(contexts), dtype=np.float64)  # (contexts, k)
        self._low = np.asarray(low, dtype=np.float64)
        self._high = np.asarray(high, dtype=np.float64)
        self._spacing = spacing
        self.size = len(vectors[0])
        """Number of coefficients, k."""
        if not len(self._listed) and (spacing < 0 or (self._low > self._high).any()):
            raise ConfigError(
                "low must not exceed high, and spacing must be at least 0, "
                f"got {low=}, {high=}, {spacing=}"
            )

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the coefficients of an episode, (k,)."""
        if len(self._listed):
            return self._listed[rng.integers(len(self._listed))]
        if self._spacing:
            # The tolerance keeps the upper corner, which rounding may move out of the grid.
            n_steps = np.floor((self._high - self._low) / self._spacing + 1e-9).astype(np.int64)
            return self._low + self._spacing * rng.integers(n_steps, endpoint=True)
        return rng.uniform(self._low, self._high)


gym.register("MIRL/ODE-v0", entry_point="mirl.envs.worlds.ode:ODEEnv", max_episode_steps=N_STEPS)
gym.register(
    # The sign of the context reverses the effect of every action: each sign needs its own policy,
    # the mirror image of the other one.
    "MIRL/SignFlipODE-v0",
    entry_point="mirl.envs.worlds.ode:ODEEnv",
    max_episode_steps=N_STEPS,
    kwargs={"contexts": ((-1.0,), (1.0,)), "context_scale": 1.0},
)
