"""Choice of the context: which keys say what the agent is asked to do, and their encoders."""

from collections.abc import Collection
from typing import Any

from gymnasium import spaces

from mirl.configs.config import Config
from mirl.configs.errors import ConfigError, closest
from mirl.configs.keys import (
    ACTION_MASK_KEY,
    ENV_TASK_KEY,
    GOAL_NAMES,
    MISSION_KEY,
    TASK_KEY,
)
from mirl.configs.networks import (
    AnyContextConfig,
    AutoContextConfig,
    BaseContextConfig,
    CombinedContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    RawContextConfig,
    TaskIdContextConfig,
)
from mirl.configs.parts import OWN_KIND
from mirl.policies.contexts import has_token_ids
from mirl.policies.encoders import is_text, kind_of, space_text
from mirl.policies.routing.options import accepts, unused_option, validated, with_options

MAX_ATTENDED_WORDS = 80
"""Largest length of a text that self-attention encodes by default: that of MiniGrid's missions.

In a longer text, the mean over the words hides the single word that matters from a new network.
"""


def resolve_context(
    config: AnyContextConfig | AutoContextConfig, space: spaces.Dict
) -> AnyContextConfig:
    """Return the context, with open choices resolved from the observation space.

    Args:
        config: the context; ``auto``, or ``combined`` without parts, means every text, every goal,
            and the task id if there are several tasks.
        space: the space of the observations.

    Returns:
        The context, with keys that the space has.

    Raises:
        ConfigError: if the observation has no context, if it lacks the given one, or if an option
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
    """Return a context for each key that holds a goal, a text or a task id.

    Args:
        space: the space of the observations.
        options: names of the options that are given for the context, for the advice.

    Raises:
        ConfigError: if there is no such key.
    """
    contexts = [context_of(key, space[key]) for key in asked_keys(space)]
    if contexts:
        return contexts
    own = sorted(key for key in space if key not in (TASK_KEY, ACTION_MASK_KEY))
    found = f"no context among the observation's keys {own}"
    expected = f"expected a text, a goal under one of {', '.join(GOAL_NAMES)}, or several tasks"
    raise ConfigError(f"{found}: {expected}; {advice_without_context(space, options)}")


def advice_without_context(space: spaces.Dict, options: Collection[str] = ()) -> str:
    """Return advice for an observation without a context.

    Args:
        space: the space of the observations.
        options: names of the options that are given for the context.
    """
    candidates = sorted(key for key in space if key not in (TASK_KEY, ACTION_MASK_KEY))
    if len(candidates) < 2:
        return "add a goal or a text to the observation"
    # one of several keys may be the context, but only the user knows: an integer more likely than
    # numbers, and numbers more likely than a picture
    key = min(candidates, key=lambda name: len(space[name].shape or ()))
    own = type(context_of(key, space[key])).model_fields
    unfit = [name for name in options if name not in own]
    advice = advice_for_key(key)
    for name in unfit:
        advice += f" and remove context.{name}"
    return advice


def advice_for_key(key: str) -> str:
    """Return the advice to make one key the context, on the command line and in Python.

    Args:
        key: a key of the observation.
    """
    python = f"mirl.configs.networks.AutoContextConfig(key={key!r})"
    return f"use context=auto with context.key={key} (Python: {python})"


def with_stated_layers(context: AnyContextConfig, *, is_read: bool) -> AnyContextConfig:
    """Return a context with explicit layers of its missions, so that a later choice keeps them.

    Args:
        context: a resolved context.
        is_read: False if nothing uses the self-attention over a mission; it then has no layers,
            unless they are set explicitly.
    """
    if isinstance(context, CombinedContextConfig):
        parts = [with_stated_layers(part, is_read=is_read) for part in context.parts]
        return context.model_copy(update={"parts": tuple(parts)})
    if not isinstance(context, MissionContextConfig) or context.encoder != "attention":
        return context
    is_kept = is_read or "layers" in context.model_fields_set
    return context.model_copy(update={"layers": context.layers if is_kept else 0})


def asked_keys(space: spaces.Dict) -> list[str]:
    """Return the keys that say what the agent is asked to do: goals, then texts, then task ids.

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
        return resolve_context(validated(CombinedContextConfig, options, "context"), space)
    else:
        contexts = default_contexts(space, options)
    # dim is the size of the joined context, as it is that of a single one
    joined: dict[str, Any] = {}
    if "dim" in options and len(contexts) > 1:
        joined["dim"] = options.pop("dim")
    unused = dict(options)
    parts: list[BaseContextConfig] = []
    for part in contexts:
        _check_relative_to(part, options.get("relative_to"), space)
        own: dict[str, Any] = {}
        for name, value in options.items():
            if accepts(part, name, value):
                own[name] = value
                unused.pop(name, None)
        parts.append(with_options(part, own, "context"))
    for name in unused:
        raise unused_option("context", name, [f"{c.key} ({c.kind})" for c in contexts])
    if len(parts) == 1:
        return parts[0]
    return CombinedContextConfig(parts=tuple(parts), **joined)


