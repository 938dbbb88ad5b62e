"""Tests of the check of the first reset and timestep, before anything is restarted."""

import pickle
import warnings
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toy_envs  # noqa: F401  (registers its ids)
from gymnasium import spaces
from suites import single_task

from mirl.configs.errors import ConfigError
from mirl.envs import EnvironmentFailedError, SuiteVecEnv
from mirl.envs.contract.probe import neutral_action

PLANE = spaces.Box(-1, 1, (2,), np.float32)


class BreakingEnv(gym.Env[Any, Any]):
    """Environment that breaks the contract in a given way, from a given timestep on."""

    def __init__(self, breaks: str = "", after: int = 0) -> None:
        self.observation_space = spaces.Dict(position=PLANE, cell=spaces.Discrete(3))
        self.action_space = spaces.Discrete(2)
        self.breaks = breaks
        self.after = after
        self.count = 0
        if breaks == "no_space":
            del self.observation_space
        if breaks == "no_actions":
            del self.action_space

    def observe(self) -> Any:
        if self.count < self.after:
            return {"position": np.zeros(2, np.float32), "cell": 1}
        position = np.zeros(2, np.float32)
        match self.breaks:
            case "dtype":
                return {"position": np.array([1j, 1j]), "cell": 1}
            case "shape":
                return {"position": np.zeros((100, 100)), "cell": 1}
            case "bounds":
                return {"position": position + 1.5, "cell": 1}
            case "range":
                return {"position": position, "cell": 3}
            case "missing":
                return {"position": position}
            case "extra":
                return {"position": position, "cell": 1, "debug": position}
            case "no_dict":
                return position
            case _:
                return {"position": position, "cell": 1}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        if self.breaks == "old_reset":
            return self.observe()
        return self.observe(), ([] if self.breaks == "reset_info" else {})

    def step(self, action: Any) -> Any:
        self.count += 1
        if self.breaks == "step_raises":
            return {}["key"]
        reward: Any = 1.0
        truncated: Any = False
        info: Any = {}
        if self.count >= self.after:
            reward = {"reward": np.ones(3), "array_reward": np.ones(1)}.get(self.breaks, 1.0)
            truncated = None if self.breaks == "truncated" else False
            info = None if self.breaks == "info" else {}
        if self.breaks == "old_step":
            return self.observe(), reward, False, info
        return self.observe(), reward, False, truncated, info


class NoSeedEnv(BreakingEnv):
    """Environment whose reset takes no seed."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class RaisingEnv(BreakingEnv):
    """Environment whose reset raises."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise KeyError("door")


