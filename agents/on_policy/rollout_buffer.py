"""Rollout buffer on the training device.

Shapes: T timesteps, N environments, M environments over all ranks, B samples of a minibatch, U
unique observations among them (U <= B). Row t * N + n of the flattened buffer is timestep t of
environment n.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Int
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, DictRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from torch import Tensor

from mirl.agents.on_policy.advantages import (
    PerStep,
    generalized_advantages,
    normalize_per_task,
    root_mean_square,
)
from mirl.agents.on_policy.bit_packing import Space, Values
from mirl.agents.on_policy.minibatch import ObservationHashes, RowOrder, Samples, sort_rows
from mirl.agents.on_policy.storage import (
    CategoricalColumn,
    Column,
    PolicyInput,
    Rows,
    action_storage,
    build_column,
    on_device,
)
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.policies.features import UniqueRows

NO_KEY = ""
"""Key of the single column of an observation space that is not ``Dict``."""


class RolloutBuffer(SB3RolloutBuffer):
    """SB3's ``RolloutBuffer`` as preallocated tensors on the training device.

    All tensors are (T, N, ...), except that advantages, values and tasks are (T, M), which hold the
    columns of all ranks once the rollout is over; M is N for a single process.

    A minibatch has the same samples as SB3's for the same permutation. Within the minibatch they
    are sorted by context, if ``group_by_context`` was called, and by observation, if
    ``share_equal_observations`` was called; no loss depends on the order.

    Args:
        buffer_size: T, timesteps per environment.
        observation_space: the space of one observation.
        action_space: the space of one action.
        device: the training device.
        gae_lambda: λ of generalized advantage estimation.
        gamma: γ, the discount factor.
        n_envs: N, the number of environments.

    Examples:
        PPO and A2C fill it, and a callback can read it:

        >>> from mirl.agents import PPO
        >>> agent = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu")
        >>> buffer = agent.learn(16).rollout_buffer
        >>> type(buffer).__name__, buffer.rewards.shape
        ('RolloutBuffer', torch.Size([16, 1]))
        >>> [len(samples.actions) for samples in buffer.get(batch_size=8)]
        [8, 8]
    """

    observation_space: Space
    action_space: Space
    stored_actions: Tensor
    """(T, N, ...), as small integers or float32; ``actions`` is a copy in SB3's format."""
    rewards: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]
    log_probs: Tensor  # type: ignore[assignment]
    episode_starts: Tensor  # type: ignore[assignment]
    advantages: Tensor  # type: ignore[assignment]
    """(T, M), the advantages; ``returns`` are these plus the values."""
    policy_advantages: Tensor
    """(T, M), the advantages for the policy loss: ``advantages``, scaled by the update."""
    host_task_ids: NDArray[np.int64] | None
    """(T, M) in host memory, the task of each timestep; None if there is one task."""
    own: slice
    """The columns of (T, M) that are the environments of this rank."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: Space,
        action_space: Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        # SB3's RolloutBuffer would allocate NumPy arrays: skip its constructor.
        BaseBuffer.__init__(
            self, buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        self.shape = (buffer_size, n_envs)
        # Observations: one column per key, a single column for a plain space.
        self._keyed_spaces: Mapping[str, Space] = {NO_KEY: observation_space}
        if isinstance(observation_space, spaces.Dict):
            self._keyed_spaces = observation_space.spaces
        self.columns: dict[str, Column] = {}
        for key, space in self._keyed_spaces.items():
            self.columns[key] = build_column(key, space, self.shape, self.device)
        # Both are set later, because the buffer is built before the policy.
        self.context: CategoricalColumn | None = None
        self.hashes: ObservationHashes | None = None
        # Actions, rewards and outputs of the policy, (T, N, ...).
        action_dtype, action_shape = action_storage(action_space)
        action_size = (*self.shape, *action_shape)
        self.stored_actions = torch.zeros(action_size, dtype=action_dtype, device=self.device)
        self.rewards = torch.zeros(self.shape, device=self.device)
        self.values = torch.zeros(self.shape, device=self.device)
        self.log_probs = torch.zeros(self.shape, device=self.device)
        self.advantages = torch.zeros(self.shape, device=self.device)
        # The same tensor, until an update scales the advantages for the policy loss.
        self.policy_advantages = self.advantages
        self.advantage_unit: PerStep | None = None
        self.episode_starts = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        # Task ids stay in host memory, and are copied to the device with each minibatch.
        task_space = self._keyed_spaces.get(TASK_KEY)
        self.host_task_ids = None
        if isinstance(task_space, spaces.Discrete) and task_space.n > 1:
            self.host_task_ids = np.zeros(self.shape, np.int64)
        self.use_ranks(ONE_PROCESS)
        self.reset()

    def use_ranks(self, ranks: Ranks) -> None:
        """Share the data of complete rollouts with other ranks from now on.

        Args:
            ranks: the processes; each has N environments.
        """
        self.ranks = ranks
        self.own = slice(ranks.rank * self.n_envs, (ranks.rank + 1) * self.n_envs)
        if ranks.size > 1:
            shape = (self.buffer_size, self.n_total_envs)
            self.values = torch.zeros(shape, device=self.device)
            if self.host_task_ids is not None:
                self.host_task_ids = np.zeros(shape, np.int64)

    @property
    def n_total_envs(self) -> int:
        """Return M, the number of environments over all ranks."""
        return self.n_envs * self.ranks.size

    def group_by_context(self, key: str) -> None:
        """Return the values of a key as ``UniqueRows`` from now on, and sort minibatches by them.

        Args:
            key: the observation key of the context.
        """
        self.context = CategoricalColumn(self.shape, self.device)
        self.columns[key] = self.context

    def share_equal_observations(self) -> None:
        """Return each unique observation of a minibatch once from now on, if any may be equal."""
        if ObservationHashes.supports(self._keyed_spaces):
            self.hashes = ObservationHashes(self._keyed_spaces, self.shape)

    def reset(self) -> None:
        """Start the next rollout. Memory is reused."""
        if self.context is not None:
            self.context.clear()
        self.n_samples = 0
        self.n_unique = 0
        # Skip SB3's RolloutBuffer.reset, which allocates.
        super(SB3RolloutBuffer, self).reset()

    def add_observation(self, observation: Values | Mapping[str, Values]) -> PolicyInput:
        """Store the observations of the current timestep.

        Args:
            observation: (N, ...), or a dictionary of such arrays.

        Returns:
            The observations on the training device, in the form that the policy takes.
        """
        keyed = observation if isinstance(observation, Mapping) else {NO_KEY: observation}
        if self.hashes is not None:
            self.hashes.store(self.pos, keyed)
        if self.host_task_ids is not None:
            self.host_task_ids[self.pos, self.own] = keyed[TASK_KEY]
        stored: dict[str, Tensor | UniqueRows] = {}
        for key, column in self.columns.items():
            stored[key] = column.store(self.pos, keyed[key])
        return self._without_no_key(stored)

    def add(  # type: ignore[override]
        self,
        action: Tensor,
        reward: NDArray[np.float32],
        episode_start: NDArray[np.bool_],
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Store the rest of the current timestep, and move on to the next.

        Args:
            action: (N, ...), the actions.
            reward: (N,), the rewards.
            episode_start: (N,), whether the observations are the first of an episode.
            value: (N,) or (N, 1), the values.
            log_prob: (N,), the log-probabilities of the actions.
        """
        self.stored_actions[self.pos] = action.reshape(self.stored_actions.shape[1:])
        self.rewards[self.pos] = on_device(reward, self.device)
        self.episode_starts[self.pos] = on_device(episode_start, self.device)
        self.values[self.pos, self.own] = value.flatten()
        self.log_probs[self.pos] = log_prob
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def add_bootstrapped_values(
        self, timesteps: list[int], env_indices: list[int], discounted_values: Tensor
    ) -> None:
        """Add γ V of their terminal observations to the rewards of truncated episodes.

        Args:
            timesteps: the last timestep of each truncated episode.
            env_indices: the environment of each truncated episode.
            discounted_values: γ V of each truncated episode.
        """
        # No pair occurs twice; an indexed += would add only once.
        self.rewards[timesteps, env_indices] += discounted_values

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        """Compute the advantages of the rollout; ``returns`` follow from them.

        Each rank gets the advantages, values and tasks of all of them.

        Args:
            last_values: (N,) or (N, 1), the values of the observations after the last timestep.
            dones: (N,), whether those observations are the first of an episode.
        """
        self.advantages = generalized_advantages(
            self.rewards,
            self.values[:, self.own],
            self.episode_starts.float(),
            last_values.flatten(),
            torch.as_tensor(dones, dtype=torch.float32, device=self.device),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        if self.ranks.size > 1:
            self.advantages = self._gather_columns(self.advantages)
            self.values = self._gather_columns(self.values[:, self.own])
            if self.host_task_ids is not None:
                own_ids = torch.from_numpy(self.host_task_ids[:, self.own])
                self.host_task_ids = self._gather_columns(own_ids).numpy()
        self.policy_advantages = self.advantages
        self.advantage_unit = None

    def _gather_columns(self, own: Tensor) -> Tensor:
        """Join the environments of all ranks: (T, N) -> (T, M)."""
        return torch.cat(self.ranks.gather(own), dim=1)

    def scale_advantages(self, scale: PerStep) -> None:
        """Divide the advantages for the policy loss by a scale. The returns do not change.

        Args:
            scale: (T, M), the unit of each advantage.
        """
        self.policy_advantages = self.advantages / scale
        self.advantage_unit = scale

    def normalize_advantages_per_task(self, floor: float = 0.0) -> None:
        """Normalize the advantages for the policy loss per task. The returns do not change.

        Args:
            floor: smallest standard deviation, as a fraction of the root mean square of the task's
                returns.
        """
        # From the unscaled advantages, because the normalization would undo a scale per task.
        self.policy_advantages = normalize_per_task(
            self.advantages, self.task_ids, self.returns, floor
        )

    def returns_rms(self) -> Tensor:
        """Return the root mean square of the returns, in the unit of ``policy_advantages``.

        Returns:
            A scalar on the device.
        """
        returns = self.returns
        if self.advantage_unit is not None:
            returns = returns / self.advantage_unit
        return root_mean_square(returns)

    @property
    def returns(self) -> PerStep:  # type: ignore[override]
        """Return the targets of the value function, A + V."""
        return self.advantages + self.values

    @property
    def actions(self) -> Values:  # type: ignore[override]
        """Return a copy of the actions as a NumPy array, as SB3's callbacks read them.

        Returns:
            (T, N, A) of the type of the action space, with A = 1 for a Discrete space.
        """
        actions = self.stored_actions.reshape(*self.shape, self.action_dim).cpu()
        return actions.numpy().astype(self.action_space.dtype)

    @property
    def observations(self) -> Values | dict[str, Values]:  # type: ignore[override]
        """Return a copy of the observations as NumPy arrays, as SB3's callbacks read them.

        Returns:
            (T, N, ...), or a dictionary of such arrays.
        """
        keyed: dict[str, Values] = {}
        for key, column in self.columns.items():
            shape = (*self.shape, *cast(tuple[int, ...], get_obs_shape(self._keyed_spaces[key])))
            keyed[key] = column.to_array().reshape(shape)
        return keyed.get(NO_KEY, keyed)

    @property
    def task_ids(self) -> Int[Tensor, "n_steps n_envs"]:
        """Return the task of each timestep, on the device; zeros if there is one task."""
        if self.host_task_ids is None:
            return torch.zeros(self.values.shape, dtype=torch.int64, device=self.device)
        return on_device(self.host_task_ids, self.device)

    def get(self, batch_size: int | None = None) -> Iterator[Samples]:  # type: ignore[override]
        """Iterate over the minibatches of one epoch, in a random order.

        Args:
            batch_size: B; None for the whole rollout.

        Yields:
            Minibatches; the last one may be smaller.
        """
        size = self.buffer_size * self.n_total_envs
        batch_size = batch_size or size
        # SB3 flattens environment by environment and draws from NumPy's global generator. Draw the
        # same permutation, then convert n * T + t -> t * N + n.
        permutation = self.ranks.from_first(np.random.permutation(size))  # noqa: NPY002
        env_index, timestep = np.divmod(permutation, self.buffer_size)
        rows = timestep * self.n_total_envs + env_index
        for start in range(0, size, batch_size):
            yield self.minibatch(rows[start : start + batch_size])

    def full_batch(self) -> Samples:
        """Return all samples of the rollout as one minibatch."""
        return self.minibatch(np.arange(self.buffer_size * self.n_total_envs))

    def minibatch(self, rows: Rows) -> Samples:
        """Return the samples of those rows that this rank has, sorted by context and observation.

        Args:
            rows: indices t * M + m.
        """
        own_rows = self._own_rows(rows)
        order = self._sort(own_rows)
        sorted_rows = own_rows[order.order]
        observations = self._observations(sorted_rows[order.first])
        samples = self._samples(sorted_rows, observations, order.inverse)
        return self._with_other_ranks(samples, rows)

    @property
    def nbytes(self) -> int:
        """Return the size of the buffer in bytes."""
        arrays: dict[int, Tensor | Values] = {}
        for value in vars(self).values():
            if isinstance(value, Tensor | np.ndarray):
                arrays[id(value)] = value  # policy_advantages may be the same as advantages
        size = sum(array.nbytes for array in arrays.values())
        size += sum(column.nbytes for column in self.columns.values())
        if self.hashes is not None:
            size += self.hashes.values.nbytes
        return size

    def _observations(self, rows: Rows) -> PolicyInput:
        observations = {key: column.take(rows) for key, column in self.columns.items()}
        return self._without_no_key(observations)

    def _without_no_key(self, observations: dict[str, Tensor | UniqueRows]) -> PolicyInput:
        """Return the single tensor of an observation space that is not ``Dict``."""
        if NO_KEY not in observations:
            return observations
        tensor = observations[NO_KEY]
        assert isinstance(tensor, Tensor)
        return tensor

    def _own_rows(self, rows: Rows) -> Rows:
        """Return the rows that this rank has, x * M + m -> x * N + n; one row if it has none."""
        if self.ranks.size == 1:
            return rows
        outer, column = np.divmod(rows, self.n_total_envs)
        env_index = column - self.own.start
        is_own = (env_index >= 0) & (env_index < self.n_envs)
        own_rows = outer[is_own] * self.n_envs + env_index[is_own]
        # A sample with weight zero, so that the rank takes the gradient step like the others.
        return own_rows if own_rows.size else np.zeros(1, rows.dtype)

    def _to_shared(self, own_rows: Rows) -> Rows:
        """Convert rows of this rank to rows of (T, M): t * N + n -> t * M + m."""
        if self.ranks.size == 1:
            return own_rows
        timestep, env_index = np.divmod(own_rows, self.n_envs)
        return timestep * self.n_total_envs + env_index + self.own.start

    def _with_other_ranks(self, samples: Samples, rows: Rows) -> Samples:
        """Add the data of the whole minibatch, with rows t * M + m, that the loss needs."""
        if self.ranks.size == 1:
            return samples
        n_own = np.count_nonzero(rows % self.n_total_envs // self.n_envs == self.ranks.rank)
        task_ids = None
        if self.host_task_ids is not None:
            task_ids = on_device(self.host_task_ids.reshape(-1)[rows], self.device)
        advantages = _gather(self.policy_advantages, on_device(rows, self.device))
        share = n_own / len(rows)
        return samples._replace(share=share, all_advantages=advantages, all_task_ids=task_ids)

    def _samples(self, rows: Rows, observations: PolicyInput, inverse: Rows | None) -> Samples:
        index = on_device(rows, self.device)
        shared_rows = self._to_shared(rows)
        shared_index = index if shared_rows is rows else on_device(shared_rows, self.device)
        # Stored as small integers or floats; SB3's distributions take int64 or float32.
        stored_actions = _gather(self.stored_actions, index)
        if isinstance(self.action_space, spaces.Discrete):
            actions = stored_actions.long()
        else:
            actions = stored_actions.float()
        values = _gather(self.values, shared_index)
        task_ids = None
        if self.host_task_ids is not None:
            task_ids = on_device(self.host_task_ids.reshape(-1)[shared_rows], self.device)
        return Samples(
            observations,
            actions=actions,
            old_values=values,
            old_log_prob=_gather(self.log_probs, index),
            advantages=_gather(self.policy_advantages, shared_index),
            # From the unscaled advantages, because the scale is for the policy loss only.
            returns=_gather(self.advantages, shared_index) + values,
            inverse=None if inverse is None else on_device(inverse, self.device),
            task_ids=task_ids,
        )

    def _sort(self, rows: Rows) -> RowOrder:
        contexts = None
        if self.context is not None:
            contexts = self.context.index.reshape(-1)[rows]
        if self.hashes is None:
            return sort_rows(len(rows), contexts, None)
        order = sort_rows(len(rows), contexts, self.hashes.values.reshape(-1)[rows])
        self.n_samples += len(rows)
        self.n_unique += order.n_unique
        return order


def choose_buffer_class(
    given: type[SB3RolloutBuffer] | None, default: type[RolloutBuffer], observation_space: Space
) -> type[RolloutBuffer]:
    """Return the class of the buffer of PPO or A2C.

    Args:
        given: the user's ``rollout_buffer_class``; None and SB3's own two classes mean the default.
        default: MIRL's class for the policy.
        observation_space: the space of one observation.

    Raises:
        ConfigError: if the class is not derived from the default.
        AssertionError: as in SB3, if its class for Dict spaces is given for another space.
    """
    if given is DictRolloutBuffer and not isinstance(observation_space, spaces.Dict):
        raise AssertionError(
            "DictRolloutBuffer must be used with Dict obs space only, got "
            f"{observation_space}; leave rollout_buffer_class out"
        )
    if given is None or given in (SB3RolloutBuffer, DictRolloutBuffer):
        return default
    if issubclass(given, default):
        return given
    raise ConfigError(
        f"rollout_buffer_class: expected a class derived from {default.__module__}."
        f"{default.__name__}, which keeps the rollout as tensors, got {given.__name__}; derive it "
        "from that class, or leave it out"
    )


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    """Select samples: (T, N, ...) -> (T * N, ...) -> (B, ...)."""
    return tensor.flatten(0, 1).index_select(0, index)
