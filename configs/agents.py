"""The schema of agents: how to learn. Names and meanings are Stable-Baselines3's; a field's doc stands under it."""

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

Unit = Annotated[float, Field(ge=0.0, le=1.0)]


# -------------------------------------------------------------------------------------------------------- on-policy


class OnPolicyConfig(Config):
    """What PPO and A2C share."""

    n_envs: PositiveInt = 256
    """Environments stepped together, over all tasks."""
    n_steps: PositiveInt = 32
    """Timesteps per environment and rollout."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of the optimizer."""
    anneal: bool = True
    """Lower the learning rate linearly to zero over ``total_timesteps``."""
    gamma: Unit = 0.99
    """Discount."""
    gae_lambda: Unit = 0.95
    """λ of generalized advantage estimation."""
    ent_coef: NonNegativeFloat = 0.01
    """Weight of the entropy bonus."""
    vf_coef: NonNegativeFloat = 0.5
    """Weight of the value loss."""
    max_grad_norm: PositiveFloat = 0.5
    """Gradients are clipped to this norm."""
    normalize_advantage: bool = True
    """Advantages to mean 0 and deviation 1."""
    sequence_length: NonNegativeInt = 0
    """Timesteps that a memory is trained on in one piece, a divisor of ``n_steps``; 0 for ``n_steps``."""
    burn_in: NonNegativeInt = 0
    """Timesteps before each piece that only bring the memory up to date with the present weights."""
    net_arch: Widths = (64,)
    """Hidden layers of the policy and of the value network, above the features extractor."""
    share_features_extractor: bool = True
    """One trunk for actor and critic, or one each."""
    popart: bool = False
    """Values normalized per task (PopArt), for tasks whose rewards differ in scale."""
    advantages_per_task: bool = False
    """Normalize the advantages of each task by themselves, over the rollout; needs ``normalize_advantage``."""
    pcgrad: bool = False
    """Project the gradients of tasks that conflict onto each other's normal plane (PCGrad)."""
    conflict_every: NonNegativeInt = 20
    """Iterations between two measurements of how the tasks' gradients conflict; 0 for none."""

    @model_validator(mode="after")
    def _rollout_has_a_deviation(self) -> Self:
        if self.normalize_advantage and self.rollout_size < 2:
            raise ValueError("normalize_advantage needs n_envs × n_steps of at least 2, got 1")
        if self.advantages_per_task and not self.normalize_advantage:
            raise ValueError(
                "advantages_per_task has_running_norm the advantages, so normalize_advantage must be true"
            )
        return self

    @model_validator(mode="after")
    def _sequences_tile_the_rollout(self) -> Self:
        check_sequences(self.n_steps, self.sequence_length, self.burn_in)
        return self

    @property
    def rollout_size(self) -> int:
        """Timesteps of one rollout, all environments together."""
        return self.n_envs * self.n_steps


class PPOConfig(OnPolicyConfig):
    """Proximal policy optimization."""

    kind: Literal["ppo"] = "ppo"
    batch_size: PositiveInt = 1024
    """Timesteps per minibatch; it must divide ``n_envs × n_steps``."""
    n_epochs: PositiveInt = 4
    """Passes over each rollout."""
    clip_range: PositiveFloat = 0.2
    """ε of the clipped objective."""

    @model_validator(mode="after")
    def _batch_divides_rollout(self) -> Self:
        if self.rollout_size % self.batch_size:
            raise ValueError(
                f"batch_size must divide the rollout, n_envs × n_steps = {self.rollout_size}, got {self.batch_size}; "
                f"agent.batch_size={math.gcd(self.rollout_size, self.batch_size)} would"
            )
        if self.batch_size == 1:
            raise ValueError("batch_size must be at least 2, got 1")
        return self


class A2CConfig(OnPolicyConfig):
    """Advantage actor-critic: one gradient step per rollout; λ = 1 and raw advantages, as SB3 has them."""

    kind: Literal["a2c"] = "a2c"
    n_envs: PositiveInt = 64
    """Environments stepped together, over all tasks."""
    n_steps: PositiveInt = 8
    """Timesteps per environment and rollout."""
    learning_rate: PositiveFloat = 7e-4
    """Step size of the optimizer."""
    gae_lambda: Unit = 1.0
    """λ of generalized advantage estimation."""
    normalize_advantage: bool = False
    """Advantages to mean 0 and deviation 1."""
    rms_prop_eps: PositiveFloat = 1e-5
    """ε of RMSprop."""


# ------------------------------------------------------------------------------------------------------- off-policy


