"""Recorded observations and contexts of played episodes, to be combined with each other."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirl.configs.keys import TASK_KEY
from mirl.configs.tasks import SuiteConfig
from mirl.configs.texts import decode_utf8
from mirl.envs.texts.codec import suite_codec
from mirl.envs.type_aliases import EnvIndices, Observations

MAX_NAME = 40
"""Maximum number of characters in the name of a context."""


class RecordedEpisodes:
    """Recorder of observations and distinct contexts; passes the observations on unchanged.

    Args:
        suite: the suite that is played.
        keys: observation keys that the policy reads as the context.
        n_observations: number of observations to keep per task, a random sample of all.
        n_contexts: number of distinct contexts to keep, taken from each task in turn.
        seed: seed of the sample.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        keys: Sequence[str],
        *,
        n_observations: int = 64,
        n_contexts: int = 24,
        seed: int = 0,
    ) -> None:
        self.suite = suite
        self.keys = tuple(keys)
        self.n_observations = n_observations
        self.n_contexts = n_contexts
        self._generator = np.random.default_rng(seed)
        self._kept: dict[int, list[Observations]] = {}
        self._seen: dict[int, int] = {}
        self._contexts: dict[bytes, _Context] = {}

    def update(
        self,
        obs: Observations,
        task_ids: NDArray[np.int64],
        begun: EnvIndices,
        active: EnvIndices,
    ) -> Observations:
        """Record observations, and the contexts of the episodes that begin.

        Args:
            obs: the observations, (n_envs, …).
            task_ids: task of each environment, (n_envs,).
            begun: environments whose episode begins with these observations, (k,).
            active: environments that are still playing, (n,).

        Returns:
            The observations, unchanged.
        """
        for env_index in active.tolist():
            self._sample(int(task_ids[env_index]), obs, env_index)
        for env_index in begun.tolist():
            values = {key: np.copy(obs[key][env_index]) for key in self.keys}
            content = b"".join(value.tobytes() for value in values.values())
            if content not in self._contexts:
                task = int(task_ids[env_index])
                self._contexts[content] = _Context(task, self._name(values, task), values)
        return obs

    def _sample(self, task: int, obs: Observations, env_index: int) -> None:
        """Keep an observation by reservoir sampling, so that all are equally likely to be kept."""
        kept = self._kept.setdefault(task, [])
        seen = self._seen[task] = self._seen.get(task, 0) + 1
        place = len(kept) if len(kept) < self.n_observations else self._generator.integers(seen)
        if place >= self.n_observations:
            return
        row = {key: np.copy(values[env_index]) for key, values in obs.items()}
        kept[place : place + 1] = [row]

    @property
    def tasks(self) -> NDArray[np.int64]:
        """Task of each kept observation, (N,)."""
        counts = [len(self._kept[task]) for task in sorted(self._kept)]
        return np.repeat(sorted(self._kept), counts)

    @property
    def observations(self) -> Observations:
        """The kept observations by key, (N, …)."""
        return _stacked([row for task in sorted(self._kept) for row in self._kept[task]])

    @property
    def contexts(self) -> tuple[list[str], Observations]:
        """Names of the kept contexts, in alphabetical order, and the contexts by key, (M, …)."""
        by_task: dict[int, list[_Context]] = {}
        for context in self._contexts.values():
            by_task.setdefault(context.task, []).append(context)
        # the first of every task, then the second of every task
        ranked = [
            (place, context)
            for of_task in by_task.values()
            for place, context in enumerate(of_task)
        ]
        ranked.sort(key=lambda entry: (entry[0], entry[1].task))
        kept = [context for _, context in ranked[: self.n_contexts]]
        kept.sort(key=lambda context: context.name)
        return [context.name for context in kept], _stacked([each.values for each in kept])

    def _name(self, context: Observations, task: int) -> str:
        """Return a name for a text, a task or a goal."""
        parts = []
        for key, value in context.items():
            if key == TASK_KEY:
                parts.append(self.suite.tasks[task].name)
            elif np.issubdtype(value.dtype, np.integer) and value.ndim == 1:
                parts.append(self._text(value))
            else:
                numbers = " ".join(f"{number:.2g}" for number in np.ravel(value))
                parts.append(f"({numbers})")
        return ", ".join(parts)[:MAX_NAME]

    def _text(self, codes: NDArray[Any]) -> str:
        if self.suite.text_form == "utf8":
            return decode_utf8(codes.tolist())
        words = {number: word for word, number in suite_codec(self.suite).word_ids.items()}
        return " ".join(words.get(code, "?") for code in codes.tolist() if code)


class _Context(NamedTuple):
    """A context with its task and its name."""

    task: int
    name: str
    values: Observations


def _stacked(rows: Sequence[Observations]) -> Observations:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
