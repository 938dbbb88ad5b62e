"""Choice of networks and keys: what the options and the observation space determine."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from gymnasium import spaces
from pydantic import ValidationError
from stable_baselines3.common.preprocessing import is_image_space

from mirl.configs.config import Config
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
from mirl.configs.parts import OWN_KIND
from mirl.configs.validation_messages import explain
from mirl.policies.contexts import has_token_ids
from mirl.policies.encoders import Encoder, Kind, is_text, kind_of, reads_pixels, space_text

ConfigT = TypeVar("ConfigT", bound=Config)

MAX_ATTENDED_WORDS = 80
"""Largest length of a text that self-attention reads by default, that of MiniGrid's missions.

The mean over the words of a longer one hides the single word that matters from a new network.
"""


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
    try:
        return _resolve(network, observation_space, move_map_site)
    except ConfigError as error:
        problem = str(error)
    if not _has_context_and_inputs(network, observation_space):
        check_resolvable(network, observation_space)
    message, _, advice = problem.rpartition("; ")
    if advice.startswith("add "):
        # only the options that are given leave no input
        problem = f"{message}; {_without_options(network, '')}"
    raise ConfigError(problem)


def _has_context_and_inputs(network: NetworkConfig, space: spaces.Dict) -> bool:
    """Return True if only the encoder of a configuration does not fit."""
    try:
        context = resolve_context(network.context, space)
        input_keys(space, context, network.observation_keys)
    except ConfigError:
        return False
    return True


def check_resolvable(network: NetworkConfig, space: spaces.Dict) -> None:
    """Raise the error of the observation space itself, which no option of the user causes.

    Args:
        network: the configuration that does not fit; the advice names its options.
        space: the space of the observations.

    Raises:
        ConfigError: if the space has no context or no input by itself.
    """
    try:
        _resolve(NetworkConfig(), space, True)
    except ConfigError as error:
        message, _, advice = str(error).rpartition("; ")
    else:
        return
    raise ConfigError(f"{message}; {_without_options(network, advice)}")


def _without_options(network: NetworkConfig, advice: str) -> str:
    """Return some advice, and to remove all that is given about the context and the inputs."""
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


def _resolve(network: NetworkConfig, observation_space: spaces.Dict, move: bool) -> NetworkConfig:
    """Return the resolved configuration, see ``resolve_network``."""
    context = resolve_context(network.context, observation_space)
    keys = input_keys(observation_space, context, network.observation_keys)
    encoder = resolve_encoder(network.encoder, subspace(observation_space, keys))
    sites = network.sites
    if move and not has_feature_map(encoder):
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


def default_contexts(space: spaces.Dict, options: Collection[str] = ()) -> list[BaseContextConfig]:
    """Return a context per key that says what is asked: goals, texts, and task ids.

    Args:
        space: the space of the observations.
        options: names of the options that are given for the context, for the advice.

    Raises:
        ConfigError: if there is none.
    """
    contexts = [context_of(key, space[key]) for key in asked_keys(space)]
    if contexts:
        return contexts
    found = f"no context among the observation's keys {sorted(space)}"
    expected = f"expected a text, a goal under one of {', '.join(GOAL_NAMES)}, or several tasks"
    raise ConfigError(f"{found}: {expected}; {advice_without_context(space, options)}")


def advice_without_context(space: spaces.Dict, options: Collection[str] = ()) -> str:
    """Return what to do about an observation without a context.

    Args:
        space: the space of the observations.
        options: names of the options that are given for the context.
    """
    candidates = sorted(key for key in space if key not in (TASK_KEY, ACTION_MASK_KEY))
    if len(candidates) < 2:
        return "add a goal or a text to the observation"
    # the first of several keys may hold what is asked; the user knows better
    key = candidates[0]
    own = type(context_of(key, space[key])).model_fields
    unfit = [name for name in options if name not in own]
    advice = f"use context=auto with context.key={key}"
    for name in unfit:
        advice += f" and remove context.{name}"
    return advice


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
        is_long = (space.shape or (0,))[0] > MAX_ATTENDED_WORDS
        return MissionContextConfig(key=key, encoder="gru" if is_long else "attention")
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
        _check_known("context.key", key, space)
        contexts = [context_of(key, space[key])]
    elif "parts" in options:
        return resolve_context(_validated(CombinedContextConfig, options, "context"), space)
    else:
        contexts = default_contexts(space, options)
    # dim is that of the joined context, as it is with a single one
    joined: dict[str, Any] = {}
    if "dim" in options and len(contexts) > 1:
        joined["dim"] = options.pop("dim")
    unused = dict(options)
    parts: list[BaseContextConfig] = []
    for part in contexts:
        _check_relative_to(part, options.get("relative_to"), space)
        own: dict[str, Any] = {}
        for name, value in options.items():
            if _accepts(part, name, value):
                own[name] = value
                unused.pop(name, None)
        parts.append(_with_options(part, own, "context"))
    for name in unused:
        raise _unused_option("context", name, [f"{c.key} ({c.kind})" for c in contexts])
    if len(parts) == 1:
        return parts[0]
    return CombinedContextConfig(parts=tuple(parts), **joined)


def _with_known_key(config: Any, space: spaces.Dict) -> Any:
    """Return a context whose key the space has: its own, or the only one of its kind."""
    if not isinstance(config, BaseContextConfig):
        return config
    if config.key in space.spaces:
        if isinstance(config, GoalContextConfig) and is_text(space[config.key]):
            advice = "use context=mission"
            for name in sorted(config.model_fields_set - {"kind", "key", "dim"}):
                advice += f" and remove context.{name}"
            raise ConfigError(f"context=goal needs numbers, and '{config.key}' is a text; {advice}")
        _check_relative_to(config, getattr(config, "relative_to", ""), space)
        return config
    fitting: list[str] = []
    for key in asked_keys(space):
        if isinstance(context_of(key, space[key]), type(config)):
            fitting.append(key)
    is_default = config.key == type(config).model_fields["key"].default
    if len(fitting) == 1 and is_default:
        found = config.model_copy(update={"key": fitting[0]})
        _check_relative_to(found, getattr(found, "relative_to", ""), space)
        return found
    reason = f"context={config.kind}: the observation has no key '{config.key}', only "
    reason += ", ".join(space)
    if fitting:
        close = get_close_matches(config.key, fitting, n=1, cutoff=0.5)
        raise ConfigError(f"{reason}; use context.key={[*close, *fitting][0]}")
    raise ConfigError(f"{reason}; {advice_auto(config, space)}")


def advice_auto(config: Config, space: spaces.Dict) -> str:
    """Return the advice to let the observation space choose the context.

    Args:
        config: the context that does not fit.
        space: the space of the observations.
    """
    options = {name: getattr(config, name) for name in sorted(config.model_fields_set)}
    options.pop("kind", None)
    key = options.pop("key", None)
    unknown = ""
    if key is not None and key not in space.spaces:
        unknown = " and remove context.key"
    asked = asked_keys(space)
    if not asked:
        # this names another key instead of the unknown one
        return advice_without_context(space, options)
    if OWN_KIND in getattr(config, "kind", ""):
        # a user's class may read any key
        return f"use context.key={asked[0]}"
    advice = f"use context=auto{unknown}"
    contexts = [context_of(name, space[name]) for name in asked]
    for name, value in options.items():
        if not any(_accepts(part, name, value) for part in contexts):
            advice += f" and remove context.{name}"
    return advice


def _check_relative_to(config: BaseContextConfig, other: object, space: spaces.Dict) -> None:
    """Raise a ConfigError if a goal cannot be relative to another key."""
    if not isinstance(config, GoalContextConfig) or not other:
        return
    goal = space[config.key]
    fitting: list[str] = []
    for key, part in space.items():
        if isinstance(part, spaces.Box) and part.shape == goal.shape and key != config.key:
            fitting.append(key)
    if other in fitting and isinstance(goal, spaces.Box):
        return
    problem = f"'{config.key}' is {space_text(goal)}, and the observation has no key '{other}'"
    advice = "remove context.relative_to"
    if other in space.spaces:
        problem = f"'{config.key}' is {space_text(goal)}, '{other}' {space_text(space[str(other)])}"
    elif isinstance(goal, spaces.Box):
        close = get_close_matches(str(other), fitting, n=1, cutoff=0.5)
        advice = f"use context.relative_to={close[0]}" if close else advice
    raise ConfigError(
        f"context.relative_to needs two Box spaces of the same shape, {problem}; {advice}"
    )


def _check_known(option: str, key: str, space: spaces.Dict) -> None:
    """Raise a ConfigError if the value of an option is no key of the observation."""
    if key in space.spaces or not key:
        return
    advice = f"remove {option}"
    close = get_close_matches(key, space.spaces, n=1, cutoff=0.5)
    if close:
        advice = f"use {option}={close[0]}"
    elif option == "context.key" and not asked_keys(space):
        advice = advice_without_context(space)
    raise ConfigError(
        f"{option}: the observation has no key '{key}', only {', '.join(space)}; {advice}"
    )


def _accepts(part: Config, name: str, value: object) -> bool:
    """Return True if a config has an option, and the value is valid for it."""
    if name not in type(part).model_fields:
        return False
    try:
        type(part).model_validate({**part.model_dump(), name: value})
    except ValidationError as error:
        # options that depend on each other are checked together, when all are known
        return not any(detail["loc"] for detail in error.errors())
    return True


def _with_options(part: Any, options: Mapping[str, Any], group: str) -> Any:
    """Return a config with some options replaced, validated."""
    for name in options:
        if name not in type(part).model_fields:
            raise _unused_option(group, name, [f"{part.kind}"])
    if not options:
        return part
    return _validated(type(part), {**part.model_dump(), **options}, group)


def _validated(config_class: type[ConfigT], values: Mapping[str, Any], group: str) -> ConfigT:
    """Return a config of some values, or raise a ConfigError that names the group."""
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        problem = explain(config_class, error.errors()[0])
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
    not_inputs = (*context.keys, ACTION_MASK_KEY, TASK_KEY)
    seen = tuple(key for key in space if key not in not_inputs)
    if observation_keys is not None:
        _check_inputs(tuple(observation_keys), space, seen)
        return tuple(observation_keys)
    if seen:
        return seen
    advice = "add an input to the observation"
    asked = asked_keys(space)
    if len(asked) > 1:
        # the others are seen then
        advice = f"use context=auto with context.key={asked[0]}"
        if set(asked) <= {asked[0], TASK_KEY}:
            advice = "add an input to the observation"
    raise ConfigError(
        f"expected an input beside the context, got only the keys {sorted(space)}; {advice}"
    )


def _check_inputs(keys: Sequence[str], space: spaces.Dict, seen: Sequence[str]) -> None:
    """Raise a ConfigError if the given inputs are unknown or none."""
    known: list[str] = []
    for key in keys:
        close = [key]
        if key not in space.spaces:
            close = get_close_matches(key, seen, n=1, cutoff=0.5)
        known += [name for name in close if name not in known]
    unknown = [key for key in keys if key not in space.spaces]
    if keys and not unknown:
        return
    problem = "expected at least one key"
    if unknown:
        problem = f"the observation has no key '{unknown[0]}', only {', '.join(space)}"
    advice = "remove observation_keys"
    if known:
        advice = f"use observation_keys=[{','.join(known)}]"
    raise ConfigError(f"observation_keys: {problem}; {advice}")


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
            return _auto_encoder(config, kinds)
        case CombinedEncoderConfig():
            return _combined(config, kinds)
        case VectorEncoderConfig():
            return _given_encoder(config, kinds, [key for key in kinds if kinds[key] != "text"])
        case TextEncoderConfig():
            return _given_encoder(config, kinds, [key for key in kinds if kinds[key] == "text"])
        case GridEncoderConfig():
            return _cells_encoder(config, kinds, space)
        case ImageEncoderConfig():
            return _cells_encoder(config, kinds, space)
        case _:
            return config


def _given_encoder(
    config: VectorEncoderConfig | TextEncoderConfig, kinds: Mapping[str, Kind], keys: Sequence[str]
) -> BaseEncoderConfig:
    """Return an encoder in which a given kind reads some keys, and the others their own kinds."""
    if not keys:
        listed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        raise ConfigError(f"encoder={config.kind} reads none of {listed}; use encoder=auto")
    if len(kinds) == 1 or (config.kind == "vector" and len(keys) == len(kinds)):
        return config
    parts: dict[str, BaseEncoderConfig] = dict.fromkeys(keys, config)
    dim = CombinedEncoderConfig().features_dim
    if config.kind == "vector":
        dim = config.features_dim
    return _combined(CombinedEncoderConfig(parts=parts, features_dim=dim), kinds)


def _cells_encoder(
    config: GridEncoderConfig | ImageEncoderConfig, kinds: Mapping[str, Kind], space: spaces.Dict
) -> BaseEncoderConfig:
    """Return an encoder in which a kind with cells reads every image, grid or plane that it can."""
    cells = [key for key, part in space.items() if _reads_cells(config, kinds[key], part)]
    if not cells:
        listed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        needed = "codes or planes" if config.kind == "grid" else "pixels"
        raise ConfigError(
            f"encoder={config.kind} needs {needed}, an observation of rank 3, got {listed}; "
            "use encoder=auto"
        )
    if len(cells) == 1 and all(kinds[key] == "vector" for key in kinds if key not in cells):
        return config
    parts: dict[str, BaseEncoderConfig] = dict.fromkeys(cells, config)
    combined = CombinedEncoderConfig(parts=parts, features_dim=config.features_dim)
    return _combined(combined, kinds)


def _reads_cells(
    config: GridEncoderConfig | ImageEncoderConfig, kind: Kind, space: spaces.Space[object]
) -> bool:
    if kind not in ("image", "grid"):
        return False
    if config.kind == "grid":
        return not is_image_space(space)
    return reads_pixels(space)


def _combined(config: CombinedEncoderConfig, kinds: Mapping[str, Kind]) -> CombinedEncoderConfig:
    """Return a combined encoder with a part for each input."""
    _check_parts(config, kinds)
    parts: dict[str, BaseEncoderConfig] = {}
    for key, kind in kinds.items():
        parts[key] = config.parts.get(key) or _default_part(kind, config)
    return config.model_copy(update={"parts": parts})


def _check_parts(config: CombinedEncoderConfig, kinds: Mapping[str, Kind]) -> None:
    """Raise a ConfigError if a part is given for a key that is no input."""
    for key in config.parts:
        if key not in kinds:
            raise ConfigError(
                f"encoder.parts: '{key}' is no input, they are {', '.join(kinds)}; "
                f"remove encoder.parts.{key}"
            )


def _default_part(kind: Kind, config: CombinedEncoderConfig) -> BaseEncoderConfig:
    """Return the encoder of a kind, with as many channels as the given parts have."""
    if kind in ("image", "grid"):
        for part in config.parts.values():
            if isinstance(part, GridEncoderConfig | ImageEncoderConfig):
                return ENCODERS[kind].model_validate({"channels": part.channels})
    return ENCODERS[kind]()


ENCODERS: Mapping[Kind, type[BaseEncoderConfig]] = {
    "text": TextEncoderConfig,
    "image": ImageEncoderConfig,
    "grid": GridEncoderConfig,
    "vector": VectorEncoderConfig,
}
"""Config of the encoder of each kind of space."""


def _auto_encoder(config: AutoEncoderConfig, kinds: Mapping[str, Kind]) -> BaseEncoderConfig:
    options = dict(config.options)
    listed = [f"{key} ({kind})" for key, kind in kinds.items()]
    given = options.pop("parts", {})
    single = None if given else _single_kind(kinds)
    chosen = set(kinds.values()) if single is None else {single}
    # an option that only ``vector`` has chooses this kind, unless texts are all there is
    is_vector = False
    for name in options:
        owners = config.owners(name)
        if any(ENCODERS[kind] in owners for kind in chosen) or name == "features_dim":
            continue
        if VectorEncoderConfig not in owners or chosen == {"text"}:
            raise _unused_option("encoder", name, listed)
        is_vector = True
    if is_vector:
        if "vector" not in kinds.values():
            return _flattened(options, kinds)
        # numbers beside an image go through an MLP of their own
        single = None
    if single is not None:
        return _with_options(ENCODERS[single](), options, "encoder")
    joined: dict[str, Any] = {"parts": given}
    if "features_dim" in options:
        joined["features_dim"] = options.pop("features_dim")
    stated = _validated(CombinedEncoderConfig, joined, "encoder")
    _check_parts(stated, kinds)
    parts = dict(stated.parts)
    for key, kind in kinds.items():
        if key in parts:
            continue
        fields = ENCODERS[kind].model_fields
        own = {name: value for name, value in options.items() if name in fields}
        parts[key] = _with_options(_default_part(kind, stated), own, "encoder")
    in_order = {key: parts[key] for key in kinds}
    # validated again, because the channels of all parts must be equal
    joined["parts"] = {key: part.model_dump() for key, part in in_order.items()}
    return _validated(CombinedEncoderConfig, joined, "encoder")


def _flattened(options: Mapping[str, Any], kinds: Mapping[str, Kind]) -> BaseEncoderConfig:
    """Return the encoder for an option of ``vector`` without numbers: all keys are flattened."""
    for name in options:
        if name not in VectorEncoderConfig.model_fields:
            raise _unused_option("encoder", name, ["vector"])
    vector = _with_options(VectorEncoderConfig(), options, "encoder")
    return _given_encoder(vector, kinds, [key for key in kinds if kinds[key] != "text"])


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
