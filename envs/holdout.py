"""Rejection of episodes that are held out, or whose mission differs from their task's.

An episode is recognized by its first observation, and drawn again if it is rejected.
"""

from collections.abc import Callable
from typing import NoReturn, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import DESIRED_GOAL_KEY, MISSION_KEY, TASK_KEY
from mirl.configs.tasks import HoldoutConfig, Subset, SuiteConfig
from mirl.envs.texts.codec import Phrase, TextCodec, suite_codec
from mirl.envs.type_aliases import Array, Observations

MAX_DRAWS = 1000
"""Maximum number of resets before raising that no episode matches."""


def active_tasks(suite: SuiteConfig, holdout: HoldoutConfig, subset: Subset) -> tuple[int, ...]:
    """Return the tasks in a subset of the holdout.

    Args:
        suite: the tasks.
        holdout: the held-out tasks and episodes.
        subset: ``trained`` or ``held_out``.

    Returns:
        Indices into the suite.

    Raises:
        ConfigError: if the holdout names an unknown task, or the subset is unknown or empty.
    """
    if subset not in get_args(Subset):
        raise ConfigError(
            f"unknown subset '{subset}' of a split." + nearest(subset, get_args(Subset))
        )
    for name in holdout.tasks:
        suite.task_index(name, where=f"split '{holdout.name}': ")
    tasks = holdout.task_indices(suite, subset)
    if not tasks:
        problem = "holds out nothing"
        if subset == "trained":
            problem = "holds out every task"
        raise ConfigError(
            f"split '{holdout.name}' {problem} of suite '{suite.name}', so its subset "
            f"'{subset}' is empty; choose another split"
        )
    return tasks


