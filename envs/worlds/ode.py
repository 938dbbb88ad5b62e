"""A point on a line whose controls the context rewrites: ẋ = Re Σᵢ cᵢ (F a)ⁱ, the context c being the coefficients.

Source: Beukman, Jarvis, Klein, James, Rosman, "Dynamics Generalization in Reinforcement Learning via Adaptive
Context-Aware Policies", NeurIPS 2023, and the configuration of the experiments that its authors published.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError

Observation = dict[str, NDArray[np.float32]]

N_STEPS = 200
"""Timesteps of an episode; at most 1 of reward each, so also the highest return."""

DT = 0.01
"""Seconds of a timestep."""

X_LIMIT = 20.0
"""x is kept in [-X_LIMIT, X_LIMIT]."""

BANDS = ((0.05, 1.0), (0.1, 1 / 2), (0.2, 1 / 3), (0.5, 1 / 4), (2.0, 0.05))
"""(distance, reward): the reward of being nearer to the origin than that; 0 outside all of them."""


class ODEEnv(gym.Env[Observation, NDArray[np.float32]]):
    """Drive x to the origin by ẋ = Re Σᵢ cᵢ (F a)ⁱ, i = 1 … k, the action a = a₀ + j a₁ being a complex number.

    Observed are x (1,), under ``observation``, and c / ``context_scale`` (k,), under ``context``, unless an agent is
    told the number of its task instead. The reward falls with the distance to the origin in steps (``BANDS``);
    ``is_success`` says whether x is within the innermost band. Episodes end by time only.

    Args:
        contexts: vectors of coefficients (k,), one of which holds for an episode. Where none are given, they are drawn
            uniformly from a box …
        low: … between this corner (k,) …
        high: … and this one (k,), …
        spacing: … or, unless it is 0, from the points of a grid of this spacing that starts at ``low``.
        starts: values of x, one of which an episode starts with.
        force: F, by which actions in [-1, 1]² are multiplied.
        context_scale: what the agent is shown of c is divided by this.
        shows_context: whether it is shown anything of c.

    Raises:
        ConfigError: the contexts are not of one size, or the box is none.
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
        self._contexts = _Contexts(contexts, low, high, spacing)
        self._starts, self._force, self._context_scale = tuple(starts), force, context_scale
        self.context: NDArray[np.float64] = np.zeros(self._contexts.size)
        """c of this episode."""
        self.x = 0.0
        """Where the point is."""
        seen: dict[str, spaces.Space[Any]] = {
            "observation": spaces.Box(-X_LIMIT, X_LIMIT, (1,), np.float32)
        }
        if shows_context:
            seen["context"] = spaces.Box(-np.inf, np.inf, (self._contexts.size,), np.float32)
        self.observation_space = spaces.Dict(seen)  # type: ignore[assignment]
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw a context and a start."""
        super().reset(seed=seed)
        self.context = self._contexts.draw(self.np_random)
        self.x = float(self.np_random.choice(self._starts))
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """x ← x + ẋ dt."""
        a = self._force * complex(*action)
        velocity = sum(
            c * (a**power).real for power, c in enumerate(self.context.tolist(), start=1)
        )
        self.x = float(np.clip(self.x + velocity * DT, -X_LIMIT, X_LIMIT))
        reward = next((reward for distance, reward in BANDS if abs(self.x) < distance), 0.0)
        return self._observation(), reward, False, False, {"is_success": abs(self.x) < BANDS[0][0]}

    def _observation(self) -> Observation:
        shown = {
            "observation": np.array([self.x], np.float32),
            "context": (self.context / self._context_scale).astype(np.float32),
        }
        return {key: shown[key] for key in self.observation_space.spaces}  # type: ignore[attr-defined]


class _Contexts:
    """Where the contexts of an environment come from."""

    def __init__(
        self,
        contexts: Sequence[Sequence[float]],
        low: Sequence[float],
        high: Sequence[float],
        spacing: float,
    ) -> None:
        vectors = list(contexts) or [low, high]
        if len({len(vector) for vector in vectors}) != 1 or not len(vectors[0]):
            raise ConfigError(f"contexts must be vectors of one size, got {vectors}")
        self._listed = np.asarray(list(contexts), dtype=np.float64)  # (contexts, k)
        self._low, self._high = (
            np.asarray(low, dtype=np.float64),
            np.asarray(high, dtype=np.float64),
        )
        self._spacing = spacing
        self.size = len(vectors[0])
        if not len(self._listed) and (spacing < 0 or (self._low > self._high).any()):
            raise ConfigError(
                f"low must not exceed high, nor 0 exceed spacing, got {low=}, {high=}, {spacing=}"
            )

    def draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        if len(self._listed):
            return self._listed[random.integers(len(self._listed))]
        if self._spacing:
            steps = np.floor((self._high - self._low) / self._spacing + 1e-9).astype(
                np.int64
            )  # to the far corner
            return self._low + self._spacing * random.integers(steps, endpoint=True)
        return random.uniform(self._low, self._high)


gym.register("MIRL/ODE-v0", entry_point="mirl.envs.worlds.ode:ODEEnv", max_episode_steps=N_STEPS)
gym.register(
    # What an action does turns over with the sign of the context: one policy per sign, each the other's mirror image.
    "MIRL/SignFlipODE-v0",
    entry_point="mirl.envs.worlds.ode:ODEEnv",
    max_episode_steps=N_STEPS,
    kwargs={"contexts": ((-1.0,), (1.0,)), "context_scale": 1.0},
)
