"""Recurrent actor-critic policy: a ``FusionPolicy`` with a hidden state.

Shapes: B rows of a batch, T timesteps and N sequences (or environments), B = T * N time first,
U unique observations, H hidden state.
"""

from typing import NamedTuple, NoReturn, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from mirl.configs.networks import (
    NoMemoryConfig,
    RecurrentConfig,
    RecurrentCoreConfig,
    choose,
)
from mirl.policies.extractor import FusionExtractor
from mirl.policies.features import Features, Observations
from mirl.policies.memory.build import build_core
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes
from mirl.policies.policy import FusionPolicy, latents, to_env_actions

PolicyFeatures = Features | tuple[Features, Features]
"""Features for actor and critic, or a pair if their extractors are separate."""
EpisodeStart = Episodes | Bool[Tensor, "time batch"]

NEEDS_STATE = (
    "RecurrentFusionPolicy expected a hidden state and got none, because Stable-Baselines3's own "
    "algorithms keep no hidden state; train it with mirl.agents.PPO or A2C, and act by "
    "predict(observation, state, episode_start)"
)


class BurnIn(NamedTuple):
    """Timesteps before some sequences, over which their hidden states are recomputed."""

    sequences: Int[Tensor, " some"]
    """Indices of the sequences that have a burn-in, N' of N."""
    observations: Observations
    """(U, ...), the unique observations of the burn-in."""
    inverse: Int[Tensor, " steps"]
    """(T * N',), the index of each timestep's observation, time first."""
    episodes: Episodes
    """Episode starts, (T, N')."""


class Sequences(NamedTuple):
    """N sequences of T timesteps of a rollout."""

    state: Float[Tensor, "batch state"]
    """(N, H), the hidden state that was stored before each sequence, or before its burn-in."""
    episodes: Episodes
    """Episode starts, (T, N)."""
    burn_in: BurnIn | None = None
    """Timesteps before the sequences; None to start from the stored states."""


