"""Episodes that a task or a split leaves out: told by their first observation, and drawn again."""

from collections.abc import Callable
from functools import lru_cache
from typing import get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.keys import DESIRED_GOAL_KEY, MISSION_KEY, TASK_KEY
from mirl.configs.tasks import HoldoutConfig, Subset, SuiteConfig
from mirl.envs.missions import mission_space, token_id, words
from mirl.envs.pools.backend import Observations

MAX_DRAWS = 1000
"""How often an episode is drawn before it is an error that none is on the wanted side."""


def active_tasks(suite: SuiteConfig, split: HoldoutConfig, subset: Subset) -> tuple[int, ...]:
    """The tasks of a subset of a split, as indices into the suite.

    Raises:
        ConfigError: the split names a task that the suite has not, or the subset is unknown or has no tasks.
    """
    if subset not in get_args(Subset):
        raise ConfigError(
            f"unknown subset '{subset}' of a split." + nearest(subset, get_args(Subset))
        )
    names = [task.name for task in suite.tasks]
    for name in split.tasks:
        if name not in names:
            raise ConfigError(
                f"split '{split.name}': suite '{suite.name}' has no task '{name}'."
                + nearest(name, names)
            )
    played = split.task_indices(suite, subset)
    if not played:
        what = "withholds every task" if subset == "trained" else "withholds nothing"
        raise ConfigError(
            f"split '{split.name}' {what} of suite '{suite.name}': its subset '{subset}' is empty"
        )
    return played


class EpisodeFilter:
    """Draws only episodes of one subset of a split, and of a task's mission where it names one.

    Args:
        suite: the tasks.
        split: what is withheld.
        subset: which side of the split is wanted.
        observation_space: of the suite.

    Raises:
        ConfigError: the split asks for missions or goals that the observations have not.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        split: HoldoutConfig,
        subset: Subset,
        observation_space: spaces.Dict,
    ) -> None:
        self._suite = suite
        self._split = split
        self._part: Subset = subset
        self._held_out_tasks = np.array([task.name in split.tasks for task in suite.tasks])
        self._phrases = tuple(
            _phrase_tokens(f"split '{split.name}'", text) for text in split.missions
        )
        self._asked = tuple(
            _phrase_tokens(f"task '{t.name}'", t.mission) if t.mission else () for t in suite.tasks
        )
        self._low, self._high = np.array(split.goal_low), np.array(split.goal_high)
        self.rejects = split.holds_out_episodes or any(self._asked)
        _check_observed(suite, split, observation_space)

    def draw(self, reset: Callable[[NDArray[np.int64]], Observations], n: int) -> Observations:
        """First observations (n, …) of n episodes on the wanted side.

        Args:
            reset: starts new episodes in some rows (k,) of the n; their first observations (k, …).
            n: number of episodes.

        Raises:
            ConfigError: an episode was still unwanted when it had been drawn ``MAX_DRAWS`` times.
        """
        obs = reset(np.arange(n))
        if not self.rejects:
            return obs
        rows = np.flatnonzero(~self.wanted(obs))
        draws = 1
        while rows.size:
            if draws == MAX_DRAWS:
                raise self._raise_never_matched(int(obs[TASK_KEY][rows[0]]))
            fresh = reset(rows)
            draws += 1
            for key, values in fresh.items():
                obs[key][rows] = values
            rows = rows[~self.wanted(fresh)]
        return obs

    def wanted(self, obs: Observations) -> NDArray[np.bool_]:
        """(k,), whether the episodes that start with these observations (k, …) are on the wanted side."""
        withheld: NDArray[np.bool_] = self._held_out_tasks[obs[TASK_KEY]]
        if self._phrases:
            withheld |= [
                _contains(row.tobytes(), row.dtype.str, self._phrases) for row in obs[MISSION_KEY]
            ]
        if self._low.size:
            goals = obs[DESIRED_GOAL_KEY]
            withheld |= ((goals >= self._low) & (goals <= self._high)).all(axis=-1)
        wanted = ~withheld if self._part == "trained" else withheld
        if any(self._asked):
            asked = [self._asked[task] for task in obs[TASK_KEY]]
            rows = zip(obs[MISSION_KEY], asked, strict=True)
            wanted &= [
                not phrase or _contains(row.tobytes(), row.dtype.str, (phrase,))
                for row, phrase in rows
            ]
        return wanted

    def _raise_never_matched(self, task: int) -> ConfigError:
        asked = self._suite.tasks[task]
        marks = [f"a mission with one of {list(self._split.missions)}"] if self._phrases else []
        if self._low.size:
            marks.append(
                f"a goal between {list(self._split.goal_low)} and {list(self._split.goal_high)}"
            )
        side = (
            f" {'without' if self._part == 'trained' else 'with'} {' or '.join(marks)}"
            if marks
            else ""
        )
        of = f" of a mission with '{asked.mission}'" if asked.mission else ""
        return ConfigError(
            f"split '{self._split.name}', subset '{self._part}': no episode{of}{side} came in {MAX_DRAWS} draws of "
            f"task '{asked.name}' ({asked.env_id})"
        )


def _check_observed(suite: SuiteConfig, split: HoldoutConfig, space: spaces.Dict) -> None:
    has_missions = space.spaces.get(MISSION_KEY) == mission_space()
    if split.missions and not has_missions:
        raise ConfigError(
            f"split '{split.name}' withholds missions, and suite '{suite.name}' has none: "
            f"its observations are {sorted(space)}"
        )
    for task in suite.tasks:
        if task.mission and not has_missions:
            raise ConfigError(
                f"task '{task.name}' asks for a mission, and {task.env_id} states none"
            )
    if not split.goal_low:
        return
    goal = space.spaces.get(DESIRED_GOAL_KEY)
    if not isinstance(goal, spaces.Box):
        raise ConfigError(
            f"split '{split.name}' withholds goals, and suite '{suite.name}' has no observation '{DESIRED_GOAL_KEY}' (a Box): "
            f"its observations are {sorted(space)}"
        )
    if goal.shape != (len(split.goal_low),):
        raise ConfigError(
            f"split '{split.name}' withholds goals of shape {(len(split.goal_low),)}, and those of suite "
            f"'{suite.name}' have shape {goal.shape}"
        )


def _phrase_tokens(owner: str, text: str) -> tuple[int, ...]:
    tokens = tuple(token_id(word) for word in words(text))
    if not tokens:
        raise ConfigError(
            f"{owner}: a phrase of missions must have at least one word, got '{text}'"
        )
    return tokens


@lru_cache(maxsize=8192)
def _contains(mission: bytes, dtype: str, phrases: tuple[tuple[int, ...], ...]) -> bool:
    """Whether one of the phrases is a run of consecutive tokens of a mission; few missions are distinct."""
    tokens = tuple(np.frombuffer(mission, dtype).tolist())
    return any(
        tokens[start : start + len(phrase)] == phrase
        for phrase in phrases
        for start in range(len(tokens) - len(phrase) + 1)
    )
