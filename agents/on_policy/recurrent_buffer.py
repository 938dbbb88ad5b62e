"""RolloutBuffer for a policy that remembers: minibatches of whole sequences, and the states that they begin with."""

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mirl.agents.on_policy.rollout_buffer import RolloutBuffer, Samples
from mirl.agents.on_policy.storage import Rows, on_device
from mirl.configs.agents import check_minibatches, check_sequences
from mirl.configs.errors import ConfigError
from mirl.policies.memory.episodes import Episodes
from mirl.policies.recurrent import BurnIn, Sequences


class RecurrentRolloutBuffer(RolloutBuffer):
    """``RolloutBuffer`` whose minibatches are sequences of ``sequence_length`` timesteps; 0 for whole rollouts.

    An episode may end and another begin inside a sequence. ``burn_in`` timesteps before a sequence the memory is read
    from again, with the present weights; the first sequence of a rollout begins with what was remembered then.

    :raises ConfigError: when a rollout does not consist of such sequences, or has not so many timesteps before them.
    """

    def __init__(
        self,
        buffer_size: int,
        *args: Any,
        sequence_length: int = 0,
        burn_in: int = 0,
        **kwargs: Any,
    ) -> None:
        for name, given in (("sequence_length", sequence_length), ("burn_in", burn_in)):
            if not isinstance(given, Integral) or given < 0:
                raise ConfigError(
                    f"{name} must be a whole number of timesteps, 0 or more, got {given!r}"
                )
        check_sequences(buffer_size, sequence_length, burn_in)
        self.length, self.burn_in = sequence_length or buffer_size, burn_in
        super().__init__(buffer_size, *args, **kwargs)
        self.starts = np.zeros(self.shape, np.bool_)
        """``episode_starts`` in the host's memory."""
        begins = np.arange(0, buffer_size, self.length)
        self.read_from = np.maximum(begins - burn_in, 0)
        """Where the reading of each sequence begins."""
        self.states = torch.zeros(len(begins), self.n_envs, 0, device=self.device)
        """What was remembered there."""

    def allocate_states(self, state_dim: int) -> None:
        """Room for states of this size."""
        self.states = self.states.new_zeros(*self.states.shape[:2], state_dim)

    def store_hidden_state(
        self, state: Float[Tensor, "n_envs state"], episode_start: NDArray[np.bool_]
    ) -> None:
        """Keep what is remembered at the present timestep, before it is read."""
        self.starts[self.pos] = episode_start
        for part in np.flatnonzero(self.read_from == self.pos).tolist():
            self.states[part] = state

    def check_batch_size(self, batch_size: int) -> None:
        """:raises ConfigError: when minibatches of so many timesteps are no whole sequences."""
        check_minibatches(batch_size, self.length, self.buffer_size, self.n_envs)

    def get(self, batch_size: int | None = None) -> Iterator[Samples]:  # type: ignore[override]
        """Minibatches of one epoch, as many sequences in each as make ``batch_size`` timesteps."""
        self.check_batch_size(batch_size or self.length)
        order = np.random.permutation(self.n_sequences)  # noqa: NPY002
        at_a_time = len(order) if batch_size is None else batch_size // self.length
        for start in range(0, len(order), at_a_time):
            yield self.sequence_minibatch(order[start : start + at_a_time])

    def full_batch(self) -> Samples:
        return self.sequence_minibatch(np.arange(self.n_sequences))

    @property
    def n_sequences(self) -> int:
        """How many there are in a rollout."""
        return len(self.read_from) * self.n_envs

    def sequence_minibatch(self, chosen: Rows) -> Samples:
        """The samples of some sequences, time first."""
        part, env = np.divmod(chosen, self.n_envs)
        rows, episodes = self._piece(part * self.length, env, self.length)
        observations, observation_of = self._distinct(rows)
        state = self.states[on_device(part, self.device), on_device(env, self.device)]
        sequences = Sequences(state, episodes, self._burn_in(part, env))
        return self._samples(rows, observations, observation_of)._replace(sequences=sequences)

    def _burn_in(self, part: Rows, env: Rows) -> BurnIn | None:
        later = np.flatnonzero(part)
        if not self.burn_in or not later.size:
            return None
        rows, episodes = self._piece(self.read_from[part[later]], env[later], self.burn_in)
        observations, observation_of = self._distinct(rows)
        return BurnIn(
            on_device(later, self.device),
            observations,
            on_device(observation_of, self.device),
            episodes,
        )

    def _piece(self, begin: Rows, env: Rows, length: int) -> tuple[Rows, Episodes]:
        """So many timesteps of some environments, time first."""
        step = begin + np.arange(length)[:, None]
        return (step * self.n_envs + env).reshape(-1), Episodes(self.starts[step, env], self.device)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.states.nbytes + self.starts.nbytes

    def _distinct(self, rows: Rows) -> tuple[Any, Rows]:
        """The distinct observations of some rows, and which of them is each row's own."""
        order, first, observation_of = self._arrange(rows)
        own = np.empty_like(rows)
        own[order] = np.arange(len(rows)) if observation_of is None else observation_of
        return self._observations(rows[order][first]), own
