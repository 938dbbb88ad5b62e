"""What steps the environments of one task: the interface that both backends share."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import RunError

Observations = dict[str, NDArray[Any]]
"""Arrays by key, slots first: (n, …)."""

EnvIndices = NDArray[np.int64]
"""Numbers of slots, (k,), ascending."""

NOT_REPORTED = -1
"""In place of success (0 or 1) where an environment's info says nothing about it."""


class EnvironmentFailedError(RunError):
    """An environment raised, or the process that stepped it died or hung; says which task, id and seed.

    Args:
        slot: of the pool, where it is known.
    """

    def __init__(self, message: str, slot: int = -1) -> None:
        super().__init__(message)
        self.slot = slot


class Restarts:
    """How many failures of environments are survived; each is warned of.

    Args:
        max_restarts: number of failures that are survived; the next one is raised.
    """

    def __init__(self, max_restarts: int = 0) -> None:
        self.max_restarts = max_restarts
        self._used = 0

    def count(self, failure: EnvironmentFailedError) -> None:
        """Go on after one more.

        Raises:
            EnvironmentFailedError: when it is one too many.
        """
        if self._used == self.max_restarts:
            if not self.max_restarts:
                raise failure
            told = f"{failure}. It was not restarted: {self.max_restarts} restarts are used up"
            raise EnvironmentFailedError(told, failure.slot) from failure.__cause__
        self._used += 1
        warnings.warn(
            f"{failure}. Its episode is cut off, and it starts anew: restart {self._used} of {self.max_restarts}",
            RuntimeWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class Step:
    """One timestep of k slots. A slot whose episode ended waits for its reset."""

    obs: Observations
    """(k, …), of an ended episode its last; the arrays are the receiver's own."""
    rewards: NDArray[np.float32]
    """(k,)"""
    terminated: NDArray[np.bool_]
    """(k,)"""
    truncated: NDArray[np.bool_]
    """(k,), also true where the episode terminated on its last allowed step."""
    success: NDArray[np.int8]
    """(k,), what the infos of this timestep say about success: 1, 0 or ``NOT_REPORTED``."""
    failed: NDArray[np.bool_]
    """(k,), where the environment failed instead; the rest of its row is zeros, and it waits for its reset."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """(k,), the slots whose episode ended."""
        return self.terminated | self.truncated

    def scattered(self, rows: NDArray[Any], n: int) -> "Step":
        """A step of n slots with these in ``rows`` (k,); the others are zeros."""
        return map_step(lambda values: scatter(values, rows, n), self)


class Backend(Protocol):
    """Steps the slots of one task, all or some of them.

    What is sent is received before the next is sent; between the two, other pools work at the same time.
    """

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams, one seed per slot. Every slot needs a reset before its next timestep."""

    def send_reset(self, slots: EnvIndices) -> None:
        """Start an episode in these slots; the first ever needs ``seed`` before it."""

    def recv_reset(self) -> Observations:
        """The first observations of these episodes, (k, …)."""

    def send(self, slots: EnvIndices, actions: NDArray[Any]) -> None:
        """Start a timestep of these slots with valid actions (k, …)."""

    def recv(self) -> Step:
        """Finish it."""

    def close(self) -> None:
        """Give back processes and threads; a second call does nothing."""


def join_observations(parts: Sequence[Observations]) -> Observations:
    """Observations of several groups of slots, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def join_steps(steps: Sequence[Step]) -> Step:
    """Steps of several groups of slots, one after the other."""
    return steps[0] if len(steps) == 1 else map_step(lambda *parts: np.concatenate(parts), *steps)


def map_step(function: Callable[..., NDArray[Any]], *steps: Step) -> Step:
    """The step of what ``function`` makes of each array of the steps."""
    return Step(
        obs={key: function(*(step.obs[key] for step in steps)) for key in steps[0].obs},
        **{name: function(*(getattr(step, name) for step in steps)) for name in _ARRAYS},
    )


def scatter(values: NDArray[Any], rows: NDArray[Any], n: int) -> NDArray[Any]:
    """n rows, of which ``rows`` (k,) are those of ``values`` (k, …) and the others are zeros."""
    out = np.zeros((n, *values.shape[1:]), values.dtype)
    out[rows] = values
    return out


_ARRAYS = tuple(field.name for field in fields(Step) if field.name != "obs")
