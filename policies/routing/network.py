"""Choice of the whole network by the options and the observation space."""

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from gymnasium import spaces

from mirl.configs.errors import ConfigError, closest, nearest
from mirl.configs.networks import (
    AutoContextConfig,
    AutoEncoderConfig,
    AutoFusionConfig,
    BaseContextConfig,
    ContextChoice,
    EncoderChoice,
    FusionChoice,
    MemoryChoice,
    NetworkConfig,
    NoMemoryConfig,
    ProductConfig,
    Site,
    network_config,
)
from mirl.policies.encoders import space_text
from mirl.policies.routing.contexts import resolve_context, with_stated_layers
from mirl.policies.routing.encoders import has_feature_map, resolve_encoder
from mirl.policies.routing.fusions import resolve_fusion
from mirl.policies.routing.inputs import input_keys


def choose_network(
    network: NetworkConfig | None,
    *,
    fusion: FusionChoice,
    context: ContextChoice | None,
    encoder: EncoderChoice | None,
    sites: Sequence[Site] | None,
    observation_keys: Sequence[str] | None,
    memory: MemoryChoice | None = None,
    default_memory: str = "none",
) -> NetworkConfig:
    """Return ``network``, or build one from the separate options.

    Args:
        network: the whole configuration, or None if the separate options describe it.
        fusion: name, config or class of the fusion; "auto" to choose it.
        context: name, config or class of the context encoder; None to choose it from the space.
        encoder: name, config or class of the encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads"; None to choose them with the fusion.
        observation_keys: keys of the observation that are inputs; None for all remaining keys.
        memory: name, config or class of the recurrent core; None for ``default_memory``.
        default_memory: name of the recurrent core if none is given.

    Returns:
        The configuration; its fusion, context and encoder may still be ``auto``.

    Raises:
        ConfigError: if both ``network`` and a separate option are given, or if a name is unknown.
    """
    if network is None:
        if isinstance(sites, str):  # one site, as on the command line
            sites = (cast("Site", sites),)
        # checked here, because a wrong name inside a config raises a longer error
        for site in sites or ():
            if site not in get_args(Site):
                raise ConfigError(f"unknown site '{site}'." + nearest(site, get_args(Site)))
        return network_config(
            fusion=fusion,
            context=context,
            encoder=encoder,
            sites=sites,
            memory=default_memory if memory is None else memory,
            observation_keys=observation_keys,
        )
    # an option at its default does not contradict the network
    given = {
        "fusion": fusion not in ("auto", AutoFusionConfig()),
        "context": context is not None,
        "encoder": encoder is not None,
        "sites": sites is not None,
        "observation_keys": observation_keys is not None,
        "memory": memory is not None,
    }
    twice = [name for name, is_given in given.items() if is_given]
    if twice:
        raise ConfigError(
            "expected either network or the separate options, got network and "
            f"{', '.join(twice)}; set these in the NetworkConfig"
        )
    return network


def resolve_network(
    network: NetworkConfig,
    observation_space: spaces.Space[object],
    *,
    move_map_site: bool = False,
    has_heads: bool = True,
) -> NetworkConfig:
    """Resolve everything that is left open: context, encoder, keys, fusion and sites.

    Args:
        network: the configuration; if it is already resolved, its keys are checked.
        observation_space: a Dict space; the context and the inputs are read from its keys.
        move_map_site: if the chosen encoder has no feature map, replace a given site "map" by
            "vector"; the default keeps it, and ``FusionExtractor`` rejects the combination.
        has_heads: False for a features extractor, for which the site "heads" is not chosen.

    Returns:
        The configuration without an ``auto`` member.

    Raises:
        ConfigError: if the space is not a Dict, or if it lacks a context or an input, or if the
            chosen fusion lacks an option that is given.
    """
    if not isinstance(observation_space, spaces.Dict):
        raise ConfigError(
            f"expected a Dict observation space with a context in it, got {observation_space}; "
            "wrap the environment so that its observation has a goal or a text beside what is seen"
        )
    check_supported(observation_space)
    try:
        return _resolve(network, observation_space, move_map_site, has_heads)
    except ConfigError as error:
        problem = str(error)
    message, _, advice = problem.rpartition("; ")
    corrected = _with_nearest_keys(network, observation_space)
    if corrected != network and _has_context_and_inputs(corrected, observation_space):
        raise ConfigError(problem)
    if not _has_context_and_inputs(network, observation_space):
        check_resolvable(network, observation_space)
    if advice.startswith("add "):
        # it is the given options that leave no input
        problem = f"{message}; {_without_options(network, '')}"
    raise ConfigError(problem)


def _has_context_and_inputs(network: NetworkConfig, space: spaces.Dict) -> bool:
    """Return True if the context and the inputs of a configuration fit the space."""
    try:
        context = resolve_context(network.context, space)
        input_keys(space, context, network.observation_keys)
    except ConfigError:
        return False
    return True


