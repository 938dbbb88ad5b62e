"""Context use: an agent's own results less those with contexts swapped between episodes."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mirl.agents.statistics import Episode, wilson_interval
from mirl.configs.tasks import TaskConfig, has_score_bounds, score_bounds
from mirl.envs import SuiteVecEnv
from mirl.envs.type_aliases import Info, Observations

SMALLEST_USE = 0.05
"""The warning comes if the upper end of the interval of own - swapped is below this."""
WORTH = 0.1
"""Lowest own result (lower end of the success rate's interval, or the score) that is warned of."""
NORMAL_QUANTILE = 1.96
"""Half the width of a 95 % interval, in standard errors."""


class StartContext:
    """Context at the start of one episode.

    Args:
        task: index of the task.
        values: value of each context key.
    """

    def __init__(self, task: int, values: Observations) -> None:
        self.task = task
        self.values = values

    def differs(self, other: "StartContext") -> bool:
        """Return True if a key has another value.

        Args:
            other: the context that this one is compared with.
        """
        return any(
            not np.array_equal(value, other.values[key]) for key, value in self.values.items()
        )


EpisodeKey = tuple[int, int]
"""An environment, and the number of its episode."""


class SwappedContexts:
    """Environments as an evaluation steps them, with other contexts at the policy's inputs.

    An episode keeps its swapped context for its whole length. Without ``swaps``, the observations
    are those of the environments. The contexts at the starts are recorded in both cases.

    Args:
        env: the environments.
        keys: observation keys that the policy reads as the context.
        swaps: context of each swapped episode.
    """

    def __init__(
        self,
        env: SuiteVecEnv,
        keys: Sequence[str],
        swaps: dict[EpisodeKey, StartContext] | None = None,
    ) -> None:
        self.num_envs = env.num_envs
        self.action_space = env.action_space
        self.starts: dict[EpisodeKey, StartContext] = {}
        """Own context of each episode at its start."""
        self._env = env
        self._keys = keys
        self._swaps = swaps or {}
        self._episode = np.zeros(env.num_envs, dtype=np.int64)
        self._deactivated = np.zeros(env.num_envs, dtype=np.bool_)

    def reset(self) -> Observations:
        """Start the first episodes.

        Returns:
            The first observations, (n_envs, …).
        """
        self._episode[:] = 0
        self._deactivated[:] = False
        obs = self._env.reset()
        self._record(np.arange(self.num_envs), obs)
        return self._swap(obs)

    def deactivate(self, env_indices: NDArray[np.int64]) -> None:
        """Let environments start no further episode.

        Args:
            env_indices: the environments, (k,).
        """
        self._deactivated[env_indices] = True
        self._env.deactivate(env_indices)

    def step_async(self, actions: NDArray[np.generic]) -> None:
        """Start a timestep.

        Args:
            actions: one action per environment, (n_envs, …).
        """
        self._env.step_async(actions)

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[Info]]:
        """Finish the timestep.

        Returns:
            Observations, rewards, dones and infos, as the environments give them.
        """
        obs, rewards, dones, infos = self._env.step_wait()
        started = np.flatnonzero(dones & ~self._deactivated)
        self._episode[started] += 1
        self._record(started, obs)
        return self._swap(obs), rewards, dones, infos

    def _record(self, env_indices: NDArray[np.integer], obs: Observations) -> None:
        for env_index in env_indices.tolist():
            # copies, because environments may write the next observation into the same arrays
            values = {key: np.copy(obs[key][env_index]) for key in self._keys}
            task = int(self._env.task_index[env_index])
            episode = (env_index, int(self._episode[env_index]))
            self.starts[episode] = StartContext(task, values)

    def _swap(self, obs: Observations) -> Observations:
        if not self._swaps:
            return obs
        swapped = dict(obs)
        for key in self._keys:
            swapped[key] = np.copy(obs[key])
        for env_index, episode in enumerate(self._episode.tolist()):
            partner = self._swaps.get((env_index, episode))
            if partner is not None:
                for key in self._keys:
                    swapped[key][env_index] = partner.values[key]
        return swapped


