"""Choice of the inputs."""

from routing_spaces import dict_of

from mirl.configs.networks import (
    CombinedEncoderConfig,
    MissionContextConfig,
    TaskIdContextConfig,
    TextEncoderConfig,
    network_config,
)
from mirl.policies.routing import (
    asked_keys,
    input_keys,
    legacy_input_keys,
    resolve_network,
)


def test_keys_are_assigned_by_use() -> None:
    """All keys but the context, the index of the task and the action mask are inputs."""
    space = dict_of("grid", "direction", "task", "mission", "action_mask")
    assert asked_keys(space) == ["mission", "task"]
    assert input_keys(space, MissionContextConfig(), None) == ("direction", "grid")


def test_text_beside_the_context_is_seen() -> None:
    """A text that is not the context is an input with an encoder of its own."""
    space = dict_of("grid", "direction", "task", "mission")
    resolved = resolve_network(network_config(context="task_id"), space)
    assert resolved.observation_keys == ("direction", "grid", "mission")
    assert isinstance(resolved.encoder, CombinedEncoderConfig)
    assert resolved.encoder.parts["mission"] == TextEncoderConfig()


def test_earlier_versions_left_contexts_out() -> None:
    """Before the inputs were stored, no key that can be a context was an input."""
    space = dict_of("grid", "direction", "task", "mission", "desired_goal", "action_mask")
    assert legacy_input_keys(space, TaskIdContextConfig()) == ("direction", "grid")
