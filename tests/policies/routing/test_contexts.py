"""Choice of the context."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from routing_spaces import dict_of

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AutoContextConfig,
    CombinedContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    RawContextConfig,
    TaskIdContextConfig,
    network_config,
)
from mirl.policies.routing import (
    resolve_network,
)


@pytest.mark.parametrize(
    ("keys", "context"),
    [
        (("observation", "task"), TaskIdContextConfig()),
        (("observation", "mission"), MissionContextConfig()),
        (("observation", "desired_goal"), GoalContextConfig()),
        (("observation", "context"), GoalContextConfig(key="context")),
        (
            ("observation", "task", "mission"),
            CombinedContextConfig(parts=(MissionContextConfig(), TaskIdContextConfig())),
        ),
        (
            ("observation", "task", "mission", "desired_goal"),
            CombinedContextConfig(
                parts=(GoalContextConfig(), MissionContextConfig(), TaskIdContextConfig())
            ),
        ),
    ],
    ids=["task", "mission", "goal", "context", "mission+task", "all"],
)
def test_auto_context_joins_all_contexts(keys: tuple[str, ...], context: Any) -> None:
    """The automatic context joins every goal, every text and the id of several tasks."""
    assert resolve_network(network_config(), dict_of(*keys)).context == context


def test_raw_context_finds_its_key() -> None:
    """A raw context reads the only key of numbers that is asked."""
    network = network_config(context="raw")
    assert resolve_network(network, dict_of("observation", "task", "mission")).context == (
        RawContextConfig(key="task")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"context": AutoContextConfig(key="pixls")},
            r"no key 'pixls', only .*; use context\.key=pixels",
        ),
        (
            {"context": AutoContextConfig(key="pixels"), "observation_keys": ("directionn",)},
            "no key 'directionn'.*direction",
        ),
    ],
    ids=["context", "input"],
)
def test_misspelled_key_is_named(options: dict[str, Any], message: str) -> None:
    """Also where the observation has no context by itself, which would be the first error."""
    with pytest.raises(ConfigError, match=message):
        resolve_network(network_config(**options), dict_of("pixels", "direction"))


def test_likeliest_key_is_proposed() -> None:
    """Without a context, the advice names an integer before numbers, and these before a picture."""
    picture = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    observed = spaces.Dict(
        {
            "camera": picture,
            "mode": spaces.Discrete(3),
            "state": spaces.Box(-1, 1, (2,)),
            "task": spaces.Discrete(1),
        }
    )
    keys = r"keys \['camera', 'mode', 'state'\]"
    with pytest.raises(ConfigError, match=rf"{keys}: .*context.key=mode "):
        resolve_network(network_config(), observed)
    del observed.spaces["mode"]
    with pytest.raises(ConfigError, match=r"context\.key=state "):
        resolve_network(network_config(), observed)