class RecurrentFusionPolicy(FusionPolicy):
    """Policy for MIRL's PPO and A2C with a recurrent core between features extractor and MLPs.

    It takes the parameters of ``FusionPolicy``, where ``memory`` is "lstm" (the default), "gru",
    "mi_lstm", "fast_weights" or "attention", or its config with options. With
    ``share_features_extractor=False`` actor and critic have a core each.

    The hidden state is one row of numbers per environment; zeros are the state before an episode.

    Raises:
        ConfigError: if the spaces or the options do not fit.

    Examples:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box, Dict
        >>> from mirl.policies import RecurrentFusionPolicy
        >>> space = Dict(observation=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (2,)))
        >>> policy = RecurrentFusionPolicy(space, Box(-1, 1, (4,)), lambda _: 3e-4, memory="gru")
        >>> action, state = policy.predict(space.sample())  # the first timestep of an episode
        >>> action, state = policy.predict(space.sample(), state, episode_start=np.array([False]))
        >>> action.shape, state[0].shape
        ((4,), (1, 128))
    """

    is_recurrent = True
    default_memory = "lstm"

    def _check_memory(self, memory: RecurrentCoreConfig | NoMemoryConfig) -> None:
        choose(memory, RecurrentConfig, RecurrentCoreConfig)

    def _build_mlp_extractor(self) -> None:
        # The cores are built here, because the extractors exist already and the MLPs do not yet.
        self.core = self._build_core(self.pi_features_extractor)
        self.critic_core: Core | None = None
        if not self.share_features_extractor:
            self.critic_core = self._build_core(self.vf_features_extractor)
        # The MLPs take the output of the core.
        self.features_dim = self.core.out_dim
        super()._build_mlp_extractor()

    def _build_core(self, extractor: BaseFeaturesExtractor) -> Core:
        assert isinstance(extractor, FusionExtractor)
        memory = self.network.memory
        assert isinstance(memory, RecurrentCoreConfig)
        return build_core(memory, extractor.features_dim, extractor.context_dim)

    @property
    def state_dim(self) -> int:
        """Return H, the size of the hidden state: the actor's, then that of a separate critic."""
        if self.critic_core is None:
            return self.core.state_dim
        return self.core.state_dim + self.critic_core.state_dim

    def run_cores(
        self,
        features: PolicyFeatures,
        state: Float[Tensor, "batch state"],
        episode_start: EpisodeStart,
    ) -> tuple[PolicyFeatures, Float[Tensor, "batch state"]]:
        """Run the recurrent cores over T timesteps of N sequences.

        Args:
            features: output of ``extract_features`` for T * N observations, time first.
            state: (N, H), the hidden state before the first timestep.
            episode_start: (T, N), the episode starts, at which the state is reset.

        Returns:
            The features with the outputs of the cores; (N, H), the hidden state afterwards.
        """
        if self.critic_core is None:
            assert isinstance(features, Features)
            return run_core(self.core, features, state, episode_start)
        actor_features, critic_features = cast(tuple[Features, Features], features)
        sizes = [self.core.state_dim, self.critic_core.state_dim]
        actor_state, critic_state = state.split(sizes, dim=1)
        actor_features, actor_state = run_core(
            self.core, actor_features, actor_state, episode_start
        )
        critic_features, critic_state = run_core(
            self.critic_core, critic_features, critic_state, episode_start
        )
        # Joined again, so that callers handle one row of numbers per sequence.
        state = torch.cat([actor_state, critic_state], dim=1)
        return (actor_features, critic_features), state

    def run_sequences(
        self, features: PolicyFeatures, inverse: Int[Tensor, " steps"], sequences: Sequences
    ) -> PolicyFeatures:
        """Run the recurrent cores over sequences of a rollout.

        Args:
            features: output of ``extract_features`` for the U unique observations.
            inverse: (T * N,), the index of each timestep's observation, time first.
            sequences: hidden states, episode starts and burn-in.

        Returns:
            The features of T * N timesteps with the outputs of the cores, time first.

        References:
            Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning"
            (R2D2), ICLR 2019, for the burn-in.
        """
        state = sequences.state
        burn_in = sequences.burn_in
        if burn_in is not None:
            # The stored states were computed with the weights at the time of the rollout. The
            # burn-in recomputes them with the current weights, and no gradient flows through it.
            with torch.no_grad():
                unique = self.extract_features(burn_in.observations)
                before = gather_features(unique, burn_in.inverse)
                stored = state.index_select(0, burn_in.sequences)
                _, recomputed = self.run_cores(before, stored, burn_in.episodes)
                state = state.index_copy(0, burn_in.sequences, recomputed)
        gathered = gather_features(features, inverse)
        outputs, _ = self.run_cores(gathered, state, sequences.episodes)
        return outputs

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs | Observations,
        state: Float[Tensor, "batch state"] | None = None,
        episode_start: Episodes | Bool[Tensor, "1 batch"] | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "batch state"]]:
        """Choose actions for one timestep of N environments.

        Args:
            obs: (N, ...) for each key.
            state: (N, H), the hidden state before the timestep.
            episode_start: (1, N), whether an episode starts.
            deterministic: take the most likely action instead of a sample.

        Returns:
            (N, ...), the actions; (N, 1), their values; (N,), their log-probabilities; (N, H), the
            hidden state after the timestep.

        Raises:
            TypeError: if the state is missing; SB3's own algorithms do not keep one.
        """
        if state is None or episode_start is None:
            raise TypeError(NEEDS_STATE)
        features, state = self.run_cores(self.extract_features(obs), state, episode_start)
        latent_pi, latent_vf = latents(self, features)
        distribution = self._get_action_dist_from_latent(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        log_probs = distribution.log_prob(actions)
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        return actions, self.value_net(latent_vf), log_probs, state

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs | Observations, state: Float[Tensor, "batch state"]
    ) -> Float[Tensor, "batch 1"]:
        """Return the values of observations within an episode.

        Args:
            obs: (N, ...) for each key.
            state: (N, H), the hidden states before the observations.
        """
        # The value bootstraps an episode that continues, so no state is reset.
        no_start = Episodes(np.zeros((1, len(state)), np.bool_), self.device)
        features, _ = self.run_cores(self.extract_features(obs), state, no_start)
        _, latent_vf = latents(self, features)
        values: Tensor = self.value_net(latent_vf)
        return values

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> NoReturn:
        """Raise, because the hidden state is missing; MIRL uses ``run_sequences``.

        Args:
            obs: ignored.
            actions: ignored.
        """
        raise TypeError(NEEDS_STATE)

    def get_distribution(self, obs: PyTorchObs) -> NoReturn:
        """Raise, because the hidden state is missing; use ``forward`` or ``predict``.

        Args:
            obs: ignored.
        """
        raise TypeError(NEEDS_STATE)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> NoReturn:
        raise TypeError(NEEDS_STATE)

    def predict(
        self,
        observation: NDArray[np.generic] | dict[str, NDArray[np.generic]],
        state: tuple[NDArray[np.generic], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.generic], tuple[NDArray[np.generic], ...] | None]:
        """Choose actions outside of training, with the interface of SB3's recurrent policies.

        Args:
            observation: one observation, or (N, ...) for each key.
            state: the state that the last call returned; None before the first timestep.
            episode_start: (N,), whether an episode starts, which resets the state.
            deterministic: take the most likely action instead of a sample.

        Returns:
            The actions, and the actor's hidden state for the next call.

        Raises:
            ValueError: if ``state`` or ``episode_start`` does not fit the number of environments.
        """
        self.set_training_mode(False)
        obs, is_vectorized = self.obs_to_tensor(observation)
        n_envs = len(next(iter(cast(dict[str, Tensor], obs).values())))
        size = (n_envs, self.core.state_dim)
        before: tuple[NDArray[np.generic], ...] = (np.zeros(size),)
        if state is not None:
            before = state
        if [np.shape(part) for part in before] != [size]:
            raise ValueError(
                f"expected a state as predict returned it, a tuple of one array {size}, got shapes "
                f"{[np.shape(part) for part in before]}; pass None to start an episode"
            )
        if episode_start is not None:
            starts = np.asarray(episode_start, np.bool_)
        else:
            # Without a state every episode starts here.
            starts = np.asarray(state is None, np.bool_)
        if starts.shape not in ((), (n_envs,)):
            raise ValueError(
                f"expected episode_start for {n_envs} environments, got shape {starts.shape}"
            )
        episodes = Episodes(np.full((1, n_envs), starts), self.device)
        hidden_state = torch.as_tensor(before[0], dtype=torch.float32, device=self.device)
        # Acting needs no values, so neither the critic's extractor nor its core runs.
        with torch.no_grad():
            features = self.extract_features(obs, self.pi_features_extractor)
            features, after = run_core(self.core, features, hidden_state, episodes)
            latent_pi = self.mlp_extractor.forward_actor(features)  # type: ignore[arg-type]
            distribution = self._get_action_dist_from_latent(latent_pi)
            sampled = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        action_shape = cast(tuple[int, ...], self.action_space.shape)
        actions = to_env_actions(self, sampled.reshape(-1, *action_shape))
        if not is_vectorized:
            actions = actions.squeeze(axis=0)
        return actions, (after.cpu().numpy(),)


