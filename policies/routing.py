"""Choice of networks and keys: what the options and the observation space determine."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from pydantic import ValidationError
from stable_baselines3.common.preprocessing import is_image_space

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import (
    ACTION_MASK_KEY,
    CONTEXT_KEYS,
    ENV_TASK_KEY,
    GOAL_NAMES,
    MISSION_KEY,
    TASK_KEY,
)
from mirl.configs.networks import (
    AnyContextConfig,
    AutoContextConfig,
    AutoEncoderConfig,
    BaseContextConfig,
    BaseEncoderConfig,
    BilinearConfig,
    CombinedContextConfig,
    CombinedEncoderConfig,
    ContextChoice,
    EncoderChoice,
    FusionChoice,
    GoalContextConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    MemoryChoice,
    MissionContextConfig,
    NetworkConfig,
    Site,
    TaskIdContextConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
    network_config,
)
from mirl.configs.validation_messages import explain
from mirl.policies.contexts import has_token_ids
from mirl.policies.encoders import Encoder, code_sizes, image_layout


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


Kind = Literal["text", "image", "grid", "vector"]
"""Kind of a subspace: token ids, pixels, cells of codes or planes, or numbers."""

MIN_IMAGE_SIZE = 32
"""Smallest height and width at which real numbers of rank 3 count as pixels."""
MAX_IMAGE_CHANNELS = 4
"""Largest number of channels at which they do."""
MIN_GRAY_SIZE = 16
"""Smallest height and width at which bytes of rank 2 count as a grayscale image."""
MAX_BYTE = 255
"""Largest value of a byte."""
MIN_GRID_SIZE = 3
"""Smallest height and width at which small integers of rank 2 count as cells."""


def resolve_network(
    network: NetworkConfig,
    observation_space: spaces.Space[object],
    *,
    move_map_site: bool = False,
) -> NetworkConfig:
    """Replace all that is left to the observation space: context, encoder and keys.

    Args:
        network: the configuration; one that is resolved already is returned unchanged.
        observation_space: a Dict space; the context and the inputs are read from its keys.
        move_map_site: if the chosen encoder has no feature map, replace site "map" by "vector";
            the default keeps the sites, and ``FusionExtractor`` rejects the combination.

    Returns:
        The configuration without an ``auto`` member.

    Raises:
        ConfigError: if the space is not a Dict, or if it lacks a context or an input.
    """
    if not isinstance(observation_space, spaces.Dict):
        raise ConfigError(
            f"expected a Dict observation space with a context in it, got {observation_space}; "
            "wrap the environment so that its observation has a goal or a text beside what is seen"
        )
    if network.is_resolved:
        return network
    check_supported(observation_space)
    context = resolve_context(network.context, observation_space)
    keys = input_keys(observation_space, context, network.observation_keys)
    encoder = resolve_encoder(network.encoder, subspace(observation_space, keys))
    sites = network.sites
    if move_map_site and not has_feature_map(encoder):
        moved: list[Site] = ["vector" if site == "map" else site for site in sites]
        sites = tuple(dict.fromkeys(moved))  # "vector" may have been there already
    return network.model_copy(
        update={
            "context": context,
            "encoder": encoder,
            "sites": sites,
            "observation_keys": keys,
        }
    )


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
                "wrap the environment in mirl.envs.ContractObservation, or shift the key"
            )
        supported = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
        if not isinstance(part, supported):
            hint = ""
            if isinstance(part, spaces.Text):
                hint = "; wrap the environment in mirl.envs.ContractObservation"
            raise ConfigError(
                f"Stable-Baselines3 does not support the space of the observation's '{key}', "
                f"{part}{hint}"
            )


def subspace(space: spaces.Dict, keys: Sequence[str]) -> spaces.Dict:
    """Return the space of some keys, in the order in which they are given.

    Args:
        space: the space of the observations.
        keys: some of its keys.
    """
    return spaces.Dict([(key, space[key]) for key in keys])


def kind_of(space: spaces.Space[object]) -> Kind:
    """Return the kind of a subspace by its shape, dtype and bounds.

    Args:
        space: the space of one key.

    Returns:
        "text" for token ids, which are int16; "image" for pixels; "grid" for cells of codes or
        planes; "vector" for all else.
    """
    shape = space.shape or ()
    if is_text(space):
        return "text"
    if len(shape) not in (2, 3) or 0 in shape:
        return "vector"
    if is_image_space(space):
        return "image"
    height, width, depth, _ = image_layout(space)
    size = min(height, width)
    if len(shape) == 3:
        is_real = code_sizes(space) is None
        if is_real and size >= MIN_IMAGE_SIZE and depth <= MAX_IMAGE_CHANNELS:
            return "image"
        return "grid"
    if not isinstance(space, spaces.Box):
        return "vector"
    # a matrix is an image or a grid only if its values are bytes or small codes
    is_bytes = space.dtype == np.uint8 and bool((space.high == MAX_BYTE).all())
    if is_bytes and size >= MIN_GRAY_SIZE:
        return "image"
    if not is_bytes and size >= MIN_GRID_SIZE and code_sizes(space) is not None:
        return "grid"
    return "vector"


def is_text(space: spaces.Space[object]) -> bool:
    """Return True if a space holds the token ids of a text: int16, of rank 1, from 0.

    Args:
        space: the space of one key.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.int16:
        return False
    return len(space.shape) == 1 and bool((space.low == 0).all())


