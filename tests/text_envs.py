"""Environments with texts of every kind, as users bring them."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register

Reset = tuple[dict[str, Any], dict[str, Any]]
Step = tuple[dict[str, Any], float, bool, bool, dict[str, Any]]


class ManyTextsEnv(gym.Env[Any, Any]):
    """Environment with a text under each of several keys."""

    def __init__(self, keys: Iterable[str] = ("mission",), max_length: int = 30) -> None:
        self.keys = sorted(keys)
        texts = {key: spaces.Text(max_length) for key in self.keys}
        self.observation_space = spaces.Dict({"cell": spaces.Discrete(3), **texts})
        self.action_space = spaces.Discrete(2)

    def _observation(self) -> dict[str, Any]:
        return {"cell": 0, **{key: f"the {key}" for key in self.keys}}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> Step:
        return self._observation(), 0.0, False, False, {}


class SaysEnv(gym.Env[Any, Any]):
    """A one-step environment whose text is one of some; the right action is its position.

    Args:
        texts: the texts.
        key: their key.
        late: texts that appear only from the second timestep on.
        ignores_seed: whether the texts come in another order in each process.
        max_length: maximum length of the text.
    """

    def __init__(
        self,
        texts: Sequence[str] = ("press left", "press right"),
        key: str = "mission",
        late: Sequence[str] = (),
        ignores_seed: bool = False,
        max_length: int = 1000,
    ) -> None:
        self.texts = tuple(texts)
        self.key = key
        self.late = tuple(late)
        self.ignores_seed = ignores_seed
        self.n_resets = 0
        self.observation_space = spaces.Dict(
            {"observation": spaces.Box(0, 1, (1,), np.float32), key: spaces.Text(max_length)}
        )
        self.action_space = spaces.Discrete(max(2, len(self.texts)))

    def _observation(self, text: str) -> dict[str, Any]:
        return {"observation": np.ones(1, np.float32), self.key: text}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self.n_resets += 1
        random = np.random.default_rng() if self.ignores_seed else self.np_random
        self.right = int(random.integers(len(self.texts)))
        return self._observation(self.texts[self.right]), {}

    def step(self, action: Any) -> Step:
        solved = int(action) == self.right
        text = self.texts[self.right]
        if self.late:
            text = self.late[int(self.np_random.integers(len(self.late)))]
        done = not self.late
        return self._observation(text), float(solved), done, False, {"is_success": solved}


register("TextSays-v0", entry_point=SaysEnv, max_episode_steps=20)
register("TextMany-v0", entry_point=ManyTextsEnv, max_episode_steps=20)
