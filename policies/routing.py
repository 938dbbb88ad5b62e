"""Which keys of an observation tell what to do, and which tell what is seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space

from mirl.configs import keys
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import ACTION_MASK_KEY, CONTEXT_KEYS
from mirl.configs.networks import (
    ContextConfig,
    EncoderConfig,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MissionContextConfig,
    TaskIdContextConfig,
    VectorEncoderConfig,
)


@dataclass(frozen=True)
class Routing:
    """The keys of an observation by their use."""

    context: str
    """The key of the context."""
    image: str | None
    """The key with rows, columns and channels, if there is one."""
    others: tuple[str, ...]
    """The other keys of what is seen; they are flattened and joined."""
    others_dim: int
    """Their size, flattened."""


def route(
    space: spaces.Dict, context_key: str, observation_keys: Sequence[str] | None, *, flatten: bool
) -> Routing:
    """The routing of ``space``; by default all is seen that ``seen_keys`` says, and ``flatten`` makes images vectors.

    :raises ConfigError: for an unknown key, with the nearest one, for a space that SB3 cannot read, and when nothing is
        left to see.
    """
    for key, part in space.items():
        _check_readable(key, part)
    keys = seen_keys(space, context_key, observation_keys)
    image = None if flatten else image_key(space, keys)
    others = tuple(key for key in keys if key != image)
    others_dim = sum(
        int(get_flattened_obs_dim(space[key])) for key in others
    )  # SB3 sums MultiDiscrete with numpy
    return Routing(context_key, image, others, others_dim)


def _check_readable(key: str, space: spaces.Space[Any]) -> None:
    """What SB3 cannot make a tensor of it stops at, whether the networks read it or not."""
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise ConfigError(
            f"Stable-Baselines3 reads Discrete spaces that start at 0, and '{key}' is {space}"
        )
    if not isinstance(
        space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    ):
        hint = (
            "; wrap the environment in mirl.envs.ContractObservation"
            if isinstance(space, spaces.Text)
            else ""
        )
        raise ConfigError(f"Stable-Baselines3 cannot read the observation's '{key}', {space}{hint}")


def seen_keys(
    space: spaces.Dict, context_key: str, observation_keys: Sequence[str] | None
) -> tuple[str, ...]:
    """The keys that tell what is seen: those named, or every key that is no context and no mask of actions."""
    known = space.spaces
    others = (*CONTEXT_KEYS, context_key, ACTION_MASK_KEY)
    keys = tuple(observation_keys or (key for key in known if key not in others))
    for key in (context_key, *keys):
        if key not in known:
            raise ConfigError(f"the observation has no key '{key}'." + nearest(key, known))
    if not keys:
        raise ConfigError(
            f"nothing is left to see beside the context among the keys {sorted(known)}"
        )
    return keys


def image_key(space: spaces.Dict, keys: Sequence[str]) -> str | None:
    """The key of the observation with rows, columns and channels, if there is one."""
    images = [key for key in keys if len(space[key].shape or ()) == 3]
    if len(images) > 1:
        raise ConfigError(
            f"one image per observation is supported, these are several: {', '.join(images)}"
        )
    return images[0] if images else None


def default_context(space: spaces.Dict) -> ContextConfig:
    """The goal, else the mission, else the task id, whichever the observation holds first."""
    match next((key for key in CONTEXT_KEYS if key in space.spaces), None):
        case keys.DESIRED_GOAL_KEY:
            return GoalContextConfig()
        case keys.MISSION_KEY:
            return MissionContextConfig()
        case keys.TASK_KEY:
            return TaskIdContextConfig()
        case _:
            raise ConfigError(
                f"no context among the observation's keys {sorted(space.spaces)}: expected one of "
                f"{', '.join(CONTEXT_KEYS)}, or name it: context=GoalContextConfig(key='…')"
            )


def default_encoder(
    space: spaces.Dict, context_key: str, observation_keys: Sequence[str] | None
) -> EncoderConfig:
    """By the spaces of what is seen: pixels, a symbolic grid, or neither."""
    key = image_key(space, seen_keys(space, context_key, observation_keys))
    if key is None:
        return VectorEncoderConfig()
    return ImageEncoderConfig() if is_image_space(space[key]) else GridEncoderConfig()