# ----------------------------------------------------------------------------------------- contexts


def resolve_context(
    config: AnyContextConfig | AutoContextConfig, space: spaces.Dict
) -> AnyContextConfig:
    """Return the context, chosen by the observation space as far as it is left open.

    Args:
        config: the context; ``auto``, or ``combined`` without parts, for every text, every goal and
            the task id of several tasks.
        space: the space of the observations.

    Returns:
        The context, with keys that the space has.

    Raises:
        ConfigError: if the observation has no context, not the one that is given, or an option
            fits none of its contexts.
    """
    match config:
        case AutoContextConfig():
            return _auto_context(config, space)
        case CombinedContextConfig(parts=()):
            parts = tuple(default_contexts(space))
            return config.model_copy(update={"parts": parts})
        case CombinedContextConfig():
            found = tuple(_with_known_key(part, space) for part in config.parts)
            return config.model_copy(update={"parts": found})
        case _:
            return _with_known_key(config, space)


def default_contexts(space: spaces.Dict) -> list[BaseContextConfig]:
    """Return a context per key that says what is asked: goals, texts, and task ids.

    Args:
        space: the space of the observations.

    Raises:
        ConfigError: if there is none.
    """
    contexts = [context_of(key, space[key]) for key in asked_keys(space)]
    if contexts:
        return contexts
    candidates = sorted(key for key in space if key not in (TASK_KEY, ACTION_MASK_KEY))
    expected = f"no context among the observation's keys {sorted(space)}: expected a text, "
    expected += f"a goal under one of {', '.join(GOAL_NAMES)}, or several tasks"
    if len(candidates) > 1:
        raise ConfigError(
            f"{expected}; to name another key, use context=goal with context.key={candidates[0]}"
        )
    raise ConfigError(f"{expected}; add a goal or a text to the observation beside what is seen")


def asked_keys(space: spaces.Dict) -> list[str]:
    """Return the keys that say what is asked: goals first, then texts, then task ids.

    Args:
        space: the space of the observations.
    """
    goals = [key for key in GOAL_NAMES if key in space.spaces]
    texts: list[str] = []
    for key, part in space.items():
        if key not in goals and (key == MISSION_KEY or is_text(part)):
            texts.append(key)
    # the environment's own task id, whatever its space, and the index of several tasks
    tasks = [key for key in (ENV_TASK_KEY,) if key in space.spaces and key not in texts]
    index = space.spaces.get(TASK_KEY)
    if isinstance(index, spaces.Discrete):
        if index.n > 1:
            tasks.append(TASK_KEY)
    elif index is not None and TASK_KEY not in texts:
        tasks.append(TASK_KEY)
    return [*goals, *texts, *tasks]