def choose_swaps(
    starts: dict[EpisodeKey, StartContext], generator: np.random.Generator
) -> dict[EpisodeKey, StartContext]:
    """Give each episode the context of another one, which differs from its own.

    Partners have the same task where its contexts vary, otherwise any task. The episodes are put
    in a random order, and the partner is the next one that differs.

    Args:
        starts: own context of each episode.
        generator: source of the order.

    Returns:
        The swapped contexts; episodes for which none differs are left out.
    """
    everyone = list(starts)
    generator.shuffle(everyone)
    swaps = {}
    for episode, own in starts.items():
        position = everyone.index(episode)
        others = everyone[position + 1 :] + everyone[:position]
        different = [starts[other] for other in others if own.differs(starts[other])]
        same_task = [other for other in different if other.task == own.task]
        candidates = same_task or different
        if candidates:
            swaps[episode] = candidates[0]
    return swaps


@contextmanager
def restored_global_generators() -> Iterator[None]:
    """Restore the global generators of Python and numpy on exit.

    Environments may draw from them, and a measurement must not change what training draws.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


# ------------------------------------------------------------------------------------- the result


class ContextUseSummary(TypedDict):
    """Context use as ``eval/*.json`` holds it; None where success is unknown."""

    criterion: str
    context_use: float
    interval: list[float]
    episodes: int
    own_success: float | None
    swapped_success: float | None
    own_return: float
    swapped_return: float
    ignores_context: bool


@dataclass(frozen=True)
class ContextUse:
    """Paired episodes with their own and with swapped contexts.

    Args:
        keys: observation keys that were swapped.
        own: the episodes with their own contexts.
        swapped: the same episodes with swapped contexts.
        tasks: task of each episode.
    """

    keys: tuple[str, ...]
    own: Sequence[Episode]
    swapped: Sequence[Episode]
    tasks: Sequence[TaskConfig]

    @property
    def knows_success(self) -> bool:
        """True if every episode reports success or failure."""
        return all(episode.success is not None for episode in [*self.own, *self.swapped])

    @property
    def value(self) -> float:
        """Own less swapped success rate, or return where success is unknown."""
        if self.knows_success:
            return float(_successes(self.own).mean() - _successes(self.swapped).mean())
        return float(_returns(self.own).mean() - _returns(self.swapped).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of ``value``, from the paired differences.

        References:
            Agresti and Min, "Simple Improved Confidence Intervals for Comparing Matched
            Proportions", Statistics in Medicine 2005, for success.
        """
        if not self.knows_success:
            return _mean_interval(_returns(self.own) - _returns(self.swapped))
        differences = _successes(self.own) - _successes(self.swapped)
        # half an episode is added to each of the four cells, so that n pairs without any
        # difference have an interval that is wider the smaller n is
        n = len(differences) + 2
        center = differences.sum() / n
        discordant = np.abs(differences).sum() + 1
        error = np.sqrt(discordant - n * center**2) / n
        return float(center - NORMAL_QUANTILE * error), float(center + NORMAL_QUANTILE * error)

    @property
    def ignores_context(self) -> bool:
        """True if the own result is worth something and swapping does not lower it.

        Without success, the difference is that of the scores, and nothing is said where no score
        bounds are known: neither a small return nor a small difference could be told.
        """
        if self.knows_success:
            successes = int(_successes(self.own).sum())
            worth = wilson_interval(successes, len(self.own))[0]
            return worth >= WORTH and self.interval[1] < SMALLEST_USE
        if not all(has_score_bounds(task) for task in self.tasks):
            return False
        bounds = np.array([score_bounds(task) for task in self.tasks])
        ranges = bounds[:, 1] - bounds[:, 0]
        scores = (_returns(self.own) - bounds[:, 0]) / ranges
        differences = (_returns(self.own) - _returns(self.swapped)) / ranges
        upper = _mean_interval(differences)[1]
        return bool(scores.mean() >= WORTH and upper < SMALLEST_USE)

    def line(self) -> str:
        """Return one line with the own and the swapped result.

        Returns:
            The line, for the terminal.
        """
        own = _returns(self.own).mean()
        text = f"return {own:.3f}, swapped {self.swapped_return:.3f}"
        if self.swapped_success is not None:
            own = _successes(self.own).mean()
            text = f"success {own:.1%}, swapped {self.swapped_success:.1%}; {text}"
        low, high = self.interval
        return (
            f"Context use {self.value:.3f} (95 % interval {low:.3f} – {high:.3f}, "
            f"{len(self.own)} episodes): {text}"
        )

    def warning(self) -> str | None:
        """Return a line if the agent ignores its context, otherwise None.

        Returns:
            The line.
        """
        if not self.ignores_context:
            return None
        name = "success" if self.knows_success else "return"
        return (
            f"Warning: the agent ignores its {' and '.join(self.keys)}, or its {name} does not "
            f"depend on it: own − swapped is {self.value:.3f}"
        )

    def summary(self) -> ContextUseSummary:
        """Return the numbers for ``eval/*.json``.

        Returns:
            The numbers by name.
        """
        return {
            "criterion": "success" if self.knows_success else "return",
            "context_use": self.value,
            "interval": list(self.interval),
            "episodes": len(self.own),
            "own_success": float(_successes(self.own).mean()) if self.knows_success else None,
            "swapped_success": self.swapped_success,
            "own_return": float(_returns(self.own).mean()),
            "swapped_return": self.swapped_return,
            "ignores_context": self.ignores_context,
        }

    @property
    def swapped_success(self) -> float | None:
        """Success rate with swapped contexts; None if it is unknown."""
        if not self.knows_success:
            return None
        return float(_successes(self.swapped).mean())

    @property
    def swapped_return(self) -> float:
        """Mean return with swapped contexts."""
        return float(_returns(self.swapped).mean())


Play = Callable[[SwappedContexts], list[list[Episode]]]
"""Plays the episodes of each environment, always with the same seeds and quotas."""


def measure_context_use(
    play: Play, env: SuiteVecEnv, keys: Sequence[str], seed: int
) -> ContextUse | None:
    """Play episodes with their own contexts, then the same ones with swapped contexts.

    Both have the same seeds, so that an agent which ignores its context acts the same in both.

    Args:
        play: plays the episodes.
        env: the environments.
        keys: observation keys that the policy reads as the context.
        seed: seed of the choice of partners.

    Returns:
        The paired episodes; None if no two episodes have different contexts.
    """
    with restored_global_generators():
        recorded = SwappedContexts(env, keys)
        own_episodes = play(recorded)
        # environments beyond the quotas are reset as well, and play no counted episode
        played = {
            (env_index, k): recorded.starts[env_index, k]
            for env_index, episodes in enumerate(own_episodes)
            for k in range(len(episodes))
        }
        swaps = choose_swaps(played, np.random.default_rng(seed))
        if not swaps:
            return None
        exchanged = SwappedContexts(env, keys, swaps)
        swapped_episodes = play(exchanged)
    own = []
    swapped = []
    tasks = []
    for (env_index, k), partner in swaps.items():
        # an environment that ignores its seed may start with the partner's context itself
        if partner.differs(exchanged.starts[env_index, k]):
            own.append(own_episodes[env_index][k])
            swapped.append(swapped_episodes[env_index][k])
            tasks.append(env.suite.tasks[played[env_index, k].task])
    if not own:
        return None
    return ContextUse(tuple(keys), own, swapped, tasks)


def no_pair_line(keys: Sequence[str]) -> str:
    """Return a line that says why there is no context use.

    Args:
        keys: observation keys that the policy reads as the context.
    """
    return f"No context use is measured: all episodes have the same {' and '.join(keys)}"


def _successes(episodes: Sequence[Episode]) -> Float[np.ndarray, " episodes"]:
    return np.array([bool(episode.success) for episode in episodes], dtype=np.float64)


def _returns(episodes: Sequence[Episode]) -> Float[np.ndarray, " episodes"]:
    return np.array([episode.episode_return for episode in episodes], dtype=np.float64)


def _mean_interval(differences: Float[np.ndarray, " episodes"]) -> tuple[float, float]:
    """Return the 95 % interval of a mean; a single value has an infinite one."""
    if len(differences) < 2:
        return float("-inf"), float("inf")
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    mean = float(differences.mean())
    return mean - NORMAL_QUANTILE * error, mean + NORMAL_QUANTILE * error
