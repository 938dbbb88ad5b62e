"""Choice of networks and keys: what the options and the observation space determine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space

from mirl.configs import keys
from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import ACTION_MASK_KEY, CONTEXT_KEYS
from mirl.configs.networks import (
    AutoContextConfig,
    AutoEncoderConfig,
    BilinearConfig,
    ContextChoice,
    ContextConfig,
    EncoderChoice,
    EncoderConfig,
    FusionChoice,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MemoryChoice,
    MissionContextConfig,
    NetworkConfig,
    Site,
    TaskIdContextConfig,
    VectorEncoderConfig,
    network_config,
)


def choose_network(
    network: NetworkConfig | None,
    *,
    fusion: FusionChoice,
    context: ContextChoice | None,
    encoder: EncoderChoice | None,
    sites: Sequence[Site],
    default_sites: Sequence[Site],
    observation_keys: Sequence[str] | None,
    memory: MemoryChoice | None = None,
    default_memory: str = "none",
) -> NetworkConfig:
    """Return ``network``, or build one from the separate options.

    Args:
        network: the whole configuration, or None if the separate options describe it.
        fusion: name, config or class of the fusion.
        context: name, config or class of the context encoder; None to choose it from the space.
        encoder: name, config or class of the encoder; None to choose it from the space.
        sites: one or several of "map", "vector" and "heads".
        default_sites: the value of ``sites`` that counts as not given.
        observation_keys: keys of the observation that are inputs; None for all that are left.
        memory: name, config or class of the recurrent core; None for ``default_memory``.
        default_memory: name of the recurrent core if none is given.

    Returns:
        The configuration; its context and encoder may still be ``auto``.

    Raises:
        ConfigError: if both ``network`` and a separate option are given, or if a name is unknown.
    """
    if network is None:
        # checked here, because a wrong name inside a config raises a longer error
        for site in sites:
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
        "fusion": fusion not in ("bilinear", BilinearConfig()),
        "context": context is not None,
        "encoder": encoder is not None,
        "sites": tuple(sites) != tuple(default_sites),
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
) -> NetworkConfig:
    """Replace the ``auto`` context and encoder by those that the observation space calls for.

    Args:
        network: the configuration; one that is resolved already is returned unchanged.
        observation_space: a Dict space; the context and the inputs are read from its keys.
        move_map_site: if the chosen encoder has no cells, replace site "map" by "vector"; the
            default keeps the sites, and ``FusionExtractor`` rejects the combination.

    Returns:
        The configuration without an ``auto`` member.

    Raises:
        ConfigError: if the space is not a Dict, or if it lacks a context or an input.
    """
    if not isinstance(observation_space, spaces.Dict):
        raise ConfigError(
            f"expected a Dict observation space with a context in it, got {observation_space}"
        )
    if network.is_resolved:
        return network
    context = network.context
    if isinstance(context, AutoContextConfig):
        context = default_context(observation_space)
    encoder = network.encoder
    sites = network.sites
    if isinstance(encoder, AutoEncoderConfig):
        encoder = default_encoder(observation_space, context.key, network.observation_keys)
        if move_map_site and isinstance(encoder, VectorEncoderConfig):
            moved: list[Site] = ["vector" if site == "map" else site for site in sites]
            sites = tuple(dict.fromkeys(moved))  # "vector" may have been there already
    return network.model_copy(update={"context": context, "encoder": encoder, "sites": sites})


@dataclass(frozen=True)
class Routing:
    """The keys of an observation by their use."""

    context: str
    """Key of the context."""
    image: str | None
    """Key of the input with rows, columns and channels; None if there is none."""
    others: tuple[str, ...]
    """Keys of the other inputs, which are flattened and concatenated."""
    others_dim: int
    """Size of the other inputs, flattened."""


def route(
    space: spaces.Dict,
    context_key: str,
    observation_keys: Sequence[str] | None,
    *,
    flatten: bool,
) -> Routing:
    """Assign the keys of an observation space to their uses.

    Args:
        space: the space of the observations.
        context_key: key of the context.
        observation_keys: keys that are inputs; None for the default of ``input_keys``.
        flatten: treat an image as any other input.

    Returns:
        The keys by their use.

    Raises:
        ConfigError: if a key is unknown, if Stable-Baselines3 does not support a space, or if an
            input is missing.
    """
    # SB3 preprocesses every key, even one that no network uses
    for key, subspace in space.items():
        _check_supported(key, subspace)
    keys = input_keys(space, context_key, observation_keys)
    image = None
    if not flatten:
        image = image_key(space, keys)
    others = tuple(key for key in keys if key != image)
    # SB3 computes the size of a MultiDiscrete with numpy
    others_dim = sum(int(get_flattened_obs_dim(space[key])) for key in others)
    return Routing(context_key, image, others, others_dim)


def _check_supported(key: str, space: spaces.Space[object]) -> None:
    """Raise if SB3 cannot make a tensor of the space, whether it is an input or not."""
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise ConfigError(
            f"Stable-Baselines3 needs Discrete spaces that start at 0, and '{key}' is {space}"
        )
    supported = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    if not isinstance(space, supported):
        hint = ""
        if isinstance(space, spaces.Text):
            hint = "; wrap the environment in mirl.envs.ContractObservation"
        raise ConfigError(
            f"Stable-Baselines3 does not support the space of the observation's '{key}', "
            f"{space}{hint}"
        )


def input_keys(
    space: spaces.Dict, context_key: str, observation_keys: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the keys that are inputs.

    Args:
        space: the space of the observations.
        context_key: key of the context.
        observation_keys: the keys if they are given; None for all keys except ``desired_goal``,
            ``mission``, ``task``, the context's own key and ``action_mask``.

    Raises:
        ConfigError: if a key is unknown, or if an input is missing.
    """
    known = space.spaces
    if observation_keys:
        keys = tuple(observation_keys)
    else:
        not_inputs = (*CONTEXT_KEYS, context_key, ACTION_MASK_KEY)
        keys = tuple(key for key in known if key not in not_inputs)
    for key in (context_key, *keys):
        if key not in known:
            raise ConfigError(f"the observation has no key '{key}'." + nearest(key, known))
    if not keys:
        raise ConfigError(
            f"expected an input beside the context, got only the keys {sorted(known)}; add an "
            "observation to the environment"
        )
    return keys


