"""What steps the environments of one task: the interface that both backends share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Observations = dict[str, NDArray[Any]]
"""Arrays by key, slots first: (n, …)."""


class EnvironmentFailedError(RuntimeError):
    """An environment raised, or the process that stepped it died; says which task, id and seed."""


@dataclass(frozen=True)
class Step:
    """One timestep of n slots. A slot whose episode ended has already started its next one (same-step autoreset)."""

    obs: Observations
    """(n, …), what to act on next."""
    rewards: NDArray[np.float32]
    """(n,)"""
    terminated: NDArray[np.bool_]
    """(n,)"""
    truncated: NDArray[np.bool_]
    """(n,), also true where the episode terminated on its last allowed step."""
    final_obs: Observations
    """(number of ended episodes, …), the last observations of the slots where ``done``, in their order."""
    final_success: tuple[bool | None, ...]
    """What the last infos of these episodes said about success; None where they said nothing."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n,), the slots whose episode ended."""
        return self.terminated | self.truncated


class Pool(Protocol):
    """Steps n slots of one task. ``send`` and ``recv`` come in pairs, so that several pools work at the same time."""

    def reset(self, seeds: Sequence[int] | None = None) -> Observations:
        """Start an episode in each slot; with seeds, one per slot, also restart the random streams."""

    def send(self, actions: NDArray[Any]) -> None:
        """Start a timestep with valid actions (n, …)."""

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
        final_obs=join_observations([step.final_obs for step in steps]),
        final_success=tuple(success for step in steps for success in step.final_success),
    )
