"""``RecurrentFusionPolicy``: a ``FusionPolicy`` that remembers what it has seen of the episode."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from mirl.configs.networks import MemoryConfig, RecurrentConfig, choose
from mirl.policies.extractor import FusionExtractor
from mirl.policies.features import Features
from mirl.policies.memory.build import build_core
from mirl.policies.memory.core import Core
from mirl.policies.memory.episodes import Episodes
from mirl.policies.policy import FusionPolicy, latents, to_env_actions

STATELESS = (
    "RecurrentFusionPolicy needs what it remembers, which Stable-Baselines3's own algorithms do not keep: train it "
    "with mirl.agents.PPO or A2C, and act by predict(observation, state, episode_start)"
)


class BurnIn(NamedTuple):
    """Timesteps before some of the sequences, which bring their states up to date with the present weights."""

    sequences: Int[Tensor, " some"]
    """Which of the sequences."""
    observations: Any
    rows: Int[Tensor, " steps"]
    """For each timestep, time first, which of the observations is its own."""
    episodes: Episodes


class Sequences(NamedTuple):
    """Whole pieces of rollouts: with what state each begins, and where in it episodes do."""

    state: Float[Tensor, "batch state"]
    episodes: Episodes
    burn_in: BurnIn | None = None


class RecurrentFusionPolicy(FusionPolicy):
    """For MIRL's PPO and A2C: a recurrent core stands between ``FusionPolicy``'s extractor and its MLPs.

    With ``share_features_extractor=False`` actor and critic have a core each. What is remembered is one row of numbers
    per environment; zeros are the memory of nothing.

    :param memory: "lstm", "gru", "mi_lstm", "fast_weights" or "attention", or a frozen config class with its options.
    :param others: as for ``FusionPolicy``.
    :raises ConfigError: when the spaces do not fit.
    """

    is_recurrent = True
    default_memory = "lstm"

    def _check_memory(self, memory: MemoryConfig) -> None:
        choose(memory, RecurrentConfig)

    def _build_mlp_extractor(self) -> None:
        self.core = self._core(self.pi_features_extractor)
        self.critic_core = (
            None if self.share_features_extractor else self._core(self.vf_features_extractor)
        )
        self.features_dim = self.core.out_dim
        super()._build_mlp_extractor()

    def _core(self, extractor: Any) -> Core:
        below = cast(FusionExtractor, extractor)
        memory: RecurrentConfig = choose(self.network.memory, RecurrentConfig)
        return build_core(memory, below.features_dim, below.context_dim)

    @property
    def state_dim(self) -> int:
        """Size of what is remembered of an environment, by the actor and then by a critic of its own."""
        return self.core.state_dim + (0 if self.critic_core is None else self.critic_core.state_dim)

    def run_cores(
        self,
        features: Any,
        state: Float[Tensor, "batch state"],
        episode_start: Episodes | Bool[Tensor, "time batch"],
    ) -> tuple[Any, Float[Tensor, "batch state"]]:
        """The cores, over the features that ``extract_features`` gives of T · N observations, time first."""
        if self.critic_core is None:
            return run_core(self.core, features, state, episode_start)
        of_actor, of_critic = state.split([self.core.state_dim, self.critic_core.state_dim], dim=1)
        actor, of_actor = run_core(self.core, features[0], of_actor, episode_start)
        critic, of_critic = run_core(self.critic_core, features[1], of_critic, episode_start)
        return (actor, critic), torch.cat([of_actor, of_critic], dim=1)

    def run_sequences(
        self, features: Any, rows: Int[Tensor, " steps"], sequences: Sequences
    ) -> Any:
        """What is remembered at each timestep of some sequences, given the features of their distinct observations."""
        state, burn_in = sequences.state, sequences.burn_in
        if burn_in is not None:
            with torch.no_grad():
                before = gather_features(self.extract_features(burn_in.observations), burn_in.rows)
                _, refreshed = self.run_cores(
                    before, state.index_select(0, burn_in.sequences), burn_in.episodes
                )
                state = state.index_copy(0, burn_in.sequences, refreshed)
        remembered, _ = self.run_cores(gather_features(features, rows), state, sequences.episodes)
        return remembered

    def forward(  # type: ignore[override]
        self,
        obs: Any,
        state: Float[Tensor, "batch state"] | None = None,
        episode_start: Episodes | Bool[Tensor, "1 batch"] | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, "batch state"]]:
        """Actions, values, log-probabilities of the actions, and the state after this timestep."""
        if state is None or episode_start is None:
            raise TypeError(STATELESS)
        features, state = self.run_cores(self.extract_features(obs), state, episode_start)
        latent_pi, latent_vf = latents(self, features)
        distribution = self._get_action_dist_from_latent(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        log_probs = distribution.log_prob(actions)
        return (
            actions.reshape((-1, *self.action_space.shape)),  # type: ignore[misc]
            self.value_net(latent_vf),
            log_probs,
            state,
        )

    def predict_values(self, obs: Any, state: Float[Tensor, "batch state"]) -> Tensor:  # type: ignore[override]
        """The values of observations that go on from the states."""
        goes_on = Episodes(np.zeros((1, len(state)), np.bool_), self.device)
        features, _ = self.run_cores(self.extract_features(obs), state, goes_on)
        values: Tensor = self.value_net(latents(self, features)[1])
        return values

    def evaluate_actions(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(STATELESS)

    def get_distribution(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(STATELESS)

    def _predict(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(STATELESS)

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Actions, and what the actor remembers: to be given back at the next timestep.

        :param state: what the last call gave; None for nothing.
        :param episode_start: where an episode starts, what the state says of it is forgotten.
        :raises ValueError: when either is not of as many environments as the observation.
        """
        self.set_training_mode(False)
        observed, vectorized = self.obs_to_tensor(observation)
        batch = len(next(iter(cast(dict[str, Tensor], observed).values())))
        before = (np.zeros((batch, self.core.state_dim)),) if state is None else state
        if [np.shape(part) for part in before] != [(batch, self.core.state_dim)]:
            raise ValueError(
                f"state must be what predict gave, a tuple of one array {(batch, self.core.state_dim)}"
            )
        starts = np.asarray(state is None if episode_start is None else episode_start, np.bool_)
        if starts.shape not in ((), (batch,)):
            raise ValueError(
                f"expected episode_start for {batch} environments, got shape {starts.shape}"
            )
        with torch.no_grad():
            features = self.extract_features(observed, self.pi_features_extractor)
            episodes = Episodes(np.full((1, batch), starts), self.device)
            features, after = run_core(
                self.core,
                features,
                torch.as_tensor(before[0], dtype=torch.float32, device=self.device),
                episodes,
            )
            latent = self.mlp_extractor.forward_actor(features)  # type: ignore[arg-type]
            actions = (
                self._get_action_dist_from_latent(latent)
                .get_actions(deterministic=deterministic)
                .cpu()
                .numpy()
            )
        actions = to_env_actions(
            self, actions.reshape(-1, *cast(tuple[int, ...], self.action_space.shape))
        )
        return actions if vectorized else actions.squeeze(axis=0), (after.cpu().numpy(),)


def gather_features(features: Any, rows: Int[Tensor, " steps"]) -> Any:
    """The features of distinct observations, of actor and critic or of both, for every timestep that has them."""
    if isinstance(features, Features):
        return features.index_select(0, rows, keep_order=False)
    return tuple(gather_features(part, rows) for part in features)


def run_core(
    core: Core,
    features: Features,
    state: Float[Tensor, "batch state"],
    episode_start: Episodes | Bool[Tensor, "time batch"],
) -> tuple[Features, Float[Tensor, "batch state"]]:
    """A core over the features of T · N observations, time first."""
    shape = episode_start.shape
    vectors, state = core(
        features.vector.unflatten(0, tuple(shape)), state, episode_start, *features.context
    )
    return features._replace(vector=vectors.flatten(0, 1)), state
