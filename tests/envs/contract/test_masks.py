"""Tests of the action masks of environments."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stable_baselines3.common.vec_env import DummyVecEnv

from mirl.configs.errors import ContractError
from mirl.envs import ContractObservation
from mirl.envs.contract.masks import convert_mask, mask_space

N = 4
DTYPES = [np.int8, np.uint8, np.int64, np.bool_, np.float32]


class MaskedEnv(gym.Env[Any, Any]):
    """Two timesteps; the mask of the last observation makes no action available."""

    def __init__(self, mask: spaces.Space[Any], values: Any) -> None:
        self.observation_space = spaces.Dict(x=spaces.Box(0, 1, (1,)), action_mask=mask)
        self.action_space = spaces.Discrete(N)
        self._values = values

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return {"x": np.zeros(1, np.float32), "action_mask": self._values}, {}

    def step(self, action: Any) -> Any:
        mask = np.zeros_like(self._values)
        return {"x": np.zeros(1, np.float32), "action_mask": mask}, 0.0, action == 1, False, {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_boxes_become_masks(dtype: Any) -> None:
    """A Box of zeros and ones of any dtype is converted to a MultiBinary."""
    space = spaces.Box(0, 1, (N,), dtype)
    assert mask_space(space, spaces.Discrete(N)) == spaces.MultiBinary(N)
    values = np.array([0, 1, 1, 0]).astype(dtype)
    env = ContractObservation(MaskedEnv(space, values))
    observation, _ = env.reset()
    assert env.observation_space["action_mask"] == spaces.MultiBinary(N)
    assert env.observation_space.contains(observation)
    assert observation["action_mask"].tolist() == [0, 1, 1, 0]


def test_pairs_of_choices_become_masks() -> None:
    mask = mask_space(spaces.MultiDiscrete([2] * N), spaces.Discrete(N))
    assert mask == spaces.MultiBinary(N)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiBinary(3), r"one entry for each of the 4 actions, got MultiBinary\(3\)"),
        (spaces.Box(0, 1, (N, 1), np.int8), r"change its shape to \(4,\)"),
        (spaces.Box(0, 2, (N,), np.int8), "change its bounds to 0 and 1"),
        (spaces.Box(-1, 1, (N,)), "change its bounds to 0 and 1"),
        (spaces.MultiDiscrete([3] * N), "change its bounds to 0 and 1"),
    ],
)
def test_other_spaces_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ContractError, match=f"'action_mask'.*{message}"):
        mask_space(space, spaces.Discrete(N))


@pytest.mark.parametrize("actions", [spaces.Box(-1, 1, (N,)), spaces.MultiDiscrete([2, 2])])
def test_masks_are_for_discrete_actions(actions: spaces.Space[Any]) -> None:
    with pytest.raises(ContractError, match=r"masks are for Discrete actions.*another name"):
        mask_space(spaces.MultiBinary(N), actions)


@given(arrays.arrays(st.sampled_from(DTYPES), st.sampled_from([(N,), (N, 1), (3,)])))
def test_masks_keep_their_bits(value: np.ndarray) -> None:
    """A mask is taken bit by bit, or refused in one line."""
    is_mask = value.shape == (N,) and np.isin(value, (0, 1)).all() and value.any()
    if is_mask:
        np.testing.assert_array_equal(convert_mask(value, N), value)
        return
    with pytest.raises(ContractError, match="observation 'action_mask': expected"):
        convert_mask(value, N)


def test_last_mask_may_be_empty() -> None:
    """No action has to be available after the end of an episode."""
    env = ContractObservation(MaskedEnv(spaces.MultiBinary(N), np.ones(N, np.int8)))
    env.reset()
    assert not env.step(1)[0]["action_mask"].any()
    env.reset()
    with pytest.raises(ContractError, match="got only zeros"):
        env.step(0)


def test_mask_is_reachable_as_method() -> None:
    """sb3-contrib asks a single environment for ``action_masks()``."""
    mask = np.eye(N, dtype=np.int8)[1]
    env = ContractObservation(MaskedEnv(spaces.MultiBinary(N), mask))
    env.reset()
    np.testing.assert_array_equal(env.action_masks(), mask.astype(np.bool_))
    [masks] = DummyVecEnv([lambda: env]).env_method("action_masks")
    assert masks.dtype == np.bool_
    assert not ContractObservation(gym.make("CartPole-v1")).has_wrapper_attr("action_masks")
