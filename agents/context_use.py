"""Context use: an agent's success minus its success with contexts swapped between episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from mirl.agents.statistics import (
    TaskResult,
    TaskSummary,
    mean_difference_interval,
    rate_difference_interval,
)
from mirl.envs.type_aliases import EnvIndices, Observations

LARGEST_SHARE = 0.5
"""Share of the own result below which the interval of own − swapped must end for a warning."""
LEARNED_SCORE = 0.1
"""Lowest own score for which the warning is given; random actions score 0."""

# ------------------------------------------------------------------------------ swapping contexts


@dataclass(frozen=True, eq=False)
class StartContext:
    """Context at the start of one episode.

    Args:
        task: index of the task.
        values: value of each context key.
    """

    task: int
    values: Observations

    def differs(self, other: "StartContext") -> bool:
        """Return True if any key has a different value.

        Args:
            other: the context to compare with.
        """
        return any(
            not np.array_equal(value, other.values[key]) for key, value in self.values.items()
        )


class EpisodeContexts(Protocol):
    """Contexts of the episodes of an evaluation."""

    def update(
        self,
        obs: Observations,
        task_ids: NDArray[np.int64],
        begun: EnvIndices,
        active: EnvIndices,
    ) -> Observations:
        """Return the observations for the policy.

        Args:
            obs: the observations, (n_envs, …).
            task_ids: task of each environment, (n_envs,).
            begun: environments whose episode begins with these observations, (k,).
            active: environments that are still playing, (n,).
        """


class EpisodeRecorders:
    """Several recorders of the same episodes; the observations are unchanged.

    Args:
        recorders: the recorders.
    """

    def __init__(self, recorders: Sequence[EpisodeContexts]) -> None:
        self.recorders = tuple(recorders)

    def update(
        self,
        obs: Observations,
        task_ids: NDArray[np.int64],
        begun: EnvIndices,
        active: EnvIndices,
    ) -> Observations:
        """Show the observations to every recorder; return them as they are.

        Args:
            obs: the observations, (n_envs, …).
            task_ids: task of each environment, (n_envs,).
            begun: environments whose episode begins with these observations, (k,).
            active: environments that are still playing, (n,).
        """
        for recorder in self.recorders:
            recorder.update(obs, task_ids, begun, active)
        return obs


class RecordedContexts:
    """Contexts at the starts of episodes, for ``SwappedContexts``; the observations are unchanged.

    Args:
        keys: observation keys that the policy reads as the context.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self.starts: list[StartContext] = []
        """Context of each episode so far."""

    @property
    def differ(self) -> bool:
        """True if two episodes have different contexts."""
        return any(self.starts[0].differs(start) for start in self.starts[1:])

    def update(
        self,
        obs: Observations,
        task_ids: NDArray[np.int64],
        begun: EnvIndices,
        active: EnvIndices,
    ) -> Observations:
        """Record the contexts of the episodes that begin; return the observations as they are.

        Args:
            obs: the observations, (n_envs, …).
            task_ids: task of each environment, (n_envs,).
            begun: environments whose episode begins with these observations, (k,).
            active: environments that are still playing, (n,).
        """
        for env_index in begun.tolist():
            self.starts.append(start_context(self.keys, obs, task_ids, env_index))
        return obs


class SwappedContexts:
    """Contexts of other episodes, each used for the whole length of an episode.

    An episode gets a context that differs from its own, from an episode of the same task if there
    is one. Contexts are taken in turn, so that none is used much more often than it was recorded.

    Args:
        recorded: contexts of the evaluation, of which at least two differ.
        generator: random generator that shuffles the order.
    """

    def __init__(self, recorded: RecordedContexts, generator: np.random.Generator) -> None:
        self._keys = recorded.keys
        order = generator.permutation(len(recorded.starts))
        self._queue = [recorded.starts[position] for position in order]
        self._swapped: Observations = {}
        """Context that the policy reads in each environment, (n_envs, …) by key."""

    def update(
        self,
        obs: Observations,
        task_ids: NDArray[np.int64],
        begun: EnvIndices,
        active: EnvIndices,
    ) -> Observations:
        """Choose contexts for the episodes that begin; return the observations with them.

        Args:
            obs: the observations, (n_envs, …).
            task_ids: task of each environment, (n_envs,).
            begun: environments whose episode begins with these observations, (k,).
            active: environments that are still playing, (n,).
        """
        for key in self._keys:
            self._swapped.setdefault(key, np.copy(obs[key]))
        for env_index in begun.tolist():
            partner = self._take_partner(start_context(self._keys, obs, task_ids, env_index))
            for key in self._keys:
                self._swapped[key][env_index] = partner.values[key]
        return {**obs, **self._swapped}

    def _take_partner(self, own: StartContext) -> StartContext:
        """Return the next context that differs, and move it to the end of the queue."""
        partner = next((start for start in self._queue if _is_same_task_pair(own, start)), None)
        if partner is None:
            partner = next(start for start in self._queue if own.differs(start))
        self._queue.remove(partner)
        self._queue.append(partner)
        return partner


