"""Choice of the observation keys that are inputs."""

from collections.abc import Sequence

from gymnasium import spaces

from mirl.configs.errors import ConfigError, closest
from mirl.configs.keys import (
    ACTION_MASK_KEY,
    CONTEXT_KEYS,
    TASK_KEY,
)
from mirl.configs.networks import (
    AnyContextConfig,
)
from mirl.policies.routing.contexts import advice_for_key, asked_keys


def input_keys(
    space: spaces.Dict, context: AnyContextConfig, observation_keys: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the keys that are inputs.

    Args:
        space: the space of the observations.
        context: the context.
        observation_keys: the keys if they are given; None for all keys except the context's,
            ``action_mask``, and the index of the task.

    Raises:
        ConfigError: if a key is unknown, or if an input is missing.
    """
    not_inputs = (*context.keys, ACTION_MASK_KEY, TASK_KEY)
    seen = tuple(key for key in space if key not in not_inputs)
    if observation_keys is not None:
        _check_inputs(tuple(observation_keys), space, seen)
        return tuple(observation_keys)
    if seen:
        return seen
    advice = "add an input to the observation"
    asked = asked_keys(space)
    if len(asked) > 1:
        # the other keys are then inputs
        advice = advice_for_key(asked[0])
        if set(asked) <= {asked[0], TASK_KEY}:
            advice = "add an input to the observation"
    raise ConfigError(
        f"expected an input beside the context, got only the keys {sorted(space)}; {advice}"
    )


def _check_inputs(keys: Sequence[str], space: spaces.Dict, seen: Sequence[str]) -> None:
    """Raise a ConfigError if a given input is unknown, or if none is given."""
    known: list[str] = []
    for key in keys:
        name = key if key in space.spaces else closest(key, seen)
        if name is not None and name not in known:
            known.append(name)
    unknown = [key for key in keys if key not in space.spaces]
    if keys and not unknown:
        return
    problem = "expected at least one key"
    if unknown:
        problem = f"the observation has no key '{unknown[0]}', only {', '.join(space)}"
    advice = "remove observation_keys"
    if known:
        advice = f"use observation_keys=[{','.join(known)}]"
    raise ConfigError(f"observation_keys: {problem}; {advice}")


def legacy_input_keys(space: spaces.Dict, context: AnyContextConfig) -> tuple[str, ...]:
    """Return the keys that were inputs before the configuration stored them.

    Args:
        space: the space of the observations.
        context: the context.
    """
    not_inputs = (*CONTEXT_KEYS, *context.keys, ACTION_MASK_KEY)
    return tuple(key for key in space if key not in not_inputs)
