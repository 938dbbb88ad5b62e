"""Widths that give agents the same number of parameters."""

from collections.abc import Callable

from mirl.agents.builder import build_policy, resolve_auto
from mirl.configs.compose import compose_train
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters


def parameters_of(options: list[str]) -> int:
    """Return the number of parameters of the agent of a command line.

    Args:
        options: Options of ``train.py``.
    """
    config = compose_train(options)
    n_envs = max(len(config.task.tasks), 2)
    env = SuiteVecEnv(config.task, n_envs, backend=config.backend)
    try:
        resolved = resolve_auto(config, env.observation_space)
        policy = build_policy(resolved, env.observation_space, env.action_space)
    finally:
        env.close()
    return count_parameters(policy)


def match_parameters(
    agents: dict[str, list[str]], shared: list[str], option: str
) -> dict[str, list[str]]:
    """Widen the agents until each has as many parameters as the largest.

    Args:
        agents: The own options of each agent.
        shared: The options common to all agents.
        option: The option that sets the width.

    Returns:
        The own options of each agent, with the width added where it changes.
    """
    sizes = {name: parameters_of([*shared, *own]) for name, own in agents.items()}
    target = max(sizes.values())
    matched = {}
    for name, own in agents.items():
        matched[name] = own
        if sizes[name] < target:
            width = _matching_width(target, [*shared, *own], option)
            matched[name] = [*own, f"{option}={width}"]
    return matched


def _matching_width(target: int, options: list[str], option: str) -> int:
    def parameters(width: int) -> int:
        return parameters_of([*options, f"{option}={width}"])

    return width_for(target, parameters)


def width_for(target: int, parameters: Callable[[int], int]) -> int:
    """Return the smallest width from 2 on that gives at least ``target`` parameters.

    Args:
        target: The number of parameters to reach.
        parameters: Number of parameters at a width, increasing with the width.
    """
    high = 2
    while parameters(high) < target:
        high *= 2
    low = high // 2
    # parameters(low) < target <= parameters(high), except where high is still 2
    while high - low > 1:
        middle = (low + high) // 2
        if parameters(middle) < target:
            low = middle
        else:
            high = middle
    return high