def _is_same_task_pair(own: StartContext, other: StartContext) -> bool:
    """Return True for different contexts of the same task."""
    return own.task == other.task and own.differs(other)


def start_context(
    keys: Sequence[str], obs: Observations, task_ids: NDArray[np.int64], env_index: int
) -> StartContext:
    """Return the context of an episode that begins.

    Args:
        keys: observation keys that the policy reads as the context.
        obs: the first observations, (n_envs, …).
        task_ids: task of each environment, (n_envs,).
        env_index: environment of the episode.
    """
    # copies, because environments may write the next observation into the same arrays
    values = {key: np.copy(obs[key][env_index]) for key in keys}
    return StartContext(int(task_ids[env_index]), values)


# ------------------------------------------------------------------------------------- the result


class ContextUseSummary(TypedDict):
    """Context use as ``eval/*.json`` holds it."""

    criterion: Literal["success", "return"]
    value: float
    interval: list[float] | None
    ignores_context: bool
    swapped: list[TaskSummary]


@dataclass(frozen=True)
class ContextUse:
    """Results with own and with swapped contexts.

    Args:
        keys: observation keys that were swapped.
        own: result of each task with its own contexts; all have the same number of episodes.
        swapped: result of each task with swapped contexts; again with equal numbers of episodes.
        has_scores: whether the score bounds of all tasks are known.
    """

    keys: tuple[str, ...]
    own: Sequence[TaskResult]
    swapped: Sequence[TaskResult]
    has_scores: bool

    @property
    def knows_success(self) -> bool:
        """True if a task reports success; the tasks that do not are left out of the rates."""
        known = [result.task for result in self.own if result.success is not None]
        known_swapped = [result.task for result in self.swapped if result.success is not None]
        return bool(known) and known == known_swapped

    @property
    def swapped_success(self) -> float | None:
        """Mean success rate over the tasks with swapped contexts; None if it is unknown."""
        if not self.knows_success:
            return None
        return float(_successes(self.swapped).mean())

    @property
    def swapped_return(self) -> float:
        """Mean return over the tasks with swapped contexts."""
        return float(_returns(self.swapped).mean())

    @property
    def value(self) -> float:
        """Own − swapped success rate, or mean return if success is unknown."""
        if self.knows_success:
            return float(_successes(self.own).mean() - _successes(self.swapped).mean())
        return float(_returns(self.own).mean() - _returns(self.swapped).mean())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of ``value``; None if returns are compared and there is only one."""
        if self.knows_success:
            return rate_difference_interval(_successes(self.own), _successes(self.swapped))
        return mean_difference_interval(_returns(self.own), _returns(self.swapped))

    @property
    def ignores_context(self) -> bool:
        """True if the agent has learned something, but its context makes no difference.

        The interval of own − swapped includes 0 and ends below half of the own result. The result
        is the success rate or, if that is unknown, the score. If the score is unknown too, there is
        no scale on which a return is small, and this is False.
        """
        if self.has_scores and _scores(self.own).mean() < LEARNED_SCORE:
            return False
        if self.knows_success:
            own = _successes(self.own).mean()
            interval = self.interval
        elif self.has_scores:
            own = _scores(self.own).mean()
            interval = mean_difference_interval(_scores(self.own), _scores(self.swapped))
        else:
            return False
        if interval is None:
            return False
        low, high = interval
        return bool(low <= 0 and high < LARGEST_SHARE * own)

    def lines(self) -> list[str]:
        """Return a line with both results, and a warning if the agent ignores its context.

        Returns:
            One or two lines, for the terminal.
        """
        context = " and ".join(self.keys)
        name = "return"
        own = _returns(self.own)
        swapped = _returns(self.swapped)
        style = ".3f"
        if self.knows_success:
            name = "success"
            own = _successes(self.own)
            swapped = _successes(self.swapped)
            style = ".1%"
        interval = ""
        if self.interval is not None:
            low, high = self.interval
            interval = f", 95 % interval {low:{style}} – {high:{style}}"
        lines = [
            f"Context use: {self.value:{style}} ({name} {own.mean():{style}} with its own "
            f"{context}, {swapped.mean():{style}} with that of other episodes{interval})"
        ]
        if self.ignores_context:
            lines.append(
                f"Warning: the agent ignores its {context}, or its {name} does not depend on it; "
                "check that the reward depends on it and that the agent has trained long enough"
            )
        return lines

    def summary(self) -> ContextUseSummary:
        """Return the numbers for ``eval/*.json``.

        Returns:
            The numbers by name.
        """
        return {
            "criterion": "success" if self.knows_success else "return",
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "ignores_context": self.ignores_context,
            "swapped": [result.summary() for result in self.swapped],
        }


def _successes(results: Sequence[TaskResult]) -> Bool[np.ndarray, " episodes"]:
    """Return the success of all episodes of the tasks that report it."""
    return np.concatenate([result.success for result in results if result.success is not None])


def _returns(results: Sequence[TaskResult]) -> Float[np.ndarray, " episodes"]:
    return np.concatenate([result.returns for result in results])


def _scores(results: Sequence[TaskResult]) -> Float[np.ndarray, " episodes"]:
    return np.concatenate([result.scores for result in results])
