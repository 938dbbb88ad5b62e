"""Collection of a rollout: Stable-Baselines3's ``collect_rollouts``.

The terminal observations of all truncated episodes are evaluated in one batch, together with the
observations after the rollout. SB3 evaluates each separately.

Shapes: T timesteps, N environments, D truncated episodes of a rollout, H hidden state.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from mirl.agents.on_policy.bit_packing import Values
from mirl.agents.on_policy.minibatch import pad_to_bucket
from mirl.agents.on_policy.precision import autocast
from mirl.agents.on_policy.recurrent_buffer import RecurrentRolloutBuffer
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.agents.on_policy.storage import PolicyInput
from mirl.agents.profiler import IterationProfiler
from mirl.agents.runs.ranks import Ranks
from mirl.configs.schema import PrecisionName
from mirl.policies.memory.episodes import Episodes
from mirl.policies.policy import to_env_actions
from mirl.policies.recurrent import RecurrentFusionPolicy

Observation = Values | Mapping[str, Values]
Info = dict[str, Any]
EPISODE_KEYS = ("task", "episode", "is_success")
"""Keys of an info dictionary that the statistics of episodes read."""


class Truncation(NamedTuple):
    """The end of an episode that was truncated, for example by a time limit."""

    timestep: int
    """The last timestep of the episode in the rollout."""
    env_index: int
    """The environment."""
    observation: Observation
    """The terminal observation, without a batch dimension."""
    hidden_state: Float[Tensor, " state"] | None
    """(H,), the hidden state there; None if the policy is not recurrent."""


class RolloutCollector(OnPolicyAlgorithm):
    """SB3's ``OnPolicyAlgorithm`` with a faster ``collect_rollouts``.

    The rollout is stored as tensors on the training device, and the loop over environments visits
    only those whose episode ended.
    """

    rollout_buffer: RolloutBuffer
    profiler: IterationProfiler
    precision: PrecisionName
    ranks: Ranks
    """The processes that train the agent."""
    hidden_state: Float[Tensor, "n_envs state"] | None = None
    """(N, H), before the next timestep; None if the policy is not recurrent."""

    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Collect a rollout, as SB3's ``collect_rollouts`` does.

        The local variables have the same names and shapes as SB3's, because callbacks read them.

        Args:
            env: the training environments.
            callback: called in each timestep.
            rollout_buffer: the buffer to fill.
            n_rollout_steps: T, timesteps per environment.

        Returns:
            False if the callback stopped the rollout.
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        # Act in evaluation mode, as in SB3: no dropout, no update of batch statistics.
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        self.profiler.start()
        truncations: list[Truncation] = []
        own_episodes: list[Info] = []
        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            with (
                self.profiler.section("forward"),
                torch.no_grad(),
                autocast(self.precision, self.device),
            ):
                observation = self._last_obs
                # Stored first, because the buffer's copy on the device is the policy's input.
                obs_tensor = rollout_buffer.add_observation(observation)  # type: ignore[arg-type]
                actions_tensor, values, log_probs, hidden_state = self._act(obs_tensor)
                # Wait for the actions only; values and log-probabilities stay on the device.
                actions = actions_tensor.cpu().numpy()
            # The buffer keeps the unclipped actions, to which the log-probabilities belong.
            clipped_actions = to_env_actions(self.policy, actions)
            with self.profiler.section("environment"):
                new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs * self.ranks.size
            # Callbacks read new_obs, dones and infos from here.
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            # Only environments whose episode ended have anything to report; SB3 loops over all.
            ended = np.flatnonzero(dones)
            ended_infos = [infos[env_index] for env_index in ended]
            self._update_info_buffer(ended_infos, dones[ended])
            own_episodes += [_summary(info) for info in ended_infos]
            # Bootstrapped after the rollout in one batch. For the reason see SB3 issue #633.
            truncations += find_truncations(n_steps, ended, infos, hidden_state)
            # The episode starts of this timestep: dones are those of the next one.
            rollout_buffer.add(
                actions_tensor, rewards, self._last_episode_starts, values, log_probs
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            self.hidden_state = hidden_state
        with (
            self.profiler.section("forward"),
            torch.no_grad(),
            autocast(self.precision, self.device),
        ):
            terminal_values, last_values = bootstrap_values(
                self.policy,
                truncations,
                cast(Observation, new_obs),  # SB3 allows no tuples
                self.hidden_state,
            )
        if truncations:
            # Before the advantages, which are computed from the rewards.
            rollout_buffer.add_bootstrapped_values(
                [truncation.timestep for truncation in truncations],
                [truncation.env_index for truncation in truncations],
                self.gamma * terminal_values,
            )
        rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        other_episodes = self._other_episodes(own_episodes)
        self._update_info_buffer(other_episodes, np.ones(len(other_episodes), dtype=np.bool_))
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _other_episodes(self, own_episodes: list[Info]) -> list[Info]:
        """Return the episodes that the other ranks have completed in the rollout."""
        others: list[Info] = []
        for rank, episodes in enumerate(self.ranks.gather_objects(own_episodes)):
            if rank != self.ranks.rank:
                others += episodes
        return others

    def _act(self, observation: PolicyInput) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return actions, values, log-probabilities, and the hidden state after the timestep."""
        if self.hidden_state is None:
            return (*self.policy(observation), None)
        assert isinstance(self.rollout_buffer, RecurrentRolloutBuffer)
        assert self._last_episode_starts is not None
        # Before the policy advances it: a sequence starts from the state before its timesteps.
        self.rollout_buffer.store_hidden_state(self.hidden_state, self._last_episode_starts)
        # (N,) -> (1, N), a sequence of one timestep.
        episodes = Episodes(self._last_episode_starts[None], self.device)
        actions, values, log_probs, state = self.policy(observation, self.hidden_state, episodes)
        return actions, values, log_probs, state