def image_key(space: spaces.Dict, keys: Sequence[str]) -> str | None:
    """Return the key of the image, i.e. the space of rank 3; None if there is none.

    Args:
        space: the space of the observations.
        keys: keys that are inputs.

    Raises:
        ConfigError: if there are several images.
    """
    images = [key for key in keys if len(space[key].shape or ()) == 3]
    if len(images) > 1:
        raise ConfigError(
            f"expected at most one image per observation, got several: {', '.join(images)}; "
            "choose one by observation_keys"
        )
    if not images:
        return None
    return images[0]


def default_context(space: spaces.Dict) -> ContextConfig:
    """Return the context of the most specific key: the goal, else the mission, else the task id.

    Args:
        space: the space of the observations.

    Raises:
        ConfigError: if there is none of these keys.
    """
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
                f"{', '.join(CONTEXT_KEYS)}; for another key, "
                "set context=GoalContextConfig(key='…')"
            )


def default_encoder(
    space: spaces.Dict, context_key: str, observation_keys: Sequence[str] | None
) -> EncoderConfig:
    """Return the encoder that fits the inputs: of pixels, of a symbolic grid, or of vectors.

    Args:
        space: the space of the observations.
        context_key: key of the context.
        observation_keys: keys that are inputs; None for the default of ``input_keys``.

    Raises:
        ConfigError: if a key is unknown, or if an input is missing.
    """
    key = image_key(space, input_keys(space, context_key, observation_keys))
    if key is None:
        return VectorEncoderConfig()
    # SB3 takes a uint8 Box in [0, 255] for pixels; the codes of a grid have smaller bounds
    if is_image_space(space[key]):
        return ImageEncoderConfig()
    return GridEncoderConfig()
