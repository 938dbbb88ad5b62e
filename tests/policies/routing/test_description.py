"""Description of what is seen and what is asked."""

from gymnasium import spaces
from routing_spaces import dict_of

from mirl.configs.networks import (
    MissionContextConfig,
    network_config,
)
from mirl.policies.routing import (
    describe,
    resolve_network,
)


def test_single_task_is_no_context() -> None:
    """The index of a single task is neither asked nor seen."""
    space = spaces.Dict({**dict_of("observation", "mission").spaces, "task": spaces.Discrete(1)})
    resolved = resolve_network(network_config(), space)
    assert resolved.context == MissionContextConfig()
    assert resolved.observation_keys == ("observation",)
    assert describe(resolved, space) == "Seen: observation (vector). Asked: mission (mission)."


def test_description_names_every_key() -> None:
    """The description says of every key whether it is seen, asked or not used."""
    space = dict_of("pixels", "grid", "direction", "mission", "desired_goal", "task")
    network = network_config(observation_keys=("pixels", "grid"), context="goal")
    assert describe(resolve_network(network, space), space) == (
        "Seen: pixels (image), grid (grid). Asked: desired_goal (goal). "
        "Not used: direction, mission, task."
    )