def _summary(info: Info) -> Info:
    """Return the parts of an episode's last info that the statistics read."""
    return {name: info[name] for name in EPISODE_KEYS if name in info}


def find_truncations(
    timestep: int,
    ended: NDArray[np.int64],
    infos: Sequence[Mapping[str, object]],
    hidden_state: Float[Tensor, "n_envs state"] | None,
) -> list[Truncation]:
    """Return the episodes that were truncated in a timestep.

    Args:
        timestep: the timestep of the rollout.
        ended: the environments whose episode ended.
        infos: the info dictionary of each environment.
        hidden_state: (N, H), the hidden states after the timestep; None if not recurrent.
    """
    truncations: list[Truncation] = []
    for env_index in ended.tolist():
        info = infos[env_index]
        if not info.get("TimeLimit.truncated", False) or "terminal_observation" not in info:
            continue
        own_state = None
        if hidden_state is not None:
            # A copy: a view would keep the states of all environments alive.
            own_state = hidden_state[env_index].clone()
        observation = cast(Observation, info["terminal_observation"])
        truncations.append(Truncation(timestep, env_index, observation, own_state))
    return truncations


def bootstrap_values(
    policy: ActorCriticPolicy,
    truncations: Sequence[Truncation],
    last_observation: Observation,
    last_hidden_state: Float[Tensor, "n_envs state"] | None,
) -> tuple[Float[Tensor, " truncations"], Float[Tensor, " n_envs"]]:
    """Return the values of terminal observations and of the observations after a rollout.

    Both are computed in one forward pass.

    Args:
        policy: the policy.
        truncations: D truncated episodes.
        last_observation: (N, ...), the observations after the last timestep.
        last_hidden_state: (N, H), the hidden states there; None if not recurrent.

    Returns:
        (D,), the values of the terminal observations; (N,), the values of the last observations.
    """
    n_envs = _batch_size(last_observation)
    # Repeat the last truncation until D is one of few batch sizes. Four sizes per N are enough.
    padded_rows = pad_to_bucket(np.arange(len(truncations)), 4 * n_envs)
    padded = [truncations[row] for row in padded_rows]
    # (D', ...) and (N, ...) -> (D' + N, ...)
    joined = _concatenate([each.observation for each in padded], last_observation)
    observation = obs_as_tensor(joined, policy.device)  # type: ignore[arg-type]
    if last_hidden_state is None:
        values = policy.predict_values(observation).flatten()
    else:
        assert isinstance(policy, RecurrentFusionPolicy)
        states: list[Tensor] = []
        for truncation in padded:
            assert truncation.hidden_state is not None
            states.append(truncation.hidden_state[None])  # (H,) -> (1, H)
        hidden_state = torch.cat([*states, last_hidden_state])
        values = policy.predict_values(observation, hidden_state).flatten()
    # Drop the padding between the two parts.
    return values[: len(truncations)], values[len(padded) :]


def _batch_size(observation: Observation) -> int:
    if isinstance(observation, Mapping):
        observation = next(iter(observation.values()))
    return len(observation)


def _concatenate(single: Sequence[Observation], batch: Observation) -> Observation:
    """Stack single observations, and append a batch of observations."""
    if not isinstance(batch, Mapping):
        return _append(cast(Sequence[Values], single), batch)
    joined: dict[str, Values] = {}
    for key, values in batch.items():
        joined[key] = _append([cast(Mapping[str, Values], each)[key] for each in single], values)
    return joined


def _append(single: Sequence[Values], batch: Values) -> Values:
    if not single:  # np.stack needs at least one array
        return batch
    return np.concatenate([np.stack(single), batch])
