"""Small environments with known results, registered when this module is imported."""

import multiprocessing
import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 5
"""Timesteps of an episode of ``CounterEnv``."""


class CounterEnv(gym.Env[Any, Any]):
    """Environment that observes its step count.

    Action 0 continues, 1 succeeds, 2 ends without success, 3 raises, 4 kills the process.
    """

    def __init__(self, size: int = 2, report: bool = False) -> None:
        self.observation_space = spaces.Box(0, LENGTH, (size,), np.float32)
        self.action_space = spaces.Discrete(5)
        self._report = report
        self._count = 0

    def _observation(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self._count, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 3:
            raise ZeroDivisionError("a mistake of the toy")
        if action == 4:
            os._exit(7)
        self._count += 1
        info = {"is_success": bool(action == 1)} if self._report else {}
        truncated = self._count == LENGTH
        return self._observation(), float(action == 1), bool(action in (1, 2)), truncated, info


class FragileEnv(CounterEnv):
    """Counter with more failures: action 5 hangs, 6 observes NaN, 7 observes a longer array.

    ``resets`` chooses the failure of resets: "raise" at every odd seed, "die" in a worker process,
    or "non_finite_once" for a first observation of NaN in the first episode. With
    ``close="raise"``, closing raises after a step that raised.
    """

    failures_to_make = 0

    def __init__(self, resets: str = "work", close: str = "work") -> None:
        super().__init__()
        if FragileEnv.failures_to_make:
            FragileEnv.failures_to_make -= 1
            raise OSError("no more files")
        self.action_space = spaces.Discrete(8)
        self._resets = resets
        self._close = close
        self._has_raised = False

    def close(self) -> None:
        if self._close == "raise" and self._has_raised:
            raise RuntimeError("not closed")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self._resets == "die" and multiprocessing.parent_process() is not None:
            os._exit(7)
        if self._resets == "raise" and seed is not None and seed % 2:
            raise ValueError(f"an odd seed: {seed}")
        observation, info = super().reset(seed=seed)
        if self._resets == "non_finite_once":
            self._resets = "work"
            observation = observation * np.nan
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._has_raised = bool(action == 3)
        if action == 5:
            time.sleep(600)
        observation, *rest = super().step(action)
        if action == 7:
            observation = np.append(observation, observation[:1])
        if action == 6:
            observation = observation * np.nan
        return observation, *rest


class ObservingEnv(gym.Env[Any, Any]):
    """Environment whose reset returns ``_observation()`` and changes nothing else."""

    def _observation(self) -> Any:
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}


class RandomGoalEnv(ObservingEnv):
    """Goal environment with continuous actions and endless episodes."""

    def __init__(self) -> None:
        box = spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = spaces.Dict(
            {"observation": box, "achieved_goal": box, "desired_goal": box}
        )
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            key: self.np_random.uniform(-1, 1, 3).astype(np.float32)
            for key in self.observation_space
        }

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation(), -1.0, False, False, {}


class TextEnv(gym.Env[Any, Any]):
    """Environment that observes a text.

    ``nested`` adds a tuple, which the contract does not support, ``own_task`` a key ``task``.
    """

    def __init__(self, nested: bool = False, own_task: bool = False) -> None:
        subspaces: dict[str, spaces.Space[Any]] = {
            "mission": spaces.Text(100),
            "cell": spaces.Discrete(3),
        }
        if nested:
            subspaces["pair"] = spaces.Tuple([spaces.Discrete(2)])
        if own_task:
            subspaces["task"] = spaces.Discrete(2)
        self.observation_space = spaces.Dict(subspaces)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation("Qapla' to the red ball!", 1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation("go to the red ball", 2), 0.0, False, False, {}

    def _observation(self, mission: str, cell: int) -> dict[str, Any]:
        observation = {"mission": mission, "cell": cell, "task": 0}
        return {key: observation[key] for key in self.observation_space if key in observation}


class LazyEnv(CounterEnv):
    """Environment that needs a missing package at its first reset."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        raise gym.error.DependencyNotInstalled(
            "klingon is missing, please run `pip install klingon`"
        )


class SwitchesEnv(gym.Env[Any, Any]):
    """Two switches, one timestep, a reward for setting both.

    With ``start``, the actions are discrete and begin there.
    """

    def __init__(self, start: int | None = None) -> None:
        self.observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.action_space = (
            spaces.MultiBinary(2) if start is None else spaces.Discrete(3, start=start)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(2, np.float32), float(np.sum(action) == 2), True, False, {}


class ChoiceEnv(ObservingEnv):
    """One timestep, n actions, a reward for the last of them.

    With ``own_mask``, it observes a mask that hides action 0.
    """

    def __init__(self, n_actions: int = 3, own_mask: bool = False) -> None:
        self.observation_space = spaces.Dict({"observation": spaces.Box(0, 1, (2,), np.float32)})
        if own_mask:
            self.observation_space["action_mask"] = spaces.MultiBinary(n_actions)
        self.action_space = spaces.Discrete(n_actions)

    def _observation(self) -> dict[str, np.ndarray]:
        mask = np.arange(self.action_space.n) > 0
        values = {"observation": np.zeros(2, np.float32), "action_mask": mask.astype(np.int8)}
        return {key: values[key] for key in self.observation_space}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), "an action that this task does not have"
        return self._observation(), float(action == self.action_space.n - 1), True, False, {}


class GlimpseEnv(gym.Env[Any, Any]):
    """Three timesteps; action 1 succeeds in its own timestep only, action 2 reports nothing."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        info = {}
        if action != 2:
            info["success"] = float(action == 1)  # a number, as in Meta-World
        return np.zeros(1, np.float32), 0.0, False, self._count == 3, info


class LeverEnv(gym.Env[Any, Any]):
    """Environment of one timestep: a lever up to ``scale``, or two buttons instead."""

    def __init__(self, scale: float = 1.0, buttons: bool = False) -> None:
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = (
            spaces.Discrete(2) if buttons else spaces.Box(-scale, scale, (2,), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, True, False, {}


class TellingEnv(gym.Env[Any, Any]):
    """Environment of two timesteps whose infos tell its options, a number and an own object."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return np.zeros(1, np.float32), {"options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        info = {"distance": 10 * self._count + int(action), "task": "mine", "own": self.__class__}
        return np.zeros(1, np.float32), 0.0, self._count == 2, False, info


for _name in (
    "Telling",
    "Switches",
    "Counter",
    "Fragile",
    "RandomGoal",
    "Text",
    "Lazy",
    "Choice",
    "Glimpse",
    "Lever",
):
    if f"Toy{_name}-v0" not in gym.registry:
        gym.register(f"Toy{_name}-v0", entry_point=f"{__name__}:{_name}Env")
if "ToyShortGoal-v0" not in gym.registry:
    gym.register("ToyShortGoal-v0", entry_point=f"{__name__}:RandomGoalEnv", max_episode_steps=3)
