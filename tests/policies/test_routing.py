"""Choice of networks and keys by the options and the observation space."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedContextConfig,
    CombinedEncoderConfig,
    FilmConfig,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MissionContextConfig,
    TaskIdContextConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
    network_config,
)
from mirl.policies.routing import (
    asked_keys,
    choose_network,
    describe,
    input_keys,
    legacy_input_keys,
    resolve_network,
)

CODES = np.broadcast_to(np.array([10, 5, 3], np.uint8), (7, 7, 3))
SUBSPACES: dict[str, spaces.Space[Any]] = {
    "observation": spaces.Box(-1, 1, (5,), np.float32),
    "direction": spaces.Discrete(4),
    "grid": spaces.Box(np.zeros_like(CODES), CODES.copy(), (7, 7, 3), np.uint8),
    "pixels": spaces.Box(0, 255, (40, 40, 3), np.uint8),
    "task": spaces.Discrete(3),
    "mission": spaces.Box(0, 20, (6,), np.int16),
    "desired_goal": spaces.Box(-1, 1, (2,), np.float32),
    "action_mask": spaces.MultiBinary(4),
}


def dict_of(*keys: str) -> spaces.Dict:
    return spaces.Dict({key: SUBSPACES[key] for key in keys})


OPTIONS: dict[str, Any] = {
    "fusion": "bilinear",
    "context": None,
    "encoder": None,
    "sites": ("vector",),
    "default_sites": ("vector",),
    "observation_keys": None,
}


# ------------------------------------------------------------------------------------------ network


def test_separate_options_build_a_network() -> None:
    """Without a network the separate options describe it."""
    network = choose_network(None, **{**OPTIONS, "fusion": "film", "sites": ("map",)})
    assert network == network_config(fusion="film", sites=("map",))


def test_given_network_is_returned() -> None:
    """With a network and options at their defaults the network is used."""
    network = network_config(fusion=FilmConfig())
    assert choose_network(network, **OPTIONS) is network


@pytest.mark.parametrize(
    "option",
    [
        {"fusion": "film"},
        {"context": "task_id"},
        {"encoder": "grid"},
        {"sites": ("map",)},
        {"observation_keys": ("observation",)},
        {"memory": "lstm"},
    ],
    ids=str,
)
def test_network_and_option_exclude_each_other(option: dict[str, Any]) -> None:
    """A network and a separate option together raise an error that names the option."""
    (name,) = option
    with pytest.raises(ConfigError, match=f"got network and {name}; set these in"):
        choose_network(network_config(), **{**OPTIONS, **option})


def test_unknown_site_suggests_the_nearest() -> None:
    """An unknown site raises an error with the nearest name."""
    with pytest.raises(ConfigError, match=r"unknown site 'haeds'\. Did you mean 'heads'"):
        choose_network(None, **{**OPTIONS, "sites": ("haeds",)})


@pytest.mark.parametrize(
    ("keys", "context"),
    [
        (("observation", "task"), TaskIdContextConfig()),
        (("observation", "mission"), MissionContextConfig()),
        (("observation", "desired_goal"), GoalContextConfig()),
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
    ids=["task", "mission", "goal", "mission+task", "all"],
)
def test_auto_context_joins_all_contexts(keys: tuple[str, ...], context: Any) -> None:
    """The automatic context joins every goal, every text and the id of several tasks."""
    assert resolve_network(network_config(), dict_of(*keys)).context == context


@pytest.mark.parametrize(
    ("keys", "encoder"),
    [
        (("observation", "task"), VectorEncoderConfig()),
        (("grid", "direction", "task"), GridEncoderConfig()),
        (("pixels", "task"), ImageEncoderConfig()),
        (
            ("pixels", "grid", "task"),
            CombinedEncoderConfig(
                parts={"grid": GridEncoderConfig(), "pixels": ImageEncoderConfig()}
            ),
        ),
    ],
    ids=["vector", "grid", "image", "several"],
)
def test_auto_encoder_fits_the_inputs(keys: tuple[str, ...], encoder: Any) -> None:
    """The automatic encoder fits the spaces of the inputs."""
    assert resolve_network(network_config(), dict_of(*keys)).encoder == encoder


def test_auto_encoder_uses_observation_keys() -> None:
    """Only the keys in ``observation_keys`` decide about the encoder."""
    network = network_config(observation_keys=("direction",))
    resolved = resolve_network(network, dict_of("grid", "direction", "task"))
    assert resolved.encoder == VectorEncoderConfig()


def test_resolved_network_stays_the_same() -> None:
    """A network in which nothing is left open is returned unchanged."""
    network = network_config(
        context="task_id", encoder="vector", sites=("map",), observation_keys=("observation",)
    )
    space = dict_of("observation", "task")
    assert resolve_network(network, space, move_map_site=True) is network


@pytest.mark.parametrize(
    ("sites", "moved"),
    [
        (("map",), ("vector",)),
        (("map", "heads"), ("vector", "heads")),
        (("map", "vector", "heads"), ("vector", "heads")),
    ],
    ids=str,
)
def test_map_site_moves_only_on_request(sites: Any, moved: Any) -> None:
    """Without cells, site "map" becomes "vector" on request and stays otherwise."""
    space = dict_of("observation", "task")
    network = network_config(sites=sites)
    assert resolve_network(network, space).sites == sites
    assert resolve_network(network, space, move_map_site=True).sites == moved
    with_cells = resolve_network(network, dict_of("grid", "task"), move_map_site=True)
    assert with_cells.sites == sites


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SUBSPACES["observation"], "expected a Dict observation space"),
        (dict_of("observation"), "no context among the observation's keys"),
        (dict_of("task"), "expected an input beside the context"),
    ],
)
def test_unresolvable_space_raises(space: Any, message: str) -> None:
    """A space without what the network needs raises an error."""
    with pytest.raises(ConfigError, match=message):
        resolve_network(network_config(), space)


# --------------------------------------------------------------------------------------------- keys


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


def test_earlier_versions_left_contexts_out() -> None:
    """Before the inputs were stored, no key that can be a context was an input."""
    space = dict_of("grid", "direction", "task", "mission", "desired_goal", "action_mask")
    assert legacy_input_keys(space, TaskIdContextConfig()) == ("direction", "grid")


@pytest.mark.parametrize(
    ("subspace", "message"),
    [
        (spaces.Text(5), "does not support .*'extra'.*ContractObservation"),
        (spaces.Discrete(3, start=2), "start at 0, and 'extra'"),
        (spaces.Tuple([spaces.Discrete(2)]), "does not support .*'extra'"),
    ],
    ids=["text", "start", "tuple"],
)
def test_unsupported_space_raises(subspace: Any, message: str) -> None:
    """A space that SB3 cannot make a tensor of raises an error with its key."""
    space = spaces.Dict({**dict_of("observation", "task").spaces, "extra": subspace})
    with pytest.raises(ConfigError, match=message):
        resolve_network(network_config(), space)
