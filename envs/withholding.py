"""Episodes that a split withholds: told by their first observation, and drawn again where they are not wanted."""

from collections.abc import Callable
from functools import lru_cache
from typing import get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mirl.configs.errors import ConfigError, nearest
from mirl.configs.tasks import Part, SplitConfig, SuiteConfig
from mirl.envs.missions import mission_space, token_id, words
from mirl.envs.pool import Observations
from mirl.envs.spaces import TASK_KEY

MAX_REDRAWS = 1000
"""How often an episode is drawn again before it is an error that none is on the wanted side."""

MISSION_KEY = "mission"
GOAL_KEY = "desired_goal"


def played_tasks(suite: SuiteConfig, split: SplitConfig, part: Part) -> tuple[int, ...]:
    """The tasks of a part of a split, as indices into the suite.

    Raises:
        ConfigError: the split names a task that the suite has not, or the part is unknown or has no tasks.
    """
    if part not in get_args(Part):
        raise ConfigError(f"unknown part '{part}' of a split." + nearest(part, get_args(Part)))
    names = [task.name for task in suite.tasks]
    for name in split.tasks:
        if name not in names:
            raise ConfigError(
                f"split '{split.name}': suite '{suite.name}' has no task '{name}'." + nearest(name, names)
            )
    played = split.tasks_of(suite, part)
    if not played:
        what = "withholds every task" if part == "trained" else "withholds nothing"
        raise ConfigError(f"split '{split.name}' {what} of suite '{suite.name}': its part '{part}' is empty")
    return played


class Withholding:
    """Draws only episodes of one part of a split.

    Args:
        suite: the tasks.
        split: what is withheld.
        part: which side of the split is wanted.
        observation_space: of the suite.

    Raises:
        ConfigError: the split asks for missions or goals that the observations have not.
    """

    def __init__(self, suite: SuiteConfig, split: SplitConfig, part: Part, observation_space: spaces.Dict) -> None:
        self._suite = suite
        self._split = split
        self._part: Part = part
        self._withheld_tasks = np.array([task.name in split.tasks for task in suite.tasks])
        self._phrases = tuple(_phrase_tokens(split, text) for text in split.missions)
        self._low, self._high = np.array(split.goal_low), np.array(split.goal_high)
        _check_observed(suite, split, observation_space)

    def draw(self, reset: Callable[[NDArray[np.int64]], Observations], n: int) -> Observations:
        """First observations (n, …) of n episodes on the wanted side.

        Args:
            reset: starts new episodes in some rows (k,) of the n; their first observations (k, …).
            n: number of episodes.

        Raises:
            ConfigError: after ``MAX_REDRAWS`` rounds there are still unwanted ones.
        """
        obs = reset(np.arange(n))
        if not self._split.withholds_episodes:
            return obs
        rows = np.flatnonzero(~self.wanted(obs))
        for _ in range(MAX_REDRAWS):
            if not rows.size:
                return obs
            fresh = reset(rows)
            for key, values in fresh.items():
                obs[key][rows] = values
            rows = rows[~self.wanted(fresh)]
        if rows.size:
            raise self._never_came(int(obs[TASK_KEY][rows[0]]))
        return obs

    def wanted(self, obs: Observations) -> NDArray[np.bool_]:
        """(k,), whether the episodes that start with these observations (k, …) are on the wanted side."""
        withheld: NDArray[np.bool_] = self._withheld_tasks[obs[TASK_KEY]]
        if self._phrases:
            withheld |= [_contains(row.tobytes(), row.dtype.str, self._phrases) for row in obs[MISSION_KEY]]
        if self._low.size:
            goals = obs[GOAL_KEY]
            withheld |= ((goals >= self._low) & (goals <= self._high)).all(axis=-1)
        return ~withheld if self._part == "trained" else withheld

    def _never_came(self, task: int) -> ConfigError:
        marks = [f"a mission with one of {list(self._split.missions)}"] if self._phrases else []
        if self._low.size:
            marks.append(f"a goal between {list(self._split.goal_low)} and {list(self._split.goal_high)}")
        wanted = f"{'without' if self._part == 'trained' else 'with'} {' or '.join(marks)}"
        asked = self._suite.tasks[task]
        return ConfigError(
            f"split '{self._split.name}', part '{self._part}': no episode {wanted} came in {MAX_REDRAWS} draws of task "
            f"'{asked.name}' ({asked.env_id})"
        )


def _check_observed(suite: SuiteConfig, split: SplitConfig, space: spaces.Dict) -> None:
    if split.missions and space.spaces.get(MISSION_KEY) != mission_space():
        raise ConfigError(
            f"split '{split.name}' withholds missions, and suite '{suite.name}' has none: "
            f"its observations are {sorted(space)}"
        )
    if not split.goal_low:
        return
    goal = space.spaces.get(GOAL_KEY)
    if not isinstance(goal, spaces.Box):
        raise ConfigError(
            f"split '{split.name}' withholds goals, and suite '{suite.name}' has no observation '{GOAL_KEY}' (a Box): "
            f"its observations are {sorted(space)}"
        )
    if goal.shape != (len(split.goal_low),):
        raise ConfigError(
            f"split '{split.name}' withholds goals of shape {(len(split.goal_low),)}, and those of suite "
            f"'{suite.name}' have shape {goal.shape}"
        )


def _phrase_tokens(split: SplitConfig, text: str) -> tuple[int, ...]:
    tokens = tuple(token_id(word) for word in words(text))
    if not tokens:
        raise ConfigError(f"split '{split.name}': a withheld phrase must have at least one word, got '{text}'")
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
