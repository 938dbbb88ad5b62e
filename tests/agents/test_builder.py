"""From a configuration that leaves context and encoder open to one that fits the observations."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mirl.agents.builder import resolve_auto
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError

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
def test_the_observations_say_what_is_the_context_and_what_reads_the_rest(
    observed: spaces.Dict, context: str, encoder: str, sites: tuple[str, ...]
) -> None:
    config = resolve_auto(compose_train(["task=Some-v0"]), observed)
    assert (config.context.kind, config.encoder.kind, config.sites) == (context, encoder, sites)


def test_what_the_command_line_says_stays() -> None:
    config = compose_train(
        ["task=Some-v0", "context=goal", "context.dim=7", "encoder=vector", "sites=heads"]
    )
    assert resolve_auto(config, space(observation=VECTOR, desired_goal=VECTOR)) == config


def test_a_single_task_without_goal_and_mission_has_no_context() -> None:
    with pytest.raises(ConfigError, match="'Some-v0' state neither a goal nor a mission"):
        resolve_auto(compose_train(["task=Some-v0"]), space(observation=VECTOR))
