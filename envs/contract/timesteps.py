"""Check of the values that ``reset`` and ``step`` return besides the observation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mirl.configs.errors import ContractError
from mirl.envs.contract.descriptions import describe_value
from mirl.envs.type_aliases import Info


class Timestep(NamedTuple):
    """Return value of ``step``, with the types that Gymnasium documents."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Info


def check_reset_result(result: Any) -> tuple[Any, Info]:
    """Return the observation and the info that ``reset`` returned.

    Args:
        result: return value of ``reset``.

    Raises:
        ContractError: if it is not a tuple of an observation and a dict.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise ContractError(
            f"reset(): expected a tuple (observation, info), got {describe_value(result)}; return "
            "observation, {}"
        )
    observation, info = result
    return observation, _checked_info("reset()", info)


def check_step_result(result: Any) -> Timestep:
    """Return the values that ``step`` returned, with numbers converted to Python's types.

    Args:
        result: return value of ``step``.

    Raises:
        ContractError: if one of the five values is missing or of the wrong type.
    """
    if not isinstance(result, tuple) or len(result) != 5:
        raise ContractError(
            "step(): expected a tuple (observation, reward, terminated, truncated, info), got "
            f"{describe_value(result)}; return these five values"
        )
    observation, reward, terminated, truncated, info = result
    # the usual types need no conversion
    if type(reward) is not float:
        reward = _number(reward)
    if type(terminated) is not bool:
        terminated = _flag("terminated", terminated)
    if type(truncated) is not bool:
        truncated = _flag("truncated", truncated)
    return Timestep(observation, reward, terminated, truncated, _checked_info("step()", info))


def _number(reward: Any) -> float:
    """Return a reward as a float; arrays of one number are accepted."""
    array = _as_array(reward)
    if array is None or array.size != 1:
        raise ContractError(
            f"reward: expected one number, got {describe_value(reward)}; return a float"
        )
    return float(array.item())


def _flag(name: str, value: Any) -> bool:
    """Return a flag as a bool; 0, 1 and arrays of one flag are accepted."""
    array = _as_array(value)
    if array is None or array.size != 1 or array.item() not in (0, 1):
        raise ContractError(f"{name}: expected a bool, got {describe_value(value)}; return bool(…)")
    return bool(array.item())


def _as_array(value: Any) -> np.ndarray | None:
    """Return a number or an array of numbers as an array; None for anything else."""
    if isinstance(value, str | bytes):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    if array.dtype.kind not in "biuf":
        return None
    return array


def _checked_info(method: str, info: Any) -> Info:
    if not isinstance(info, Mapping):
        raise ContractError(
            f"info of {method}: expected a dict, got {describe_value(info)}; return {{}} if there "
            "is nothing to tell"
        )
    return info  # type: ignore[return-value]