def context_of(key: str, space: spaces.Space[object]) -> BaseContextConfig:
    """Return the context encoder that fits the space of a key.

    Args:
        key: key of the context.
        space: its space.
    """
    if is_text(space) or (key == MISSION_KEY and has_token_ids(space)):
        return MissionContextConfig(key=key)
    if isinstance(space, spaces.Discrete) and key not in GOAL_NAMES:
        return TaskIdContextConfig(key=key)
    match kind_of(space):
        case "image":
            return GoalContextConfig(key=key, encoder="image")
        case "grid":
            return GoalContextConfig(key=key, encoder="grid")
        case _:
            return GoalContextConfig(key=key)


def _auto_context(config: AutoContextConfig, space: spaces.Dict) -> AnyContextConfig:
    options = dict(config.options)
    if "key" in options:
        key = str(options["key"])
        _check_key(key, space)
        contexts = [context_of(key, space[key])]
    elif "parts" in options:
        return resolve_context(CombinedContextConfig(**options), space)
    else:
        contexts = default_contexts(space)
    if len(contexts) == 1:
        return _with_options(contexts[0], options, "context", space)
    # dim is that of the joined context, as it is with a single one
    joined: dict[str, Any] = {}
    if "dim" in options:
        joined["dim"] = options.pop("dim")
    unused = set(options)
    parts: list[BaseContextConfig] = []
    for part in contexts:
        own = {name: value for name, value in options.items() if name in type(part).model_fields}
        unused -= set(own)
        parts.append(_with_options(part, own, "context", space))
    for name in sorted(unused):
        raise _unused_option("context", name, [f"{c.key} ({c.kind})" for c in contexts])
    return CombinedContextConfig(parts=tuple(parts), **joined)


def _with_known_key(config: Any, space: spaces.Dict) -> Any:
    """Return a context whose key the space has: its own, or the only one of its kind."""
    if not isinstance(config, BaseContextConfig):
        return config
    default_key = type(config).model_fields["key"].default
    if config.key in space.spaces or config.key != default_key:
        _check_key(config.key, space)
        return config
    fitting: list[str] = []
    for key in asked_keys(space):
        if isinstance(context_of(key, space[key]), type(config)):
            fitting.append(key)
    if len(fitting) == 1:
        return config.model_copy(update={"key": fitting[0]})
    reason = f"the observation has no key '{config.key}'"
    if fitting:
        raise ConfigError(
            f"context={config.kind}: {reason}, and several keys fit: {', '.join(fitting)}; "
            f"use context.key={fitting[0]}"
        )
    asked = asked_keys(space)
    if asked:
        raise ConfigError(
            f"context={config.kind}: {reason}, its context is {', '.join(asked)}; use context=auto"
        )
    default_contexts(space)  # raises, and says what is missing
    raise AssertionError("a space without asked keys has no default contexts")


def _check_key(key: str, space: spaces.Dict) -> None:
    if key not in space.spaces:
        raise ConfigError(f"the observation has no key '{key}'." + nearest(key, space.spaces))


def _with_options(part: Any, options: Mapping[str, Any], group: str, space: spaces.Dict) -> Any:
    """Return a config with some options replaced, validated."""
    own = type(part).model_fields
    for name in options:
        if name not in own:
            raise _unused_option(group, name, [f"{part.kind}"])
    if not options:
        return part
    try:
        return type(part).model_validate({**part.model_dump(), **options})
    except ValidationError as error:
        problem = explain(type(part), error.errors()[0])
    raise ConfigError(f"{group}.{problem}")


def _unused_option(group: str, name: str, chosen: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{group}.{name} is no option of what the observation calls for, {', '.join(chosen)}; "
        f"remove {group}.{name}"
    )


# ------------------------------------------------------------------------------------------- inputs


