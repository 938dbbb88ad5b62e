"""Rollout buffer of a recurrent policy: minibatches of sequences with initial hidden states.

Shapes: T timesteps of a rollout, N environments, M environments over all ranks, L timesteps of a
sequence, C = T / L sequences per environment, S sequences of a minibatch, H hidden state. The
B = L * S samples of a minibatch are time first.
"""

from collections.abc import Iterator
from numbers import Integral
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mirl.agents.on_policy.bit_packing import Space
from mirl.agents.on_policy.minibatch import Samples
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.agents.on_policy.storage import PolicyInput, Rows, on_device
from mirl.configs.agents import check_minibatches, check_sequences
from mirl.configs.errors import ConfigError
from mirl.policies.features import Observations
from mirl.policies.memory.episodes import Episodes
from mirl.policies.recurrent import BurnIn, Sequences


class RecurrentRolloutBuffer(RolloutBuffer):
    """A ``RolloutBuffer`` whose minibatches are sequences of L timesteps.

    An episode may end and another start inside a sequence. Each sequence starts from its stored
    hidden state; with ``burn_in``, from the state recomputed over the preceding timesteps with the
    current weights. The first sequence of a rollout always starts from its stored state.

    Args:
        buffer_size: T, timesteps per environment.
        observation_space: the space of one observation.
        action_space: the space of one action.
        device: the training device.
        gae_lambda: λ of generalized advantage estimation.
        gamma: γ, the discount factor.
        n_envs: N, the number of environments.
        sequence_length: L, a divisor of T; 0 for T.
        burn_in: timesteps before each sequence that only recompute its hidden state, at most L.

    Raises:
        ConfigError: if T is not a multiple of L, or the burn-in is longer than L.

    References:
        Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning"
        (R2D2), ICLR 2019.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: Space,
        action_space: Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        sequence_length: int = 0,
        burn_in: int = 0,
    ) -> None:
        # Users may build PPO and A2C without a validated configuration.
        for name, given in (("sequence_length", sequence_length), ("burn_in", burn_in)):
            if not isinstance(given, Integral) or given < 0:
                raise ConfigError(
                    f"{name} must be a whole number of timesteps, 0 or more, got {given!r}"
                )
        check_sequences(buffer_size, sequence_length, burn_in)
        self.sequence_length = sequence_length or buffer_size
        self.burn_in = burn_in
        super().__init__(
            buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs
        )
        self.host_episode_starts = np.zeros(self.shape, np.bool_)
        """(T, N), ``episode_starts`` in host memory, from which ``Episodes`` are built."""
        starts = np.arange(0, buffer_size, self.sequence_length)
        # Burn-in starts before the sequence, but not before the rollout.
        self.state_timesteps = np.maximum(starts - burn_in, 0)
        """(C,), the timestep before which the hidden state of each sequence is stored."""
        # Of width 0 for now, because SB3 builds the buffer before the policy.
        self.hidden_states = torch.zeros(len(starts), self.n_envs, 0, device=self.device)
        """(C, N, H), the stored hidden states."""

    def allocate_hidden_states(self, state_dim: int) -> None:
        """Allocate the hidden states, once the policy's size is known.

        Args:
            state_dim: H, the size of the hidden state of one environment.
        """
        n_parts, n_envs, _ = self.hidden_states.shape
        self.hidden_states = self.hidden_states.new_zeros(n_parts, n_envs, state_dim)

    def store_hidden_state(
        self, state: Float[Tensor, "n_envs state"], episode_start: NDArray[np.bool_]
    ) -> None:
        """Store the hidden state before the current timestep, if a sequence needs it.

        Args:
            state: (N, H), the hidden state.
            episode_start: (N,), whether the observations are the first of an episode.
        """
        self.host_episode_starts[self.pos] = episode_start
        # Two sequences can start here: with burn_in = L, the first two start at timestep 0.
        for part in np.flatnonzero(self.state_timesteps == self.pos).tolist():
            self.hidden_states[part] = state

    def check_batch_size(self, batch_size: int) -> None:
        """Check that minibatches consist of whole sequences.

        Args:
            batch_size: timesteps per minibatch.

        Raises:
            ConfigError: if they do not; the message names a valid batch size.
        """
        check_minibatches(batch_size, self.sequence_length, self.buffer_size, self.n_total_envs)

    def get(self, batch_size: int | None = None) -> Iterator[Samples]:  # type: ignore[override]
        """Iterate over the minibatches of one epoch, in a random order.

        Args:
            batch_size: timesteps per minibatch, a multiple of L; None for the whole rollout.

        Yields:
            Minibatches of ``batch_size`` / L sequences; the last one may be smaller.
        """
        per_minibatch = self.n_sequences
        if batch_size is not None:
            self.check_batch_size(batch_size)
            per_minibatch = batch_size // self.sequence_length
        # From NumPy's global generator, as SB3 draws its minibatches.
        order = self.ranks.from_first(np.random.permutation(self.n_sequences))  # noqa: NPY002
        for start in range(0, len(order), per_minibatch):
            yield self.sequence_minibatch(order[start : start + per_minibatch])

    def full_batch(self) -> Samples:
        """Return all sequences of the rollout as one minibatch."""
        return self.sequence_minibatch(np.arange(self.n_sequences))

    @property
    def n_sequences(self) -> int:
        """Return C * M, the number of sequences of a rollout over all ranks."""
        return len(self.state_timesteps) * self.n_total_envs

    def sequence_minibatch(self, chosen: Rows) -> Samples:
        """Return the samples of the chosen sequences that this rank has, time first.

        Args:
            chosen: indices c * M + m of sequence c of environment m.
        """
        # Sequence c * N + n is part c of environment n.
        part, env_index = np.divmod(self._own_rows(chosen), self.n_envs)
        first_timestep = part * self.sequence_length
        rows, episodes = self._segment(first_timestep, env_index, self.sequence_length)
        observations, inverse = self._unique_observations(rows)
        state = self.hidden_states[on_device(part, self.device), on_device(env_index, self.device)]
        sequences = Sequences(state, episodes, self._burn_in(part, env_index))
        samples = self._samples(rows, observations, inverse)._replace(sequences=sequences)
        return self._with_other_ranks(samples, self._all_rows(chosen))

    def _all_rows(self, chosen: Rows) -> Rows:
        """Return the rows t * M + m of some sequences c * M + m, (S,) -> (L * S,)."""
        part, column = np.divmod(chosen, self.n_total_envs)
        timestep = part * self.sequence_length + np.arange(self.sequence_length)[:, None]
        return (timestep * self.n_total_envs + column).reshape(-1)

    def _burn_in(self, part: Rows, env_index: Rows) -> BurnIn | None:
        # The first sequence of a rollout has no timesteps before it.
        chosen = np.flatnonzero(part)
        if self.burn_in == 0 or len(chosen) == 0:
            return None
        first_timestep = self.state_timesteps[part[chosen]]
        rows, episodes = self._segment(first_timestep, env_index[chosen], self.burn_in)
        observations, inverse = self._unique_observations(rows)
        return BurnIn(
            on_device(chosen, self.device),
            cast(Observations, observations),
            on_device(inverse, self.device),
            episodes,
        )

    def _segment(self, start: Rows, env_index: Rows, length: int) -> tuple[Rows, Episodes]:
        """Return ``length`` timesteps of each of S environments, time first.

        Args:
            start: (S,), the first timestep.
            env_index: (S,), the environment.
            length: number of timesteps.

        Returns:
            (length * S,), the rows; and their episode starts, (length, S).
        """
        # (S,) -> (L, S); the rows are then (L * S,), time first.
        timestep = start + np.arange(length)[:, None]
        rows = (timestep * self.n_envs + env_index).reshape(-1)
        return rows, Episodes(self.host_episode_starts[timestep, env_index], self.device)

    def _unique_observations(self, rows: Rows) -> tuple[PolicyInput, Rows]:
        """Return the unique observations of some rows, and the index of each row's own."""
        order = self._sort(rows)
        sorted_inverse = order.inverse
        if sorted_inverse is None:
            sorted_inverse = np.arange(len(rows))
        # Undo the sort: the samples of a sequence must stay in time order.
        inverse = np.empty_like(rows)
        inverse[order.order] = sorted_inverse
        unique_rows = rows[order.order][order.first]
        return self._observations(unique_rows), inverse