class OffPolicyConfig(Config):
    """What SAC, TD3, TQC and DQN share; they are Stable-Baselines3's own, with MIRL's networks."""

    n_envs: PositiveInt = 1
    """Environments stepped together, over all tasks."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of the optimizer."""
    buffer_size: PositiveInt = 1_000_000
    """Timesteps that the replay buffer holds."""
    learning_starts: NonNegativeInt = 1_000
    """Timesteps of random play before the first gradient step."""
    batch_size: PositiveInt = 256
    """Timesteps per minibatch."""
    tau: Unit = 0.05
    """Part of the way that the target network moves with each update."""
    gamma: Unit = 0.95
    """Discount."""
    train_freq: PositiveInt = 1
    """Timesteps per environment between two updates."""
    gradient_steps: Literal[-1] | PositiveInt = -1
    """Gradient steps per update; -1 for as many as there were timesteps."""
    her: bool = True
    """Hindsight experience replay, where the task states a goal: what was reached is relabelled as what was wanted."""
    n_sampled_goal: PositiveInt = 4
    """Relabelled timesteps per true one."""
    goal_selection_strategy: Literal["future", "final", "episode"] = "future"
    """Which of the goals reached in an episode to relabel with."""
    net_arch: Widths = (256, 256)
    """Hidden layers of the actor and of each critic, above the features extractor."""


class SACConfig(OffPolicyConfig):
    """Soft actor-critic."""

    kind: Literal["sac"] = "sac"
    ent_coef: NonNegativeFloat | Literal["auto"] = "auto"
    """Weight of the entropy; ``auto`` learns it."""


class TD3Config(OffPolicyConfig):
    """Twin delayed deep deterministic policy gradient."""

    kind: Literal["td3"] = "td3"
    action_noise: NonNegativeFloat = 0.1
    """Deviation of the Gaussian noise on actions, in units of half the action range."""
    policy_delay: PositiveInt = 2
    """Updates of the critics per update of the actor."""


class TQCConfig(OffPolicyConfig):
    """Truncated quantile critics."""

    kind: Literal["tqc"] = "tqc"
    ent_coef: NonNegativeFloat | Literal["auto"] = "auto"
    """Weight of the entropy; ``auto`` learns it."""
    n_critics: PositiveInt = 2
    """Number of critics."""
    n_quantiles: PositiveInt = 25
    """Quantiles of each critic."""
    top_quantiles_to_drop: NonNegativeInt = 2
    """Highest quantiles per critic that the target leaves out."""


class DQNConfig(OffPolicyConfig):
    """Deep Q-network, for discrete actions."""

    kind: Literal["dqn"] = "dqn"
    learning_rate: PositiveFloat = 5e-4
    """Step size of the optimizer."""
    exploration_fraction: Unit = 0.1
    """Part of the training over which random actions become rarer."""
    exploration_final_eps: Unit = 0.05
    """Share of random actions after that."""
    target_update_interval: PositiveInt = 1
    """Timesteps between two moves of the target network."""


AgentConfig = PPOConfig | A2CConfig | SACConfig | TD3Config | TQCConfig | DQNConfig


def check_sequences(n_steps: int, sequence_length: int, burn_in: int) -> None:
    """:raises ConfigError: unless rollouts consist of such sequences, with so many timesteps before each."""
    if sequence_length and n_steps % sequence_length:
        raise ConfigError(f"sequence_length must divide n_steps={n_steps}, got {sequence_length}")
    longest = sequence_length if sequence_length < n_steps else 0
    if burn_in > longest:
        raise ConfigError(
            f"burn_in reads timesteps of the sequence before, at most {longest}, got {burn_in}"
            + ("" if longest else f"; a sequence_length below n_steps={n_steps} makes room for it")
        )


def check_minibatches(
    batch_size: int, length: int, n_steps: int, n_envs: int, prefix: str = ""
) -> None:
    """:raises ConfigError: where minibatches of ``batch_size`` timesteps are no whole sequences, saying what would do.

    It is the largest minibatch up to that size, or one sequence, into which the rollout divides; or shorter sequences.
    """
    if batch_size % length == 0:
        return
    n_sequences = n_steps // length * n_envs
    at_a_time = max(k for k in range(1, max(batch_size // length, 1) + 1) if n_sequences % k == 0)
    shorter = math.gcd(n_steps, batch_size)
    remedies = [f"batch_size={length * at_a_time}"] + [f"sequence_length={shorter}"] * (shorter > 1)
    raise ConfigError(
        f"{prefix}batch_size must be a multiple of a sequence's {length} timesteps, got {batch_size}; "
        + " or ".join(prefix + remedy for remedy in remedies)
        + " would do"
    )