def gather_features(features: PolicyFeatures, inverse: Int[Tensor, " steps"]) -> PolicyFeatures:
    """Return the features of every timestep, given those of the unique observations.

    Args:
        features: features of U unique observations, or a pair for actor and critic.
        inverse: (B,), the index of each timestep's observation.

    Returns:
        The features of B timesteps.
    """
    if isinstance(features, Features):
        return features.index_select(0, inverse, keep_order=False)
    actor_features, critic_features = features
    return (
        actor_features.index_select(0, inverse, keep_order=False),
        critic_features.index_select(0, inverse, keep_order=False),
    )


def run_core(
    core: Core,
    features: Features,
    state: Float[Tensor, "batch state"],
    episode_start: EpisodeStart,
) -> tuple[Features, Float[Tensor, "batch state"]]:
    """Run a core over T timesteps of N sequences.

    Args:
        core: the core.
        features: features of T * N observations, time first.
        state: (N, H), the hidden state before the first timestep.
        episode_start: (T, N), the episode starts.

    Returns:
        The features with the outputs of the core; (N, H), the hidden state afterwards.
    """
    # (T * N, X) -> (T, N, X)
    sequences = features.vector.unflatten(0, tuple(episode_start.shape))
    context = features.context
    outputs, state = core(sequences, state, episode_start, context.values, context.groups)
    # (T, N, O) -> (T * N, O)
    return features._replace(vector=outputs.flatten(0, 1)), state