def _with_nearest_keys(network: NetworkConfig, space: spaces.Dict) -> NetworkConfig:
    """Return a configuration with the nearest key of the space for each misspelled one."""

    def nearest_key(key: str) -> str:
        return closest(key, space.spaces) or key

    context = network.context
    if isinstance(context, AutoContextConfig) and "key" in context.options:
        options = {**context.options, "key": nearest_key(str(context.options["key"]))}
        context = context.model_copy(update={"options": options})
    elif isinstance(context, BaseContextConfig) and "key" in context.model_fields_set:
        context = context.model_copy(update={"key": nearest_key(context.key)})
    keys = network.observation_keys
    if keys is not None:
        keys = tuple(nearest_key(key) for key in keys)
    return network.model_copy(update={"context": context, "observation_keys": keys})


def check_resolvable(network: NetworkConfig, space: spaces.Dict) -> None:
    """Raise an error if the observation space itself is at fault, not the user's options.

    Args:
        network: the configuration that does not fit; the advice names its options.
        space: the space of the observations.

    Raises:
        ConfigError: if the space has no context or no input, whatever the options are.
    """
    try:
        _resolve(NetworkConfig(), space, move=True)
    except ConfigError as error:
        message, _, advice = str(error).rpartition("; ")
    else:
        return
    raise ConfigError(f"{message}; {_without_options(network, advice)}")


def _without_options(network: NetworkConfig, advice: str) -> str:
    """Extend some advice by removing all given options of the context and the inputs."""
    steps = [advice] if advice else []
    for group, config in (("context", network.context), ("encoder", network.encoder)):
        if isinstance(config, AutoContextConfig | AutoEncoderConfig):
            given = dict(config.options)
        else:
            given = {name: getattr(config, name) for name in config.model_fields_set - {"kind"}}
            if f"{group}=auto" not in advice:
                steps.append(f"use {group}=auto")
        names = [name for name in sorted(given) if name != "parts"]
        if isinstance(given.get("parts"), Mapping):
            names += [f"parts.{key}" for key in given["parts"]]
        for name in names:
            if f"{group}.{name}=" not in advice:
                steps.append(f"remove {group}.{name}")
    if network.observation_keys is not None:
        steps.append("remove observation_keys")
    return " and ".join(steps)


def _resolve(
    network: NetworkConfig, observation_space: spaces.Dict, move: bool, has_heads: bool = True
) -> NetworkConfig:
    """Return the resolved configuration, see ``resolve_network``."""
    context = resolve_context(network.context, observation_space)
    keys = input_keys(observation_space, context, network.observation_keys)
    encoder = resolve_encoder(network.encoder, subspace(observation_space, keys))
    given = network.sites
    if given is not None and move and not has_feature_map(encoder):
        moved: list[Site] = ["vector" if site == "map" else site for site in given]
        given = tuple(dict.fromkeys(moved))  # "vector" may have been there already
    constant_keys = constant_texts(observation_space)
    fusion, sites = resolve_fusion(
        network.fusion, given, encoder, context, constant_keys, has_heads=has_heads
    )
    reads_words = isinstance(fusion, ProductConfig) and fusion.pool_words
    # a recurrent core reads the vector of the text, too
    is_read = not reads_words or not isinstance(network.memory, NoMemoryConfig)
    context = with_stated_layers(context, is_read=is_read)
    return network.model_copy(
        update={
            "context": context,
            "encoder": encoder,
            "fusion": fusion,
            "sites": sites,
            "observation_keys": keys,
        }
    )


def constant_texts(space: spaces.Dict) -> frozenset[str]:
    """Return the keys of texts that never change, according to the spaces of MIRL's envs.

    Args:
        space: the space of the observations.
    """
    return frozenset(key for key, part in space.items() if getattr(part, "is_constant", False))


def check_supported(space: spaces.Dict) -> None:
    """Check that SB3 can make tensors of every key, which it does even for unused ones.

    Args:
        space: the space of the observations.

    Raises:
        ConfigError: if it cannot.
    """
    for key, part in space.items():
        if isinstance(part, spaces.Discrete) and part.start != 0:
            raise ConfigError(
                f"Stable-Baselines3 needs Discrete spaces that start at 0, and '{key}' is {part}; "
                "wrap the environment in mirl.envs.ContractObservation"
            )
        supported = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
        if not isinstance(part, supported):
            hint = ""
            if isinstance(part, spaces.Text):
                hint = "; wrap the environment in mirl.envs.ContractObservation"
            raise ConfigError(
                f"Stable-Baselines3 does not support the space of the observation's '{key}', "
                f"{space_text(part)}{hint}"
            )


def subspace(space: spaces.Dict, keys: Sequence[str]) -> spaces.Dict:
    """Return the space of some keys, in the order in which they are given.

    Args:
        space: the space of the observations.
        keys: some of its keys.
    """
    return spaces.Dict([(key, space[key]) for key in keys])
