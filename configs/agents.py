"""Schema of the algorithms. Names and meanings are those of Stable-Baselines3."""

import math
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mirl.configs.config import Config, Widths
from mirl.configs.errors import ConfigError

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
"""A number between 0 and 1, both included."""


MIN_UPDATES = 16
"""Number of updates below which PPO chooses a smaller rollout by default."""
MIN_ENVS = 16
"""Minimum number of parallel environments that PPO chooses for a short run."""
MIN_BATCH_SIZE = 256
"""Smallest minibatch that PPO chooses for a short run, in timesteps."""
MIN_DIVISOR = 64
"""Smallest minibatch that PPO chooses for a rollout that its default does not divide."""
ROLLOUT_OPTIONS = frozenset({"n_envs", "n_steps", "batch_size"})
"""Options of PPO that a short run changes if none of them is given."""


# ---------------------------------------------------------------------------------------- on-policy


class OnPolicyConfig(Config):
    """Options shared by PPO and A2C."""

    n_envs: PositiveInt = 128
    """Number of parallel environments, over all tasks.

    PPO takes fewer by default, with smaller minibatches, if less than 16 rollouts fit into
    ``total_timesteps``.
    """
    n_steps: PositiveInt = 32
    """Timesteps per environment in each rollout."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the optimizer."""
    anneal: bool = True
    """Decrease the learning rate linearly to zero over ``total_timesteps``."""
    gamma: UnitInterval = 0.99
    """Discount factor."""
    gae_lambda: UnitInterval = 0.95
    """λ of generalized advantage estimation (GAE).

    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    ICLR 2016.
    """
    ent_coef: NonNegativeFloat = 0.01
    """Coefficient of the entropy bonus in the loss."""
    vf_coef: NonNegativeFloat = 0.5
    """Coefficient of the value loss in the loss."""
    max_grad_norm: PositiveFloat = 0.5
    """Maximum norm of the gradient; larger gradients are clipped."""
    normalize_advantage: bool = True
    """Normalize the advantages to mean 0 and standard deviation 1."""
    sequence_length: NonNegativeInt = 0
    """Timesteps of the sequences that a recurrent core is trained on (truncated backpropagation
    through time), a divisor of ``n_steps``; 0 for ``n_steps``."""
    burn_in: NonNegativeInt = 0
    """Timesteps before each sequence over which its initial hidden state is recomputed with the
    current weights, without gradients; 0 to start from the stored hidden state.

    Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning" (R2D2),
    ICLR 2019.
    """
    net_arch: Widths = (64,)
    """Hidden layers of the policy network and of the value network, after the features
    extractor."""
    share_features_extractor: bool = True
    """Share one features extractor between actor and critic; false for one each."""
    scale_values: bool = True
    """Learn values in units of the root mean square of the returns if that exceeds 1, so that large
    rewards do not drown the policy's gradients. Without effect with ``popart``."""
    popart: bool = False
    """Normalize the value targets per task (PopArt), for tasks with rewards of different scales.

    Hessel et al., "Multi-Task Deep Reinforcement Learning with PopArt", AAAI 2019.
    """
    advantages_per_task: bool = False
    """Normalize the advantages per task over the whole rollout; requires
    ``normalize_advantage``."""
    advantage_floor: NonNegativeFloat = 0.02
    """Smallest standard deviation that normalized advantages are divided by, as a fraction of the
    root mean square of the rollout's returns; 0 for none. If an agent no longer fails, its
    advantages are mostly errors of its value function, which should not be scaled up."""
    pcgrad: bool = False
    """Project each task's gradient onto the normal plane of the gradients that conflict with it
    (PCGrad).

    Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020.
    """
    conflict_every: NonNegativeInt = 20
    """Iterations between measurements of the conflict between the tasks' gradients; 0 for
    none."""

    @model_validator(mode="after")
    def _advantages_can_be_normalized(self) -> Self:
        # a single sample has no standard deviation
        if self.normalize_advantage and self.rollout_size < 2:
            raise ValueError(
                f"normalize_advantage needs n_envs × n_steps of at least 2, got {self.rollout_size}"
            )
        if self.advantages_per_task and not self.normalize_advantage:
            raise ValueError(
                "advantages_per_task needs normalize_advantage=true, got normalize_advantage=false"
            )
        return self

    @model_validator(mode="after")
    def _sequences_divide_the_rollout(self) -> Self:
        check_sequences(self.n_steps, self.sequence_length, self.burn_in)
        return self

    @property
    def rollout_size(self) -> int:
        """Return the number of timesteps of one rollout, over all environments."""
        return self.n_envs * self.n_steps


