"""``auto`` is resolved by the observation space."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mirl.agents.builder import resolve_auto
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import ResolvedConfig

GRID = spaces.Box(
    np.zeros((7, 7, 3), np.uint8),
    np.broadcast_to(np.array([10, 5, 3], np.uint8), (7, 7, 3)),
    (7, 7, 3),
    np.uint8,
)
VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
TASK = spaces.Discrete(1)


def space(**keys: gym.Space[Any]) -> spaces.Dict:
    return spaces.Dict({**keys, "task": TASK})


@pytest.mark.parametrize(
    ("observed", "context", "encoder", "sites"),
    [
        (
            space(image=GRID, mission=spaces.Box(0, 9, (80,), np.int16)),
            "mission",
            "grid",
            ("map", "heads"),
        ),
        (
            space(observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR),
            "goal",
            "vector",
            ("vector", "heads"),
        ),
        (space(image=GRID, desired_goal=VECTOR), "goal", "grid", ("map", "heads")),
    ],
)
def test_auto_follows_observation_space(
    observed: spaces.Dict, context: str, encoder: str, sites: tuple[str, ...]
) -> None:
    """The observation space decides on context, encoder and sites."""
    config = resolve_auto(compose_train(["task=Some-v0"]), observed)
    assert (config.context.kind, config.encoder.kind, config.sites) == (context, encoder, sites)


def test_explicit_options_stay() -> None:
    """Options that the command line states stay as they are."""
    config = compose_train(
        ["task=Some-v0", "context=goal", "context.dim=7", "encoder=vector", "sites=heads"]
    )
    resolved = resolve_auto(config, space(observation=VECTOR, desired_goal=VECTOR))
    assert resolved.model_dump() == config.model_dump()


def test_single_task_without_context() -> None:
    """A single task with neither a goal nor a mission has no context."""
    with pytest.raises(ConfigError, match="'Some-v0' have neither a goal nor a mission"):
        resolve_auto(compose_train(["task=Some-v0"]), space(observation=VECTOR))


def test_resolved_config_has_no_auto() -> None:
    config = compose_train(["task=Some-v0"])
    resolved = resolve_auto(config, space(observation=VECTOR, desired_goal=VECTOR))
    assert type(resolved) is ResolvedConfig
    assert resolved.network.is_resolved
    assert not config.network.is_resolved
