"""Check of ``compute_reward``, which hindsight experience replay calls for relabeled goals."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, ContractError
from mirl.configs.keys import ACHIEVED_GOAL_KEY, DESIRED_GOAL_KEY, GOAL_KEYS
from mirl.envs.contract.descriptions import describe_space, describe_value, shorten
from mirl.envs.spaces import ContractObservation
from mirl.envs.type_aliases import AnyEnv, Array

N_PAIRS = 3
"""Number of pairs of goals with which ``compute_reward`` is tested."""
MAX_RESETS = 8
"""Maximum number of episodes that are started to collect ``N_PAIRS`` pairs."""
MAX_SECONDS = 10.0
"""Seconds to wait for the end of an episode."""
TOLERANCE = 1e-4
"""Absolute and relative difference of two rewards that counts as rounding."""


def check_compute_reward(env: ContractObservation) -> None:
    """Raise an error if ``compute_reward`` does not return the right rewards for batches of goals.

    Args:
        env: a goal environment of one task; it is reset and stepped.

    Raises:
        ContractError: if its signature, or the shape, dtype or value of its rewards is wrong.
    """
    compute_reward = env.get_wrapper_attr("compute_reward")
    _check_signature(compute_reward)
    _check_goal_spaces(env)
    achieved, desired, rewards = _transitions(env)
    n_pairs = len(rewards)
    infos: list[dict[str, Any]] = [{} for _ in range(n_pairs)]
    try:
        result = compute_reward(achieved, desired, infos)
    except ConfigError:
        raise
    except Exception as error:
        raise ContractError(
            f"compute_reward() failed for {n_pairs} pairs of goals of shape {achieved.shape} with "
            f"empty infos: {type(error).__name__}: {shorten(str(error))}; compute the rewards of "
            "a batch from the goals alone"
        ) from error
    computed = batch_of_rewards(result, n_pairs)
    # the reward of a step is comparable only if the goal stayed the same
    is_comparable = np.isfinite(rewards)
    if not np.allclose(
        computed[is_comparable], rewards[is_comparable], rtol=TOLERANCE, atol=TOLERANCE
    ):
        row = int(np.argmax(np.abs(np.where(is_comparable, computed - rewards, 0))))
        raise ContractError(
            f"compute_reward(): expected the reward of step(), {rewards[row]:.6g}, got "
            f"{computed[row]:.6g} for the same achieved and desired goal; let step() return what "
            "compute_reward() gives"
        )


def batch_of_rewards(result: Any, n_pairs: int) -> NDArray[np.float32]:
    """Return the rewards of a batch of goals, (n_pairs,).

    Args:
        result: return value of ``compute_reward``.
        n_pairs: number of pairs of goals.

    Raises:
        ContractError: if the result is not one number per pair.
    """
    try:
        array = np.asarray(result)
    except ValueError:  # rows of different lengths
        array = np.empty(0)
    # a column (n_pairs, 1) holds the same rewards
    if array.shape == (n_pairs, 1):
        array = array[:, 0]
    if array.shape != (n_pairs,) or array.dtype.kind not in "biuf":
        raise ContractError(
            "compute_reward(): expected an array of shape (n,), one reward for each of "
            f"n={n_pairs} pairs of goals, got {describe_value(result)}; compute along the last "
            "axis, for example np.linalg.norm(achieved_goal - desired_goal, axis=-1)"
        )
    return array.astype(np.float32)


def ends_within(env: AnyEnv, n_steps: int) -> bool:
    """Return True if an episode ends within some timesteps with random actions.

    Args:
        env: an environment, which is reset and stepped.
        n_steps: number of timesteps.

    Returns:
        True also if no episode has ended after ``MAX_SECONDS``.
    """
    start = time.monotonic()
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(n_steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated or time.monotonic() - start > MAX_SECONDS:
            return True
    return False


def _check_signature(compute_reward: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(compute_reward)
    except (TypeError, ValueError):  # a function written in C
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise ContractError(
            "compute_reward(): expected the arguments (achieved_goal, desired_goal, info), got the "
            f"signature compute_reward{shorten(str(signature))}; define it with these three"
        ) from None


def _check_goal_spaces(env: ContractObservation) -> None:
    """Raise an error if achieved goals cannot take the place of desired ones."""
    assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
    achieved, desired = (env.observation_space[key] for key in GOAL_KEYS)
    if achieved.shape != desired.shape or achieved.dtype != desired.dtype:
        raise ContractError(
            f"observation '{ACHIEVED_GOAL_KEY}': expected the shape and dtype of "
            f"'{DESIRED_GOAL_KEY}', {describe_space(desired)}, got {describe_space(achieved)}; "
            "give both the same space"
        )


def _transitions(env: ContractObservation) -> tuple[Array, Array, NDArray[np.float64]]:
    """Return achieved and desired goals (n, …), and the rewards (n,) of their timesteps.

    A reward is NaN if the timestep has changed the desired goal.
    """
    achieved: list[Array] = []
    desired: list[Array] = []
    rewards: list[float] = []
    env.action_space.seed(0)
    for seed in range(MAX_RESETS):
        observation, _ = env.reset(seed=seed)
        is_over = False
        while not is_over and len(rewards) < N_PAIRS:
            goal = observation[DESIRED_GOAL_KEY]
            # a copy, because an environment may return the same array again
            goal = np.array(goal)
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            is_over = terminated or truncated
            is_same_goal = np.array_equal(goal, observation[DESIRED_GOAL_KEY])
            achieved.append(np.array(observation[ACHIEVED_GOAL_KEY]))
            desired.append(np.array(observation[DESIRED_GOAL_KEY]))
            rewards.append(reward if is_same_goal else np.nan)
        if len(rewards) == N_PAIRS:
            break
    return np.stack(achieved), np.stack(desired), np.array(rewards, np.float64)
