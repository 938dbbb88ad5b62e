"""RolloutBuffer on the training device, and the advantages of their actions."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Int
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from mirl.agents.on_policy.advantages import PerStep, generalized_advantages
from mirl.agents.on_policy.observation_hashes import ObservationHashes
from mirl.agents.on_policy.storage import (
    CategoricalColumn,
    Column,
    Rows,
    build_column,
    on_device,
    pad_to_bucket,
    smallest_dtype,
)
from mirl.configs.keys import TASK_KEY
from mirl.policies.recurrent import Sequences


class Samples(NamedTuple):
    """A minibatch; the names are those of SB3's samples."""

    observations: Any
    """Their distinct observations, if ``rows`` is given."""
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    """What the policy's gradient is weighed by, on the scale that the update gave it."""
    returns: Tensor
    rows: Tensor | None = None
    """For each sample which of the observations is its own; None where each has one."""
    tasks: Tensor | None = None
    """For each sample the number of its task; None where there is one task."""
    sequences: Sequences | None = None
    """Where a memory reads them: the samples are these sequences, time first."""


class RolloutBuffer(SB3RolloutBuffer):
    """SB3's ``RolloutBuffer`` as preallocated tensors on the training device, each as small as its space allows.

    Everything is (n_steps, n_envs, …). Minibatches are the same as SB3's for the same permutation, with their rows
    sorted by context where the policy reads one as ``UniqueRows`` rows, and by observation where equal ones are shared:
    no loss depends on the order.
    """

    actions: Tensor  # type: ignore[assignment]
    rewards: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]
    log_probs: Tensor  # type: ignore[assignment]
    advantages: Tensor  # type: ignore[assignment]
    policy_advantages: Tensor
    """``advantages``, or these on a scale that an update gave them; ``returns`` are always of the first."""
    tasks: NDArray[np.int64] | None
    """(n_steps, n_envs) in the host's memory, the number of each timestep's task; None where there is one task."""
    episode_starts: Tensor  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        BaseBuffer.__init__(
            self, buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        self.gae_lambda, self.gamma = gae_lambda, gamma
        self.shape = (buffer_size, n_envs)
        keyed = (
            observation_space.spaces
            if isinstance(observation_space, spaces.Dict)
            else {"": observation_space}
        )
        self.columns: dict[str, Column] = {
            key: build_column(key, space, self.shape, self.device) for key, space in keyed.items()
        }
        self.context: CategoricalColumn | None = None
        self.digests: ObservationHashes | None = None
        self._parts = keyed
        action_dtype, action_shape = _action_storage(action_space)
        self.actions = torch.zeros(
            *self.shape, *action_shape, dtype=action_dtype, device=self.device
        )
        self.rewards, self.values, self.log_probs, self.advantages = (
            torch.zeros(self.shape, device=self.device) for _ in range(4)
        )
        self.policy_advantages = self.advantages
        self.episode_starts = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        task = keyed.get(TASK_KEY)
        self.tasks = (
            np.zeros(self.shape, np.int64)
            if isinstance(task, spaces.Discrete) and task.n > 1
            else None
        )
        self.reset()

    def intern(self, key: str) -> None:
        """From now on give the values under ``key`` as ``UniqueRows`` rows, and sort minibatches by them."""
        self.columns[key] = self.context = CategoricalColumn(self.shape, self.device)

    def share_equal_observations(self) -> None:
        """From now on give each distinct observation of a minibatch once, if they are such that some may be equal."""
        if ObservationHashes.supports(self._parts):
            self.digests = ObservationHashes(self._parts, self.shape)

    def reset(self) -> None:
        """Begin another rollout; nothing is allocated."""
        if self.context is not None:
            self.context.clear()
        self.n_samples = self.n_unique = 0
        super(SB3RolloutBuffer, self).reset()

    def add_observation(self, observation: Any) -> Any:
        """Keep the observation of the present timestep, and give it as the policy reads it."""
        parts = observation if isinstance(observation, Mapping) else {"": observation}
        if self.digests is not None:
            self.digests.store(self.pos, parts)
        if self.tasks is not None:
            self.tasks[self.pos] = parts[TASK_KEY]
        kept = {key: column.store(self.pos, parts[key]) for key, column in self.columns.items()}
        return kept if isinstance(observation, Mapping) else kept[""]

    def add(  # type: ignore[override]
        self,
        action: Tensor,
        reward: NDArray[np.float32],
        episode_start: NDArray[np.bool_],
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Complete the present timestep: what was done in it and what came of it."""
        self.actions[self.pos] = action.reshape(self.actions.shape[1:])
        self.rewards[self.pos] = on_device(reward, self.device)
        self.episode_starts[self.pos] = on_device(episode_start, self.device)
        self.values[self.pos] = value.flatten()
        self.log_probs[self.pos] = log_prob
        self.pos += 1
        self.full = self.pos == self.buffer_size

    @property
    def returns(self) -> PerStep:  # type: ignore[override]
        """The targets of the value function, A + V."""
        return self.advantages + self.values

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        """Fill ``advantages``, given the values of the observations behind the last timestep."""
        self.advantages = generalized_advantages(
            self.rewards,
            self.values,
            self.episode_starts.float(),
            last_values.flatten(),
            torch.as_tensor(dones, dtype=torch.float32, device=self.device),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        self.policy_advantages = self.advantages

    @property
    def task_ids(self) -> Int[Tensor, "n_steps n_envs"]:
        """The number of each timestep's task, on the device; zeros where there is one task."""
        if self.tasks is None:
            return torch.zeros(self.shape, dtype=torch.int64, device=self.device)
        return on_device(self.tasks, self.device)

    def get(self, batch_size: int | None = None) -> Iterator[Samples]:  # type: ignore[override]
        """Minibatches of one epoch, drawn by NumPy's global generator as SB3 draws them."""
        size = self.buffer_size * self.n_envs
        # SB3 counts an environment's steps first
        env, step = np.divmod(np.random.permutation(size), self.buffer_size)  # noqa: NPY002
        order = step * self.n_envs + env
        for start in range(0, size, batch_size or size):
            yield self.minibatch(order[start : start + (batch_size or size)])

    def full_batch(self) -> Samples:
        """All samples of the rollout."""
        return self.minibatch(np.arange(self.buffer_size * self.n_envs))

    def minibatch(self, rows: Rows) -> Samples:
        """The samples of some rows, in the order that serves best."""
        order, first, observation_of = self._arrange(rows)
        rows = rows[order]
        return self._samples(rows, self._observations(rows[first]), observation_of)

    def _observations(self, rows: Rows) -> Any:
        observations: dict[str, Any] = {
            key: column.take(rows) for key, column in self.columns.items()
        }
        return observations.get("", observations)

    def _samples(self, rows: Rows, observations: Any, observation_of: Rows | None) -> Samples:
        index = on_device(rows, self.device)
        actions, values, log_probs, advantages, policy_advantages = (
            tensor.flatten(0, 1).index_select(0, index)
            for tensor in (
                self.actions,
                self.values,
                self.log_probs,
                self.advantages,
                self.policy_advantages,
            )
        )
        discrete = isinstance(self.action_space, spaces.Discrete)
        return Samples(
            observations,
            actions.long() if discrete else actions.float(),
            values,
            log_probs,
            policy_advantages,
            advantages + values,
            None if observation_of is None else on_device(observation_of, self.device),
            None if self.tasks is None else on_device(self.tasks.reshape(-1)[rows], self.device),
        )

    def _arrange(self, rows: Rows) -> tuple[Rows, Any, Rows | None]:
        """The order by context and observation, the first in it of each observation, and which is each one's own."""
        keys: list[NDArray[Any]] = (
            [] if self.context is None else [self.context.index.reshape(-1)[rows]]
        )
        if self.digests is None:
            return (
                (np.argsort(keys[0], kind="stable") if keys else np.arange(len(rows))),
                slice(None),
                None,
            )
        digests = self.digests.values.reshape(-1)[rows]
        order = np.lexsort((digests, *keys))
        another = np.diff(digests[order], prepend=~digests[order[0]]) != 0
        first: Rows = np.flatnonzero(another)
        self.n_samples += len(rows)
        self.n_unique += len(first)
        first = pad_to_bucket(first, len(rows))
        return order, first, np.cumsum(another) - 1

    @property
    def nbytes(self) -> int:
        """What the rollouts hold."""
        tensors = {self.actions, self.rewards, self.values, self.log_probs, self.episode_starts}
        tensors |= {self.advantages, self.policy_advantages}  # often one and the same
        tasks = 0 if self.tasks is None else self.tasks.nbytes
        columns = sum(column.nbytes for column in self.columns.values())
        digests = 0 if self.digests is None else self.digests.values.nbytes
        return columns + digests + tasks + sum(tensor.nbytes for tensor in tensors)


def _action_storage(space: spaces.Space[Any]) -> tuple[torch.dtype, tuple[int, ...]]:
    match space:
        case spaces.Discrete():
            return smallest_dtype(int(space.n) - 1), ()
        case spaces.MultiDiscrete():
            return smallest_dtype(int(space.nvec.max()) - 1), space.shape
        case spaces.MultiBinary():
            return torch.uint8, space.shape
        case _:  # flat, as SB3's distributions read actions
            return torch.float32, (get_action_dim(space),)