class AnyKeywordsEnv(BreakingEnv):
    """Environment whose reset passes its keyword arguments on."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)


for _cls in (BreakingEnv, NoSeedEnv, RaisingEnv, AnyKeywordsEnv):
    gym.register(f"Toy{_cls.__name__}-v0", entry_point=_cls, max_episode_steps=9)

MESSAGES = {
    "dtype": "observation 'position': expected an array of shape .*complex128",
    "shape": r"observation 'position': .*\(2,\), float32.* shape \(100, 100\), float64, in \[0",
    "bounds": r"observation 'position': expected values in \[-1.0, 1.0\], got 1.5 at index 0",
    "range": r"observation 'cell': expected values in \[0, 2\], got 3",
    "missing": r"expected the key 'cell'.*got a dict with the keys \['position'\]",
    "extra": "got 'debug' too",
    "no_dict": "observation: expected a dict with the keys",
    "old_reset": r"reset\(\): expected a tuple \(observation, info\)",
    "reset_info": r"info of reset\(\): expected a dict, got a list",
    "step_raises": r"step\(\) failed at its first call: KeyError: 'key' .*test_probe.py:\d+\)",
    "reward": r"reward: expected one number, got an array of shape \(3,\)",
    "truncated": "truncated: expected a bool, got None",
    "info": r"info of step\(\): expected a dict, got None",
    "old_step": r"step\(\): expected a tuple .*got a tuple of length 4",
    "no_space": r"set self\.observation_space in __init__\(\)",
    "no_actions": r"set self\.action_space in __init__\(\)",
}


@pytest.mark.parametrize("breaks", MESSAGES)
def test_broken_contract_is_one_line(breaks: str) -> None:
    """Each way to break the contract is one line with task and key, without any restart."""
    suite = single_task("ToyBreakingEnv-v0", kwargs={"breaks": breaks})
    with warnings.catch_warnings():  # a restart would warn
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=MESSAGES[breaks]) as caught:
            SuiteVecEnv(suite, 2, max_restarts=10)
    message = str(caught.value)
    assert message.startswith("task 'toy'")
    assert len(message.splitlines()) == 1
    assert len(message) < 600


def test_reset_without_seed_is_refused() -> None:
    message = r"reset\(\) of NoSeedEnv: expected the keyword arguments 'seed' and 'options'"
    with pytest.raises(ConfigError, match=message):
        SuiteVecEnv(single_task("ToyNoSeedEnv-v0"), 1)


def test_exception_in_reset_is_one_line() -> None:
    """An exception names its type and its place, and stays the cause of the error."""
    message = r"task 'toy' .* reset\(\) failed at its first call: KeyError: 'door' .*probe.py:\d+\)"
    with pytest.raises(ConfigError, match=message) as caught:
        SuiteVecEnv(single_task("ToyRaisingEnv-v0"), 1)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("env_id", ["ToyBreakingEnv-v0", "ToyAnyKeywordsEnv-v0"])
def test_sound_environments_pass(env_id: str) -> None:
    with closing(SuiteVecEnv(single_task(env_id), 2)) as env:
        assert env.reset()["cell"].tolist() == [1, 1]


def test_array_rewards_are_taken() -> None:
    suite = single_task("ToyBreakingEnv-v0", kwargs={"breaks": "array_reward"})
    with closing(SuiteVecEnv(suite, 2)) as env:
        env.reset()
        assert env.step(np.zeros(2, int))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("breaks", ["shape", "range", "missing", "reward", "info"])
def test_later_violation_is_one_line(breaks: str, workers: int) -> None:
    """A violation in the middle of an episode is one line, also from a worker process."""
    suite = single_task("ToyBreakingEnv-v0", kwargs={"breaks": breaks, "after": 3})
    with closing(SuiteVecEnv(suite, 2, workers=workers)) as env:
        env.reset()
        for _ in range(2):
            env.step(np.zeros(2, int))
        with pytest.raises(EnvironmentFailedError, match=MESSAGES[breaks]) as caught:
            env.step(np.zeros(2, int))
    message = str(caught.value)
    assert message.startswith("task 'toy' (ToyBreakingEnv-v0, seed ")
    assert len(message.splitlines()) == 1


def test_later_violations_are_restarted() -> None:
    """In the middle of a run they count as failures, as exceptions do."""
    suite = single_task("ToyBreakingEnv-v0", kwargs={"breaks": "range", "after": 3})
    with closing(SuiteVecEnv(suite, 1, workers=0, max_restarts=1)) as env:
        env.reset()
        for _ in range(2):
            env.step(np.zeros(1, int))
        with pytest.warns(RuntimeWarning, match=r"got 3.*restart 1 of 1"):
            _, _, dones, infos = env.step(np.zeros(1, int))
        assert dones[0]
        assert infos[0]["failed"]


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(3), 1),
        (spaces.MultiDiscrete([2, 3]), [0, 0]),
        (spaces.MultiBinary(2), [0, 0]),
        (spaces.Box(np.float32([-1, 2]), np.float32([1, 3])), [0, 2]),
    ],
)
def test_neutral_actions_are_valid(space: Any, action: Any) -> None:
    """The action of the check is in the space, and available."""
    chosen = neutral_action(space, {"action_mask": np.array([0, 1, 1])})
    assert space.contains(chosen)
    np.testing.assert_array_equal(chosen, action)


def test_messages_can_be_pickled() -> None:
    """Errors reach the owner of worker processes and sweeps."""
    with pytest.raises(ConfigError) as caught:
        SuiteVecEnv(single_task("ToyBreakingEnv-v0", kwargs={"breaks": "range"}), 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
