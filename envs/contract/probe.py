"""Check of an environment's first reset and first timestep, before anything depends on it."""

import inspect
import traceback
from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mirl.configs.errors import ConfigError, ContractError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.tasks import TaskConfig
from mirl.envs.actions import ActionSpace
from mirl.envs.contract.descriptions import name_task, shorten
from mirl.envs.contract.timesteps import check_reset_result, check_step_result
from mirl.envs.make import check_reset
from mirl.envs.spaces import ContractObservation, is_known
from mirl.envs.type_aliases import AnyEnv, Array, Observation

_OWN_FILES = tuple(inspect.getfile(part) for part in (check_reset, is_known, check_step_result))
"""Source files of MIRL that call environments."""


def check_first_timestep(env: ContractObservation, task: TaskConfig, space: ActionSpace) -> None:
    """Raise an error if a reset or a timestep breaks the contract of observations.

    MiniGrid's and BabyAI's own environments are only reset.

    Args:
        env: an environment of the task, which is used for nothing else.
        task: the task, for the error message.
        space: the action space of the environment.

    Raises:
        ConfigError: if the environment fails, or returns a value that does not match its spaces.
    """
    try:
        if is_known(env.env):
            check_reset(env, task)
            return
        _check_signature(env)
        observation = _call("reset()", env, lambda: check_reset(env, task))
        env.check_bounds(observation)
        action = neutral_action(space, observation)
        observation, *_ = _call("step()", env, lambda: env.step(action))
        env.check_bounds(observation)
    except ContractError as error:
        raise ContractError(f"{name_task(task)}: {error}") from error.__cause__


def neutral_action(space: ActionSpace, observation: Observation) -> Array | np.int64:
    """Return an action that does little: the first available one, or the one nearest to zero.

    Args:
        space: the action space.
        observation: the observation, whose ``action_mask`` is obeyed.
    """
    if isinstance(space, spaces.Discrete):
        available = np.flatnonzero(observation.get(ACTION_MASK_KEY, np.ones(1)))
        return np.int64(available[0])
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    return np.zeros(space.shape, space.dtype)


def _check_signature(env: AnyEnv) -> None:
    """Raise an error if ``reset`` of a wrapper or the environment lacks ``seed`` or ``options``."""
    layer = env
    while True:
        try:
            parameters = inspect.signature(layer.reset).parameters
        except (TypeError, ValueError):  # a method written in C
            parameters = inspect.signature(gym.Env.reset).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in ("seed", "options"):
            positional_only = name in parameters and (
                parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY
            )
            if positional_only or (name not in parameters and not takes_any):
                raise ContractError(
                    f"reset() of {type(layer).__name__}: expected the keyword arguments 'seed' and "
                    f"'options', got the signature reset{inspect.signature(layer.reset)}; define "
                    "it as reset(self, *, seed=None, options=None) and call "
                    "super().reset(seed=seed) in it"
                )
        if not isinstance(layer, gym.Wrapper):
            return
        layer = layer.env


def _call(method: str, env: AnyEnv, call: Callable[[], Any]) -> Any:
    """Return the result of a call; turn an exception into a one-line error."""
    try:
        return call()
    except ConfigError:
        raise
    except Exception as error:
        # a wrapper may fail on a malformed result before the result can be checked
        if isinstance(error, ValueError | TypeError):
            _check_forms(env.unwrapped)
        raise ContractError(
            f"{method} failed at its first call: {shorten(f'{type(error).__name__}: {error}')} "
            f"({_place(error)}); correct the environment"
        ) from error


def _place(error: Exception) -> str:
    """Return file and line of the user's code that raised, or that called the code that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    # the first frames are those of MIRL's wrappers around the environment
    own = [frame for frame in own if frame.filename not in (__file__, *_OWN_FILES)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"


def _check_forms(env: AnyEnv) -> None:
    """Raise an error if the unwrapped environment returns the wrong tuples."""
    try:
        observation, _ = check_reset_result(env.reset(seed=0))
        if not isinstance(observation, dict):
            observation = {}
        action = neutral_action(cast(ActionSpace, env.action_space), observation)
        check_step_result(env.step(action))
    except ContractError:
        raise
    except Exception:
        return  # the original exception is more informative
