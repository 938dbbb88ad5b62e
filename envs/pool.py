"""What steps the environments of one task: the interface that both backends share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mirl.configs.errors import RunError

Observations = dict[str, NDArray[Any]]
"""Arrays by key, slots first: (n, …)."""

Slots = NDArray[np.int64]
"""Numbers of slots, (k,), ascending."""

NOT_REPORTED = -1
"""In place of success (0 or 1) where an environment's info says nothing about it."""


class EnvironmentFailedError(RunError):
    """An environment raised, or the process that stepped it died; says which task, id and seed."""


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

    @property
    def done(self) -> NDArray[np.bool_]:
        """(k,), the slots whose episode ended."""
        return self.terminated | self.truncated


class Pool(Protocol):
    """Steps the slots of one task, all or some of them.

    What is sent is received before the next is sent; between the two, other pools work at the same time.
    """

    def seed(self, seeds: Sequence[int]) -> None:
        """Restart the random streams, one seed per slot. Every slot needs a reset before its next timestep."""

    def send_reset(self, slots: Slots) -> None:
        """Start an episode in these slots; the first ever needs ``seed`` before it."""

    def recv_reset(self) -> Observations:
        """The first observations of these episodes, (k, …)."""

    def send(self, slots: Slots, actions: NDArray[Any]) -> None:
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
    if len(steps) == 1:
        return steps[0]
    return Step(
        obs=join_observations([step.obs for step in steps]),
        rewards=np.concatenate([step.rewards for step in steps]),
        terminated=np.concatenate([step.terminated for step in steps]),
        truncated=np.concatenate([step.truncated for step in steps]),
        success=np.concatenate([step.success for step in steps]),
    )
