"""Choice of the whole network by the options and the observation space."""

from typing import Any

import pytest
from gymnasium import spaces
from routing_spaces import SUBSPACES, dict_of

from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    BilinearConfig,
    CombinedContextConfig,
    FilmConfig,
    HyperConfig,
    MissionContextConfig,
    ProductConfig,
    ScaledFusionConfig,
    TaskIdContextConfig,
    network_config,
)
from mirl.policies.extractor import extractor_part
from mirl.policies.routing import (
    choose_network,
    resolve_network,
)

OPTIONS: dict[str, Any] = {
    "fusion": "auto",
    "context": None,
    "encoder": None,
    "sites": None,
    "observation_keys": None,
}


def test_separate_options_build_a_network() -> None:
    """Without a network the separate options describe it."""
    network = choose_network(None, **{**OPTIONS, "fusion": "film", "sites": ("map",)})
    assert network == network_config(fusion="film", sites=("map",))
    assert choose_network(None, **{**OPTIONS, "fusion": "film", "sites": "map"}) == network


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


def test_resolved_network_stays_the_same() -> None:
    """A network in which nothing is left open stays the same, and its keys are checked."""
    network = network_config(
        fusion="film",
        context="task_id",
        encoder="vector",
        sites=("heads",),
        observation_keys=("observation",),
    )
    assert network.is_resolved
    assert resolve_network(network, dict_of("observation", "task"), move_map_site=True) == network
    with pytest.raises(ConfigError, match="no key 'observation'"):
        resolve_network(network, dict_of("grid", "task"))


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


ONE_HOT = TaskIdContextConfig(hidden=())


@pytest.mark.parametrize(
    ("fusion", "context", "expected"),
    [
        pytest.param("bilinear", ONE_HOT, 1.0, id="one-hot"),
        pytest.param("product", ONE_HOT, 16.0, id="one-hot, product"),
        pytest.param("bilinear", TaskIdContextConfig(), None, id="hidden layer of the task id"),
        pytest.param("bilinear", "raw", None, id="numbers"),
        pytest.param(HyperConfig(hidden=()), ONE_HOT, 1.0, id="one-hot, affine generator"),
        pytest.param(HyperConfig(hidden=(8,)), ONE_HOT, None, id="hidden layer of the generator"),
        pytest.param("adapter", ONE_HOT, None, id="hidden layer of the chunks' generator"),
        pytest.param(BilinearConfig(context_scale=0.3), ONE_HOT, 0.3, id="given, one-hot"),
        pytest.param(BilinearConfig(context_scale=0.3), "raw", 0.3, id="given"),
    ],
)
def test_one_hot_context_has_own_scale(fusion: Any, context: Any, expected: Any) -> None:
    """A one-hot context is scaled apart; for others the size decides, unless one is given."""
    space = dict_of("observation", "desired_goal", "task")
    network = network_config(fusion=fusion, context=context)
    resolved = resolve_network(network, space).fusion
    assert isinstance(resolved, ScaledFusionConfig)
    assert resolved.context_scale == expected
    assert resolved.model_copy(update={"context_scale": None}) == network.fusion.model_copy(
        update={"context_scale": None}
    )


def test_fusion_without_scale_stays_the_same() -> None:
    """A fusion without the option stays as it is beside a one-hot context."""
    network = network_config(fusion="gate", context=ONE_HOT)
    assert resolve_network(network, dict_of("observation", "task")).fusion == network.fusion


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


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, 0),
        ({"fusion": "product"}, 0),
        ({"fusion": ProductConfig(pool_words=False)}, 1),
        ({"fusion": "bilinear"}, 1),
        ({"memory": "gru"}, 1),
        ({"context": "mission"}, 0),
        ({"context": MissionContextConfig(layers=1)}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("goal", [(), ("desired_goal",)], ids=str)
def test_self_attention_needs_a_reader(
    goal: tuple[str, ...], options: dict[str, Any], layers: int
) -> None:
    """The self-attention of a mission is left out if all that is there reads its words."""
    space = dict_of("grid", "mission", *goal)
    network = resolve_network(network_config(**options), space)
    context = network.context
    # the features extractor of a recurrent policy chooses once more, without the memory
    assert resolve_network(extractor_part(network), space, has_heads=False).context == context
    parts = context.parts if isinstance(context, CombinedContextConfig) else [context]
    found = [part.layers for part in parts if isinstance(part, MissionContextConfig)]
    assert found == [layers]
