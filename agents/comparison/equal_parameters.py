"""Network widths that give all settings about the same number of parameters."""

from collections.abc import Callable, Mapping, Sequence

from mirl.agents.builder import build_policy, resolve_auto
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import ResolvedConfig
from mirl.envs import choose_backend
from mirl.envs.suite_spaces import JoinedSpaces, joined_spaces
from mirl.policies import count_parameters

MAX_WIDTH = 2**16
"""Largest width that is tried."""


def parameters_of(words: Sequence[str]) -> int:
    """Return the number of parameters of the agent that a command line defines.

    Args:
        words: options of ``train.py``.
    """
    resolved, joined = resolve_words(words)
    return count_parameters(build_policy(resolved, joined.observation, joined.action))


def resolve_words(words: Sequence[str]) -> tuple[ResolvedConfig, JoinedSpaces]:
    """Return the configuration of a command line, with ``auto`` resolved, and its tasks' spaces.

    Args:
        words: options of ``train.py``.
    """
    config = compose_train(words)
    joined = joined_spaces(config.task, choose_backend(config.task, config.backend))
    resolved = resolve_auto(config.model_copy(update={"task": joined.suite}), joined.observation)
    return resolved, joined


def matching_widths(settings: Mapping[str, Sequence[str]], option: str) -> dict[str, int]:
    """Return the widths that give each setting about as many parameters as the largest one.

    Args:
        settings: options of ``train.py`` of each setting.
        option: the option that sets the width.

    Returns:
        The width with the nearest number of parameters, for each setting but the largest.

    Raises:
        ConfigError: if a setting has no such option, or the option adds no parameters.
    """
    sizes = {name: parameters_of(words) for name, words in settings.items()}
    target = max(sizes.values())
    widths = {}
    for name, words in settings.items():
        if sizes[name] < target:
            widths[name] = _width_of(words, option, target)
    return widths


def _width_of(words: Sequence[str], option: str, target: int) -> int:
    def parameters(width: int) -> int:
        if width > MAX_WIDTH:
            raise ConfigError(
                f"match={option}: no value up to {MAX_WIDTH} gives {target:,} parameters; "
                "name an option that widens the network"
            )
        return parameters_of([*words, f"{option}={width}"])

    width = width_for(target, parameters)
    # the next smaller width may be nearer
    if width > 2 and target - parameters(width - 1) < parameters(width) - target:
        return width - 1
    return width


def width_for(target: int, parameters: Callable[[int], int]) -> int:
    """Return the smallest width from 2 on that gives at least ``target`` parameters.

    Args:
        target: the number of parameters to reach.
        parameters: number of parameters at a width, increasing with the width.
    """
    high = 2
    while parameters(high) < target:
        high *= 2
    low = high // 2
    # parameters(low) < target <= parameters(high), unless high is still 2
    while high - low > 1:
        middle = (low + high) // 2
        if parameters(middle) < target:
            low = middle
        else:
            high = middle
    return high
