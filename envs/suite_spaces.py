"""The observation and action space that all tasks of a suite share."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs.actions import ActionSpace, check_action_space
from mirl.envs.contract.definitions import definition_key
from mirl.envs.contract.descriptions import describe_space, name_task
from mirl.envs.contract.episode_limits import episode_limit
from mirl.envs.contract.probe import check_first_timestep
from mirl.envs.make import make_env
from mirl.envs.pools.game import game_spaces, has_game
from mirl.envs.texts.codec import suite_codec
from mirl.envs.texts.draw import TextSample, complete_texts, draw_texts

MAX_CHECKED = 256
"""Maximum number of definitions whose checks are cached."""


@dataclass(frozen=True)
class JoinedSpaces:
    """The spaces that all tasks of a suite share.

    Args:
        suite: the tasks, with the vocabulary and the length of their texts.
        observation: observation space, with ``action_mask`` if the numbers of actions differ.
        action: action space with every action of any task.
        n_actions: number of actions of each task, (n_tasks,), if they differ.
        episode_limits: timesteps after which the environments of each task truncate an episode;
            None if that is not known.
    """

    suite: SuiteConfig
    observation: spaces.Dict
    action: ActionSpace
    n_actions: NDArray[np.int64] | None
    episode_limits: tuple[int | None, ...]


def suite_spaces(
    suite: SuiteConfig, backend: Literal["gymnasium", "envpool"]
) -> tuple[spaces.Dict, ActionSpace]:
    """Return the observation and action space of a suite.

    Args:
        suite: the tasks; one environment of each is made.
        backend: backend that will step the environments.

    Raises:
        ConfigError: as in ``joined_spaces``.
    """
    joined = joined_spaces(suite, backend)
    return joined.observation, joined.action


def joined_spaces(suite: SuiteConfig, backend: Literal["gymnasium", "envpool"]) -> JoinedSpaces:
    """Return the spaces of a suite, which may differ only in the number of discrete actions.

    Unless the suite states the vocabulary and the length of its texts, sample texts are drawn from
    the environments.

    Args:
        suite: the tasks; one environment of each is made and checked, unless this process has
            checked the same definition (id, keyword arguments, wrappers) before.
        backend: backend that will step the environments.

    Raises:
        ConfigError: if an environment cannot be made, or the spaces of two tasks differ.
    """
    if has_game(suite):
        space, action, limit = game_spaces(suite)
        suite = complete_texts(suite, [TextSample()])
        return JoinedSpaces(suite, space, action, None, (limit,) * len(suite.tasks))
    parts = [_task_spaces(suite, index, backend) for index in range(len(suite.tasks))]
    actions = [part.action for part in parts]
    suite = complete_texts(suite, [part.texts for part in parts])
    constant_keys = _constant_keys(parts)
    observations = [_with_texts(suite, part, constant_keys) for part in parts]
    limits = tuple(part.episode_limit for part in parts)
    # Differing numbers of actions are allowed; the mask hides those that a task lacks.
    n_actions = _differing_counts(actions)
    _check_observations(suite, observations, n_actions)
    if n_actions is None:
        for task, action in zip(suite.tasks, actions, strict=True):
            _check_same("action space", suite.tasks[0], actions[0], task, action)
        return JoinedSpaces(suite, observations[0], actions[0], None, limits)
    n_actions_max = int(n_actions.max())
    masked = {**observations[0], ACTION_MASK_KEY: spaces.MultiBinary(n_actions_max)}
    action = spaces.Discrete(n_actions_max)
    return JoinedSpaces(suite, spaces.Dict(masked), action, n_actions, limits)


@dataclass(frozen=True)
class _TaskSpaces:
    """The spaces of one task, and the words and lengths of its texts."""

    observation: spaces.Dict
    action: ActionSpace
    text_keys: tuple[str, ...]
    texts: TextSample
    texts_drawn: bool
    episode_limit: int | None
    constant_texts: dict[str, str]


_checked: dict[Hashable, _TaskSpaces] = {}
"""Spaces of the definitions that passed the check, the oldest first."""


def _task_spaces(
    suite: SuiteConfig, task_index: int, backend: Literal["gymnasium", "envpool"]
) -> _TaskSpaces:
    """Return the spaces of one task, whose definition is checked once per process."""
    definition = definition_key(suite.tasks[task_index])
    if definition is None:
        return _check_task(suite, task_index, backend)
    n_tasks = len(suite.tasks)
    key = (definition, n_tasks, suite.observation, suite.text_form, suite.unknown_codes, backend)
    known = _checked.get(key)
    if known is None or (_draws_texts(suite) and not known.texts_drawn):
        # a definition that fails is not stored, so it is checked again
        known = _check_task(suite, task_index, backend)
        _checked[key] = known
        if len(_checked) > MAX_CHECKED:
            del _checked[next(iter(_checked))]
    # a copy, because a space has a random state, which each owner seeds
    return copy.deepcopy(known)


def _draws_texts(suite: SuiteConfig) -> bool:
    """Return True if a suite leaves the words or the length of its texts to its environments."""
    return suite.vocabulary is None or suite.text_length is None


def _check_task(
    suite: SuiteConfig, task_index: int, backend: Literal["gymnasium", "envpool"]
) -> _TaskSpaces:
    """Return the spaces of one task, from an environment that is checked and closed again."""
    task = suite.tasks[task_index]
    codec = suite_codec(suite)
    env = make_env(
        task,
        task_index,
        len(suite.tasks),
        suite.observation,
        texts=codec,
        unknown_codes=suite.unknown_codes,
    )
    try:
        assert isinstance(env.observation_space, spaces.Dict), "the observation contract is a Dict"
        # an environment that sets no space has no such attribute
        declared = getattr(env, "action_space", None)
        action_space = check_action_space(declared, name_task(task))
        if backend == "gymnasium":
            check_first_timestep(env, task, action_space)
        texts = TextSample()
        drawn = _draws_texts(suite)
        if drawn:
            texts = draw_texts(env.env)
        limit = episode_limit(env)
        return _TaskSpaces(
            env.observation_space,
            action_space,
            env.text_keys,
            texts,
            drawn,
            limit,
            env.constant_texts,
        )
    finally:
        env.close()


def _constant_keys(parts: Sequence[_TaskSpaces]) -> set[str]:
    """Return the keys under which all tasks have the same constant text."""
    first = parts[0].constant_texts
    return {
        key
        for key, text in first.items()
        if all(part.constant_texts.get(key) == text for part in parts)
    }


def _with_texts(suite: SuiteConfig, part: _TaskSpaces, constant_keys: set[str]) -> spaces.Dict:
    """Return the observation space of a task for the vocabulary and length of the suite."""
    codec = suite_codec(suite)
    observation = dict(part.observation)
    for key in part.text_keys:
        observation[key] = codec.space(is_constant=key in constant_keys)
    return spaces.Dict(observation)


def _differing_counts(actions: Sequence[ActionSpace]) -> NDArray[np.int64] | None:
    """Return the number of actions of each task if all are discrete and the numbers differ."""
    counts = [int(space.n) for space in actions if isinstance(space, spaces.Discrete)]
    all_discrete = len(counts) == len(actions)
    if all_discrete and len(set(counts)) > 1:
        return np.array(counts)
    return None


def _check_observations(
    suite: SuiteConfig,
    observations: Sequence[spaces.Dict],
    n_actions: NDArray[np.int64] | None,
) -> None:
    """Raise an error if the observation spaces of two tasks differ."""
    first_task = suite.tasks[0]
    first = observations[0]
    masks_differ = n_actions is not None
    if n_actions is not None and ACTION_MASK_KEY in first:
        for task, space, n in zip(suite.tasks, observations, n_actions.tolist(), strict=True):
            _check_mask(task, space, n)
    for task, space in zip(suite.tasks, observations, strict=True):
        _check_same("observation keys", first_task, list(first), task, list(space))
        for key in space:
            # Masks of different width have been checked above; they are widened to one width.
            if masks_differ and key == ACTION_MASK_KEY:
                continue
            _check_same(f"observation '{key}'", first_task, first[key], task, space[key])


def _check_mask(task: TaskConfig, observation: spaces.Dict, n_actions: int) -> None:
    mask = observation.spaces.get(ACTION_MASK_KEY)
    if mask is not None and mask != spaces.MultiBinary(n_actions):
        raise ConfigError(
            f"task '{task.name}' has {n_actions} actions, so its observation "
            f"'{ACTION_MASK_KEY}' must be MultiBinary({n_actions}), got {mask}"
        )


def _check_same(
    aspect: str, first: TaskConfig, expected: object, other: TaskConfig, got: object
) -> None:
    if expected != got:
        raise ConfigError(
            f"tasks of one suite must share their spaces, but {aspect} of '{first.name}' is "
            f"{describe_space(expected)}, of '{other.name}' {describe_space(got)}; change one of "
            "them with a wrapper, or train them apart"
        )