def input_keys(
    space: spaces.Dict, context: AnyContextConfig, observation_keys: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the keys that are inputs.

    Args:
        space: the space of the observations.
        context: the context.
        observation_keys: the keys if they are given; None for all keys except the context's,
            ``action_mask``, and the index of the task.

    Raises:
        ConfigError: if a key is unknown, or if an input is missing.
    """
    if observation_keys is not None:
        keys = tuple(observation_keys)
        for key in keys:
            _check_key(key, space)
    else:
        not_inputs = (*context.keys, ACTION_MASK_KEY, TASK_KEY)
        keys = tuple(key for key in space if key not in not_inputs)
    if not keys:
        raise ConfigError(
            f"expected an input beside the context, got only the keys {sorted(space)}; add an "
            "observation to the environment"
        )
    return keys


def legacy_input_keys(space: spaces.Dict, context: AnyContextConfig) -> tuple[str, ...]:
    """Return the keys that were inputs before the configuration stored them.

    Args:
        space: the space of the observations.
        context: the context.
    """
    not_inputs = (*CONTEXT_KEYS, *context.keys, ACTION_MASK_KEY)
    return tuple(key for key in space if key not in not_inputs)


def resolve_encoder(
    config: BaseEncoderConfig | AutoEncoderConfig, space: spaces.Dict
) -> BaseEncoderConfig:
    """Return the encoder, chosen by the space of the inputs as far as it is left open.

    Args:
        config: the encoder; ``auto`` chooses a kind for each key. A given kind reads what it can,
            and the other keys are read by their own kinds.
        space: the space of the inputs.

    Returns:
        The encoder: a single kind if it reads all inputs, otherwise ``combined``.

    Raises:
        ConfigError: if the given kind or an option fits no input.
    """
    kinds = {key: kind_of(part) for key, part in space.items()}
    match config:
        case AutoEncoderConfig():
            return _auto_encoder(config, kinds, space)
        case CombinedEncoderConfig():
            return _combined(config, kinds)
        case VectorEncoderConfig() if "text" in kinds.values():
            # texts have no meaning as numbers; all other keys are flattened together
            parts: dict[str, BaseEncoderConfig] = {}
            for key, kind in kinds.items():
                parts[key] = TextEncoderConfig() if kind == "text" else config
            return CombinedEncoderConfig(parts=parts, features_dim=config.features_dim)
        case GridEncoderConfig() | ImageEncoderConfig():
            return _cells_encoder(config, kinds, space)
        case _:
            return config


def _cells_encoder(
    config: GridEncoderConfig | ImageEncoderConfig, kinds: Mapping[str, Kind], space: spaces.Dict
) -> BaseEncoderConfig:
    """Return an encoder in which a kind with cells reads every image, grid or plane."""
    cells = [key for key in space if len(space[key].shape or ()) == RANK_OF_CELLS]
    cells += [key for key, kind in kinds.items() if kind in ("image", "grid") and key not in cells]
    if not cells:
        listed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        raise ConfigError(
            f"encoder={config.kind} needs an observation of rank 3, got {listed}; use encoder=auto"
        )
    if len(cells) == 1 and "text" not in kinds.values():
        return config
    parts: dict[str, BaseEncoderConfig] = dict.fromkeys(cells, config)
    combined = CombinedEncoderConfig(parts=parts, features_dim=config.features_dim)
    return _combined(combined, kinds)


def _combined(config: CombinedEncoderConfig, kinds: Mapping[str, Kind]) -> CombinedEncoderConfig:
    """Return a combined encoder with a part for each input."""
    for key in config.parts:
        if key not in kinds:
            raise ConfigError(f"encoder.parts: '{key}' is no input." + nearest(key, kinds))
    parts: dict[str, BaseEncoderConfig] = {}
    for key, kind in kinds.items():
        parts[key] = config.parts.get(key) or ENCODERS[kind]()
    return CombinedEncoderConfig(parts=parts, features_dim=config.features_dim)


ENCODERS: Mapping[Kind, type[BaseEncoderConfig]] = {
    "text": TextEncoderConfig,
    "image": ImageEncoderConfig,
    "grid": GridEncoderConfig,
    "vector": VectorEncoderConfig,
}
"""Config of the encoder of each kind of space."""
RANK_OF_CELLS = 3
"""Rank of images, and of grids of codes."""


def _auto_encoder(
    config: AutoEncoderConfig, kinds: Mapping[str, Kind], space: spaces.Dict
) -> BaseEncoderConfig:
    options = dict(config.options)
    if "parts" in options:
        return _combined(CombinedEncoderConfig(**options), kinds)
    single = _single_kind(kinds)
    chosen = set(kinds.values()) if single is None else {single}
    # an option that only another kind has chooses this kind
    for name in options:
        owners = [owner for owner in config.owners(name) if owner in ENCODERS.values()]
        if any(ENCODERS[kind] in owners for kind in chosen) or name == "features_dim":
            continue
        if VectorEncoderConfig in owners:
            return _with_vector(options, kinds, space)
        raise _unused_option("encoder", name, [f"{key} ({kind})" for key, kind in kinds.items()])
    if single is not None:
        return _with_options(ENCODERS[single](), options, "encoder", space)
    joined: dict[str, Any] = {}
    if "features_dim" in options:
        joined["features_dim"] = options.pop("features_dim")
    parts: dict[str, BaseEncoderConfig] = {}
    for key, kind in kinds.items():
        part = ENCODERS[kind]
        own = {name: value for name, value in options.items() if name in part.model_fields}
        parts[key] = _with_options(part(), own, "encoder", space)
    return CombinedEncoderConfig(parts=parts, **joined)


def _with_vector(
    options: Mapping[str, Any], kinds: Mapping[str, Kind], space: spaces.Dict
) -> BaseEncoderConfig:
    """Return the encoder for an option of ``vector``, where no key alone calls for that kind.

    Numbers beside an image go through an MLP of their own; if there are none, all is flattened.
    """
    own = {n: v for n, v in options.items() if n in VectorEncoderConfig.model_fields}
    vector = _with_options(VectorEncoderConfig(), own, "encoder", space)
    if "vector" not in kinds.values():
        for name in sorted(set(options) - set(own)):
            raise _unused_option("encoder", name, ["vector"])
        return resolve_encoder(vector, space)
    rest = {name: value for name, value in options.items() if name not in own}
    parts: dict[str, BaseEncoderConfig] = {}
    unused = set(rest)
    for key, kind in kinds.items():
        part = ENCODERS[kind]
        fitting = {name: value for name, value in rest.items() if name in part.model_fields}
        unused -= set(fitting)
        parts[key] = vector
        if kind != "vector":
            parts[key] = _with_options(part(), fitting, "encoder", space)
    for name in sorted(unused):
        raise _unused_option("encoder", name, [f"{key} ({kind})" for key, kind in kinds.items()])
    dim = options.get("features_dim", CombinedEncoderConfig().features_dim)
    return CombinedEncoderConfig(parts=parts, features_dim=dim)


def _single_kind(kinds: Mapping[str, Kind]) -> Kind | None:
    """Return the kind whose encoder reads all inputs, or None if it takes a combined encoder."""
    cells = [kind for kind in kinds.values() if kind in ("image", "grid")]
    if "text" in kinds.values():
        return "text" if len(kinds) == 1 else None
    if len(cells) > 1:
        return None
    # the numbers beside one image join its last layer
    return cells[0] if cells else "vector"


def has_feature_map(encoder: BaseEncoderConfig) -> bool:
    """Return True if an encoder has a feature map.

    Args:
        encoder: a resolved encoder.
    """
    if isinstance(encoder, CombinedEncoderConfig):
        return any(has_feature_map(part) for part in encoder.parts.values())
    return Encoder.class_of(encoder).has_map


# -------------------------------------------------------------------------------------- description


def describe(network: NetworkConfig, space: spaces.Dict) -> str:
    """Return one line that says what is seen and what is asked, key by key.

    Args:
        network: a resolved configuration.
        space: the space of the observations.
    """
    assert not isinstance(network.context, AutoContextConfig)
    keys = network.observation_keys or ()
    seen: list[str] = []
    for key in keys:
        encoder = network.encoder
        if isinstance(encoder, CombinedEncoderConfig):
            kind = encoder.parts[key].kind
        elif kind_of(space[key]) == "vector":
            kind = "vector"
        else:
            kind = encoder.kind
        seen.append(f"{key} ({kind})")
    context = network.context
    parts: Sequence[Any] = [context]
    if isinstance(context, CombinedContextConfig):
        parts = context.parts
    asked = [f"{', '.join(part.keys)} ({part.kind})" for part in parts]
    used = {*keys, *context.keys, ACTION_MASK_KEY}
    # the index of a single task says nothing
    unused = [key for key in space if key not in used and not _is_constant(space[key])]
    lines = f"Seen: {', '.join(seen)}. Asked: {', '.join(asked)}."
    if unused:
        lines += f" Not used: {', '.join(unused)}."
    return lines


def _is_constant(space: spaces.Space[object]) -> bool:
    return isinstance(space, spaces.Discrete) and space.n == 1