class EpisodeFilter:
    """Filter that draws only episodes of one subset, with the mission of their task.

    Args:
        suite: the tasks.
        holdout: the held-out tasks and episodes.
        subset: the wanted subset.
        observation_space: observation space of the suite.

    Raises:
        ConfigError: if the observations lack the missions or goals that the filter needs.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        holdout: HoldoutConfig,
        subset: Subset,
        observation_space: spaces.Dict,
    ) -> None:
        self._suite = suite
        self._holdout = holdout
        self._subset: Subset = subset
        self._is_held_out_task = np.array([task.name in holdout.tasks for task in suite.tasks])
        self._codec = suite_codec(suite)
        self._text_keys = _text_keys(observation_space, self._codec)
        self._held_out_phrases = tuple(
            _parse_phrase(self._codec, f"split '{holdout.name}'", text) for text in holdout.missions
        )
        self._task_phrases: list[Phrase] = []
        for task in suite.tasks:
            phrase: Phrase = ()  # an empty phrase accepts every mission
            if task.mission:
                phrase = _parse_phrase(self._codec, f"task '{task.name}'", task.mission)
            self._task_phrases.append(phrase)
        self._goal_low = np.array(holdout.goal_low)
        self._goal_high = np.array(holdout.goal_high)
        self._tasks_have_missions = any(self._task_phrases)
        self.rejects = holdout.holds_out_episodes or self._tasks_have_missions
        """True if some episodes are rejected at their start and drawn again."""
        _check_observation_space(suite, holdout, observation_space, self._text_keys)

    def draw(self, reset: Callable[[NDArray[np.int64]], Observations], n: int) -> Observations:
        """Reset environments until every episode is accepted.

        Args:
            reset: function that starts new episodes in rows (k,) of the n and returns their first
                observations (k, …).
            n: number of episodes.

        Returns:
            The first observations, (n, …).

        Raises:
            ConfigError: if an episode is still rejected after ``MAX_DRAWS`` resets.
        """
        # All n start together, so that their backends work at the same time.
        obs = reset(np.arange(n))
        if not self.rejects:
            return obs
        # The indices of rejected rows shrink from draw to draw.
        rejected = np.flatnonzero(~self.accepts(obs))
        n_draws = 1
        while rejected.size:
            if n_draws == MAX_DRAWS:
                self._raise_never_matched(int(obs[TASK_KEY][rejected[0]]))
            fresh = reset(rejected)
            n_draws += 1
            for key, values in fresh.items():
                obs[key][rejected] = values
            rejected = rejected[~self.accepts(fresh)]
        return obs

    def accepts(self, obs: Observations) -> NDArray[np.bool_]:
        """Return True for each episode of the wanted subset that has the mission of its task.

        Args:
            obs: the first observations of episodes, (k, …).

        Returns:
            Booleans, (k,).
        """
        is_held_out = self._is_held_out(obs)
        accepted = is_held_out
        if self._subset == "trained":
            accepted = ~is_held_out
        if self._tasks_have_missions:
            accepted &= self._has_mission_of_task(obs)
        return accepted

    def _is_held_out(self, obs: Observations) -> NDArray[np.bool_]:
        """Return True for each episode that is held out, (k,)."""
        # (n_tasks,) -> (k,), a copy
        is_held_out: NDArray[np.bool_] = self._is_held_out_task[obs[TASK_KEY]]
        if self._held_out_phrases:
            for key in self._text_keys:
                is_held_out |= [self._contains(text, self._held_out_phrases) for text in obs[key]]
        if self._goal_low.size:
            goals = obs[DESIRED_GOAL_KEY]  # (k, goal size)
            # (k, goal size) -> (k,); the held-out box includes its bounds.
            is_inside = (goals >= self._goal_low) & (goals <= self._goal_high)
            is_held_out |= is_inside.all(axis=-1)
        return is_held_out

    def _has_mission_of_task(self, obs: Observations) -> list[bool]:
        """Return True for each episode whose mission contains the phrase of its task."""
        matches = []
        for row, task_index in enumerate(obs[TASK_KEY]):
            phrase = self._task_phrases[task_index]
            texts = [obs[key][row] for key in self._text_keys]
            matches.append(not phrase or any(self._contains(text, (phrase,)) for text in texts))
        return matches

    def _contains(self, text: Array, phrases: tuple[Phrase, ...]) -> bool:
        """Return True if a text (text_length,) contains one of the phrases."""
        return self._codec.contains_any(text, phrases)

    def _raise_never_matched(self, task_index: int) -> NoReturn:
        """Raise an error for a task of which ``MAX_DRAWS`` episodes were rejected."""
        task = self._suite.tasks[task_index]
        mission = ""
        if task.mission:
            mission = f" of a mission with '{task.mission}'"
        criteria = []
        if self._held_out_phrases:
            criteria.append(f"a mission with one of {list(self._holdout.missions)}")
        if self._goal_low.size:
            low = list(self._holdout.goal_low)
            high = list(self._holdout.goal_high)
            criteria.append(f"a goal between {low} and {high}")
        side = ""
        if criteria:
            preposition = "without" if self._subset == "trained" else "with"
            side = f" {preposition} {' or '.join(criteria)}"
        raise ConfigError(
            f"split '{self._holdout.name}', subset '{self._subset}': no episode{mission}{side} "
            f"came in {MAX_DRAWS} draws of task '{task.name}' ({task.env_id}); check the spelling "
            "of missions and the range of goals"
        )


def _text_keys(space: spaces.Dict, codec: TextCodec) -> tuple[str, ...]:
    """Return the keys whose texts are searched for phrases: the mission, else all text keys."""
    text_space = codec.space()
    keys = tuple(key for key, subspace in space.items() if subspace == text_space)
    if MISSION_KEY in keys:
        return (MISSION_KEY,)
    return keys


def _check_observation_space(
    suite: SuiteConfig, holdout: HoldoutConfig, space: spaces.Dict, text_keys: tuple[str, ...]
) -> None:
    """Raise an error if the observations lack the missions or goals that are needed."""
    keys = sorted(space)
    has_missions = bool(text_keys)
    if holdout.missions and not has_missions:
        raise ConfigError(
            f"split '{holdout.name}' holds out missions, but suite '{suite.name}' has none: its "
            f"observations are {keys}; choose another split"
        )
    for task in suite.tasks:
        if task.mission and not has_missions:
            raise ConfigError(
                f"task '{task.name}' has mission='{task.mission}', but {task.env_id} has no "
                f"missions: its observations are {keys}; remove the option"
            )
    if not holdout.goal_low:
        return
    goal = space.spaces.get(DESIRED_GOAL_KEY)
    if not isinstance(goal, spaces.Box):
        raise ConfigError(
            f"split '{holdout.name}' holds out goals, but suite '{suite.name}' has no observation "
            f"'{DESIRED_GOAL_KEY}' (a Box): its observations are {keys}; choose another split"
        )
    if goal.shape != (len(holdout.goal_low),):
        raise ConfigError(
            f"split '{holdout.name}' holds out goals of shape {(len(holdout.goal_low),)}, but "
            f"those of suite '{suite.name}' have shape {goal.shape}; change goal_low and goal_high"
        )


def _parse_phrase(codec: TextCodec, owner: str, text: str) -> Phrase:
    """Return the words of a phrase; raise an error if it has none."""
    phrase = codec.phrase(text)
    if not phrase:
        raise ConfigError(
            f"{owner}: a phrase of missions must have at least one word, got '{text}'"
        )
    return phrase