def _with_known_key(config: Any, space: spaces.Dict) -> Any:
    """Return a context with a key of the space: its own key, or the only key of its kind."""
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
        # raw reads numbers of every kind
        is_raw = isinstance(config, RawContextConfig) and not is_text(space[key])
        if is_raw or isinstance(context_of(key, space[key]), type(config)):
            fitting.append(key)
    is_default = config.key == type(config).model_fields["key"].default
    if len(fitting) == 1 and is_default:
        found = config.model_copy(update={"key": fitting[0]})
        _check_relative_to(found, getattr(found, "relative_to", ""), space)
        return found
    reason = f"context={config.kind}: the observation has no key '{config.key}', only "
    reason += ", ".join(space)
    if fitting:
        key = closest(config.key, fitting) or fitting[0]
        raise ConfigError(f"{reason}; use context.key={key}")
    raise ConfigError(f"{reason}; {advice_auto(config, space)}")


def advice_auto(config: Config, space: spaces.Dict) -> str:
    """Return the advice to let the observation space choose the context.

    Args:
        config: the context that does not fit.
        space: the space of the observations.
    """
    options = {name: getattr(config, name) for name in sorted(config.model_fields_set)}
    options |= options.pop("options", {})  # those that context=auto passes on
    options.pop("kind", None)
    key = options.pop("key", None)
    unknown = ""
    if key is not None and (key not in space.spaces or key == TASK_KEY):
        unknown = " and remove context.key"
    asked = asked_keys(space)
    if not asked:
        # this names another key instead of the unknown one
        return advice_without_context(space, options)
    if isinstance(config, TaskIdContextConfig) and asked == [ENV_TASK_KEY]:
        return f"use context.key={ENV_TASK_KEY}"
    if OWN_KIND in getattr(config, "kind", ""):
        # a custom class may read any key
        return f"use context.key={asked[0]}"
    advice = f"use context=auto{unknown}"
    contexts = [context_of(name, space[name]) for name in asked]
    for name, value in options.items():
        if not any(accepts(part, name, value) for part in contexts):
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
        close = closest(other, fitting)
        advice = f"use context.relative_to={close}" if close else advice
    raise ConfigError(
        f"context.relative_to needs two Box spaces of the same shape, {problem}; {advice}"
    )


def _check_known(option: str, key: str, space: spaces.Dict) -> None:
    """Raise a ConfigError if the observation lacks the key that an option names."""
    if key in space.spaces or not key:
        return
    advice = f"remove {option}"
    close = closest(key, space.spaces)
    if close:
        advice = f"use {option}={close}"
    elif option == "context.key" and not asked_keys(space):
        advice = advice_without_context(space)
    raise ConfigError(
        f"{option}: the observation has no key '{key}', only {', '.join(space)}; {advice}"
    )
