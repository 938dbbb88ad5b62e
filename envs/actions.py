"""Validation of actions before they reach an environment.

EnvPool ends the whole process on an invalid action, so actions are checked for every backend.
"""

from collections.abc import Sequence
from typing import assert_never

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.envs.contract.descriptions import describe_space
from mirl.envs.type_aliases import AnySpace, Array, Observations

ActionSpace = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box
"""The action spaces that SB3's policies support."""

BOUND_TOLERANCE = 1e-6
"""Relative tolerance within which a continuous action may exceed its bound before it is clipped."""


def check_action_space(space: AnySpace | None, owner: str) -> ActionSpace:
    """Return the space if SB3's policies support it.

    Args:
        space: the action space of an environment; None if it has none.
        owner: name of the space's owner, for the error message.

    Raises:
        ConfigError: if the space is of another kind, or SB3 refuses its bounds, shape or start.
    """
    match space:
        case spaces.Box():
            _check_box(space, owner)
            return space
        case spaces.Discrete() | spaces.MultiDiscrete() if np.any(space.start):
            raise ConfigError(
                f"{owner}: actions must start at 0 because SB3 counts actions from 0, got the "
                f"action space {space}; leave 'start' out, and add it to the action in step()"
            )
        case spaces.MultiDiscrete() | spaces.MultiBinary() if len(space.shape) != 1:
            raise ConfigError(
                f"{owner}: {type(space).__name__} actions must have one dimension, got shape "
                f"{space.shape}; flatten the action space, and reshape the action in step()"
            )
        case spaces.MultiDiscrete() if not space.shape[0]:
            raise ConfigError(
                f"{owner}: the action space must have at least one component, got {space}; leave "
                "no component out"
            )
        case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return space
        case None:
            raise ConfigError(
                f"{owner}: the action space must be Discrete, MultiDiscrete, MultiBinary or Box, "
                "got None; set self.action_space in __init__()"
            )
        case _:
            raise ConfigError(
                f"{owner}: the action space must be Discrete, MultiDiscrete, MultiBinary or Box, "
                f"got {type(space).__name__}; join its parts to one of these, and split the action "
                "in step()"
            )


def _check_box(space: spaces.Box, owner: str) -> None:
    """Raise an error if SB3 cannot scale actions to the bounds of a space."""
    if not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(
            f"{owner}: actions in a Box must be floating-point numbers, because agents draw them "
            f"from a normal distribution, got {describe_space(space)}; declare a MultiDiscrete "
            "space, or a Box of float32 and round the action in step()"
        )
    expected = f"{owner}: continuous actions must have "
    if not np.prod(space.shape):
        raise ConfigError(
            f"{expected}at least one number, got a Box of shape {space.shape}; give it one"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ConfigError(
            f"{expected}finite bounds, to which SB3 scales them, got {describe_space(space)}; "
            f"declare them, for example Box(-1, 1, {space.shape}), and scale the action in step()"
        )


def validate_actions(actions: ArrayLike, space: ActionSpace, n_envs: int) -> Array:
    """Return the actions as an array, after checking that they are valid.

    Args:
        actions: one action per environment, (n_envs, …).
        space: the action space of one environment.
        n_envs: number of environments.

    Returns:
        The actions, (n_envs, …). Continuous actions are clipped to their bounds.

    Raises:
        ValueError: if the shape, data type or range of the actions does not fit the space.
    """
    array = np.asarray(actions)
    shape = (n_envs, *(space.shape or ()))
    if array.shape != shape:
        raise ValueError(
            f"actions must have shape {shape}, one row per environment, got {array.shape}"
        )
    if isinstance(space, spaces.Box):
        valid, array = _clip_to_bounds(array, space)
    else:
        if isinstance(space, spaces.MultiBinary) and np.isin(array, (0, 1)).all():
            array = array.astype(space.dtype)  # SB3 passes them as floats
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"actions must be integers, got {array.dtype}")
        valid = (array >= 0) & (array < _n_choices(space))
    if not valid.all():
        env_index = int(np.argwhere(~valid)[0][0])  # the row of the first invalid entry
        raise ValueError(
            f"actions must be in {space}, got {np.asarray(actions)[env_index]} "
            f"for environment {env_index}"
        )
    return array