def _fitting_batch(rollout_size: int, batch_size: int) -> int:
    """Return the largest divisor of a rollout up to a size; that size if no divisor is suitable.

    A rollout below that size is one minibatch.
    """
    if rollout_size <= batch_size:
        return rollout_size
    for size in range(batch_size, MIN_DIVISOR - 1, -1):
        if rollout_size % size == 0:
            return size
    return batch_size


class PPOConfig(OnPolicyConfig):
    """Proximal policy optimization (PPO)."""

    kind: Literal["ppo"] = "ppo"
    batch_size: PositiveInt = 512
    """Timesteps per minibatch, a divisor of ``n_envs × n_steps``. If not given and 512 is not a
    divisor, it is the largest one below, unless that is less than 64."""
    n_epochs: PositiveInt = 4
    """Passes over each rollout."""
    clip_range: PositiveFloat = 0.2
    """ε of the clipped objective.

    Schulman et al., "Proximal Policy Optimization Algorithms", 2017.
    """
    kl_coef: NonNegativeFloat = 0.1
    """Coefficient of the KL divergence from the policy of the rollout in the loss; 0 for none. It
    restrains what the clipped objective does not: if all actions are right, no advantage opposes
    the entropy bonus or leftover momentum."""
    target_kl: PositiveFloat | None = None
    """End an update before a minibatch whose approximate KL divergence from the policy of the
    rollout exceeds 1.5 times this value; null for no limit."""

    @model_validator(mode="after")
    def _batch_size_divides_the_rollout(self) -> Self:
        if "batch_size" not in self.model_fields_set:
            # not an assignment, which would mark it as a given option
            self.__dict__["batch_size"] = _fitting_batch(self.rollout_size, self.batch_size)
        # a smaller last minibatch would give its samples more weight; SB3 warns about it
        if self.rollout_size % self.batch_size:
            divisor = math.gcd(self.rollout_size, self.batch_size)
            if divisor == 1:  # minibatches of one timestep are rejected below
                divisor = self.rollout_size
            raise ValueError(
                f"batch_size must divide the rollout, n_envs × n_steps = {self.rollout_size}, "
                f"got {self.batch_size}; use for example agent.batch_size={divisor}"
            )
        # the advantages of a single sample cannot be normalized
        if self.batch_size == 1:
            raise ValueError("batch_size must be at least 2, got 1")
        return self

    def fit_rollout(self, total_timesteps: int, n_tasks: int) -> Self:
        """Return the options with a rollout that gives a short run ``MIN_UPDATES`` updates.

        If ``n_envs``, ``n_steps`` or ``batch_size`` are given, they are never changed.

        Args:
            total_timesteps: timesteps of the run.
            n_tasks: number of trained tasks, each of which needs an environment.
        """
        if self.model_fields_set & ROLLOUT_OPTIONS:
            return self
        n_envs = self.n_envs
        while total_timesteps < MIN_UPDATES * n_envs * self.n_steps:
            if n_envs // 2 < max(MIN_ENVS, n_tasks):
                break
            n_envs //= 2
        # all three are powers of two, so that minibatches divide the rollout
        batch_size = min(self.batch_size, max(MIN_BATCH_SIZE, n_envs * self.n_steps // 4))
        return self.model_copy(update={"n_envs": n_envs, "batch_size": batch_size})

    def with_rollout_of(self, other: "PPOConfig") -> Self:
        """Return the options with the rollout of another agent, unless other values are given.

        Args:
            other: the agent of the run to resume. If a given option differs from it, nothing is
                changed.
        """
        given = self.model_fields_set & ROLLOUT_OPTIONS
        if any(getattr(self, name) != getattr(other, name) for name in given):
            return self
        return self.model_copy(update={name: getattr(other, name) for name in ROLLOUT_OPTIONS})


class A2CConfig(OnPolicyConfig):
    """Advantage actor-critic (A2C): one gradient step per rollout.

    λ = 1 and no normalization of the advantages, as in Stable-Baselines3.
    """

    kind: Literal["a2c"] = "a2c"
    n_envs: PositiveInt = 64
    """Number of parallel environments, over all tasks."""
    n_steps: PositiveInt = 8
    """Timesteps per environment in each rollout."""
    learning_rate: PositiveFloat = 7e-4
    """Learning rate of the optimizer."""
    gae_lambda: UnitInterval = 1.0
    """λ of generalized advantage estimation (GAE)."""
    normalize_advantage: bool = False
    """Normalize the advantages to mean 0 and standard deviation 1."""
    rms_prop_eps: PositiveFloat = 1e-5
    """ε of RMSprop, added to the denominator for numerical stability."""


# --------------------------------------------------------------------------------------- off-policy


class OffPolicyConfig(Config):
    """Options shared by SAC, TD3, TQC and DQN.

    The algorithms are Stable-Baselines3's own, with MIRL's networks.
    """

    n_envs: PositiveInt = 1
    """Number of parallel environments, over all tasks."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the optimizers."""
    buffer_size: PositiveInt = 1_000_000
    """Capacity of the replay buffer, in timesteps."""
    learning_starts: NonNegativeInt = 1_000
    """Timesteps of random actions before the first gradient step."""
    batch_size: PositiveInt = 256
    """Timesteps per minibatch."""
    tau: UnitInterval = 0.05
    """Coefficient of the soft update of the target network (Polyak averaging); 1 copies the
    weights."""
    gamma: UnitInterval = 0.95
    """Discount factor."""
    train_freq: PositiveInt = 1
    """Timesteps per environment between updates."""
    gradient_steps: Literal[-1] | PositiveInt = -1
    """Gradient steps per update; -1 for as many as there were timesteps since the last update."""
    her: bool = True
    """Use hindsight experience replay (HER) in tasks with goals: replay transitions also with
    achieved goals in place of the desired goal.

    Andrychowicz et al., "Hindsight Experience Replay", NeurIPS 2017.
    """
    n_sampled_goal: PositiveInt = 4
    """Virtual transitions (with an achieved goal) per real transition in hindsight experience
    replay."""
    goal_selection_strategy: Literal["future", "final", "episode"] = "future"
    """Achieved goals to relabel with: those later in the episode, its last one, or any of the
    episode."""
    net_arch: Widths = (256, 256)
    """Hidden layers of the actor and of each critic, after the features extractor."""


class ActorCriticConfig(OffPolicyConfig):
    """Options shared by SAC, TD3 and TQC."""

    critic_learning_rate: PositiveFloat | None = None
    """Learning rate of the critics' optimizer; None for ``learning_rate``."""


class SACConfig(ActorCriticConfig):
    """Soft actor-critic (SAC), for continuous actions."""

    kind: Literal["sac"] = "sac"
    ent_coef: NonNegativeFloat | Literal["auto"] = "auto"
    """Entropy coefficient; ``auto`` to learn it."""


class TD3Config(ActorCriticConfig):
    """Twin delayed deep deterministic policy gradient (TD3), for continuous actions."""

    kind: Literal["td3"] = "td3"
    action_noise: NonNegativeFloat = 0.1
    """Standard deviation of the Gaussian exploration noise, for actions scaled to [-1, 1]."""
    policy_delay: PositiveInt = 2
    """Updates of the critics per update of the actor."""


class TQCConfig(ActorCriticConfig):
    """Truncated quantile critics (TQC), for continuous actions."""

    kind: Literal["tqc"] = "tqc"
    ent_coef: NonNegativeFloat | Literal["auto"] = "auto"
    """Entropy coefficient; ``auto`` to learn it."""
    n_critics: PositiveInt = 2
    """Number of critics."""
    n_quantiles: PositiveInt = 25
    """Quantiles per critic."""
    top_quantiles_to_drop: NonNegativeInt = 2
    """Largest quantiles per critic to drop from the target."""


class DQNConfig(OffPolicyConfig):
    """Deep Q-network (DQN), for discrete actions."""

    kind: Literal["dqn"] = "dqn"
    learning_rate: PositiveFloat = 5e-4
    """Learning rate of the optimizer."""
    exploration_fraction: UnitInterval = 0.1
    """Fraction of the training over which the exploration rate ε decreases."""
    exploration_final_eps: UnitInterval = 0.05
    """Final exploration rate ε, the probability of a random action."""
    target_update_interval: PositiveInt = 1
    """Timesteps between updates of the target network."""


AgentConfig = PPOConfig | A2CConfig | SACConfig | TD3Config | TQCConfig | DQNConfig


def check_sequences(n_steps: int, sequence_length: int, burn_in: int) -> None:
    """Check that rollouts can be cut into sequences.

    Args:
        n_steps: timesteps per environment and rollout.
        sequence_length: timesteps per sequence; 0 for ``n_steps``.
        burn_in: timesteps before each sequence that recompute its hidden state.

    Raises:
        ConfigError: if the sequences do not divide the rollout, or ``burn_in`` is longer than the
            preceding sequence.
    """
    if sequence_length and n_steps % sequence_length:
        raise ConfigError(f"sequence_length must divide n_steps={n_steps}, got {sequence_length}")
    max_burn_in = sequence_length
    remedy = ""
    if sequence_length in (0, n_steps):  # one sequence per rollout, so no other precedes it
        max_burn_in = 0
        remedy = f"; a sequence_length below n_steps={n_steps} makes room for it"
    if burn_in > max_burn_in:
        raise ConfigError(
            f"burn_in reads timesteps of the sequence before, at most {max_burn_in}, got {burn_in}"
            f"{remedy}"
        )


def check_minibatches(
    batch_size: int,
    length: int,
    n_steps: int,
    n_envs: int,
    prefix: str = "",
) -> None:
    """Check that minibatches consist of whole sequences.

    The error suggests the largest batch size up to ``batch_size`` that does (or one sequence), and
    a shorter sequence length if there is one.

    Args:
        batch_size: timesteps per minibatch.
        length: timesteps per sequence.
        n_steps: timesteps per environment and rollout.
        n_envs: number of parallel environments.
        prefix: text before the names of the options in the error, e.g. ``agent.``.

    Raises:
        ConfigError: if ``batch_size`` is not a multiple of ``length``.
    """
    if batch_size % length == 0:
        return
    n_sequences = n_steps // length * n_envs
    # largest number of sequences that fits into a minibatch and divides the rollout
    n_per_batch = 1
    for candidate in range(1, batch_size // length + 1):
        if n_sequences % candidate == 0:
            n_per_batch = candidate
    remedies = f"{prefix}batch_size={length * n_per_batch}"
    # a sequence length that divides both the rollout and the minibatch
    shorter = math.gcd(n_steps, batch_size)
    if shorter > 1:
        remedies += f" or {prefix}sequence_length={shorter}"
    raise ConfigError(
        f"{prefix}batch_size must be a multiple of a sequence's {length} timesteps, "
        f"got {batch_size}; use {remedies}"
    )