def _clip_to_bounds(actions: Array, space: spaces.Box) -> tuple[NDArray[np.bool_], Array]:
    """Return a mask of the valid entries, and the actions clipped to the bounds of the space."""
    # SB3 rescales actions to the bounds, and rounding may overshoot a bound slightly.
    above_low = actions >= space.low - BOUND_TOLERANCE * np.abs(space.low)
    below_high = actions <= space.high + BOUND_TOLERANCE * np.abs(space.high)
    # NaN fails both comparisons, so it is invalid.
    return above_low & below_high, np.clip(actions, space.low, space.high)


def _n_choices(space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> ArrayLike:
    """Return the number of values that each component of an action can take."""
    match space:
        case spaces.Discrete():
            return space.n
        case spaces.MultiDiscrete():
            return space.nvec
        case spaces.MultiBinary():
            return 2
        case _:
            assert_never(space)


class ActionValidator:
    """Validator of the actions of a suite, whose tasks may have different numbers of actions.

    Args:
        space: the action space of the suite.
        n_actions: number of actions of each task, (n_tasks,), if they differ.
        task_names: name of each task, for the error message.
    """

    def __init__(
        self,
        space: ActionSpace,
        n_actions: NDArray[np.int64] | None,
        task_names: Sequence[str],
    ) -> None:
        self._space = space
        self._n_actions = n_actions
        self._task_names = task_names

    def validate(self, actions: ArrayLike, task_ids: NDArray[np.int64]) -> Array:
        """Return the actions as an array, after checking that they are valid.

        Args:
            actions: one action per environment, (n_envs, …).
            task_ids: task of each environment, (n_envs,).

        Returns:
            The actions, (n_envs, …). Continuous actions are clipped to their bounds.

        Raises:
            ValueError: if an action is not in the space, or is not available in its task.
        """
        valid = validate_actions(actions, self._space, len(task_ids))
        if self._n_actions is not None:
            self._check_available(valid, task_ids, self._n_actions)
        return valid

    def _check_available(
        self, actions: Array, task_ids: NDArray[np.int64], n_actions: NDArray[np.int64]
    ) -> None:
        """Raise an error if an action (n_envs,) is not available in its environment's task."""
        # (n_tasks,) -> (n_envs,): the number of actions of each environment's task
        unavailable = np.flatnonzero(actions >= n_actions[task_ids])
        if unavailable.size:
            env_index = int(unavailable[0])
            task_index = int(task_ids[env_index])
            n_available = n_actions[task_index]
            raise ValueError(
                f"actions of task '{self._task_names[task_index]}' must be from 0 to "
                f"{n_available - 1}, got {actions[env_index]} for environment {env_index}; the "
                f"observation '{ACTION_MASK_KEY}' marks the available actions"
            )


def with_action_mask(obs: Observations, n_actions: int, n_actions_max: int) -> Observations:
    """Return observations with an action mask added.

    Args:
        obs: observations of one task, (k, …). An action mask (k, n_actions) among them is widened.
        n_actions: number of actions of the task.
        n_actions_max: largest number of actions of any task in the suite.

    Returns:
        The observations with a mask (k, n_actions_max) under ``action_mask``.
    """
    k = len(next(iter(obs.values())))
    # (k, n_actions) -> (k, n_actions_max): actions that the task lacks stay masked
    mask = np.zeros((k, n_actions_max), dtype=np.int8)
    mask[:, :n_actions] = obs.get(ACTION_MASK_KEY, 1)
    # A new dictionary, so that the caller's is not modified.
    return {**obs, ACTION_MASK_KEY: mask}
