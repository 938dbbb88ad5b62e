"""SAC, TD3, TQC and DQN, with hindsight experience replay where the task states a goal.

The algorithms are those of Stable-Baselines3 and sb3-contrib, unmodified; their networks are MIRL's.
"""

from typing import Any, assert_never, cast

import numpy as np
from gymnasium import spaces
from sb3_contrib import TQC
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise

from mirl.configs.agents import (
    AgentConfig,
    DQNConfig,
    OffPolicyConfig,
    SACConfig,
    TD3Config,
    TQCConfig,
)
from mirl.configs.errors import ConfigError
from mirl.configs.keys import ACTION_MASK_KEY, GOAL_KEYS
from mirl.configs.tasks import TaskConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.make import make_env
from mirl.policies.off_policy import (
    FusionDQNPolicy,
    FusionSACPolicy,
    FusionTD3Policy,
    FusionTQCPolicy,
    OffPolicyFusion,
)

OffPolicyAgentConfig = SACConfig | TD3Config | TQCConfig | DQNConfig
OffPolicyAgent = SAC | TD3 | TQC | DQN


def build_off_policy(
    config: OffPolicyAgentConfig,
    policy_kwargs: dict[str, Any],
    env: SuiteVecEnv,
    *,
    seed: int,
    device: str,
) -> OffPolicyAgent:
    """The algorithm that ``config`` names, untrained, over an environment whose ``num_envs`` is ``config.n_envs``.

    :param policy_kwargs: what ``policy_class(config)`` takes, for TQC with ``n_critics`` and ``n_quantiles``.
    :raises ConfigError: when the algorithm does not fit the action space, or HER the suite.
    """
    check_action_space(config, env.action_space)
    if (
        isinstance(env.observation_space, spaces.Dict)
        and ACTION_MASK_KEY in env.observation_space.spaces
    ):
        raise ConfigError(
            f"agent={config.kind} plays any action in any task, and the tasks of suite '{env.suite.name}' have "
            "different numbers of them; use agent=ppo or a2c"
        )
    relabels = config.her and has_goal_keys(env.observation_space)
    if relabels:
        check_her(config, env)
    her = {
        "n_sampled_goal": config.n_sampled_goal,
        "goal_selection_strategy": config.goal_selection_strategy,
    }
    shared: dict[str, Any] = {
        "policy": policy_class(config),
        "env": env,
        "learning_rate": config.learning_rate,
        "buffer_size": config.buffer_size,
        "learning_starts": config.learning_starts,
        "batch_size": config.batch_size,
        "tau": config.tau,
        "gamma": config.gamma,
        "train_freq": config.train_freq,
        "gradient_steps": config.gradient_steps,
        "replay_buffer_class": HerReplayBuffer if relabels else DictReplayBuffer,
        "replay_buffer_kwargs": her if relabels else {},
        "policy_kwargs": policy_kwargs,
        "seed": seed,
        "device": device,
    }
    match config:
        case SACConfig():
            return SAC(ent_coef=config.ent_coef, **shared)
        case TD3Config():
            noise = _action_noise(config.action_noise, cast(spaces.Box, env.action_space))
            return TD3(action_noise=noise, policy_delay=config.policy_delay, **shared)
        case TQCConfig():
            if config.top_quantiles_to_drop >= config.n_quantiles:
                raise ConfigError(
                    f"agent.top_quantiles_to_drop must leave some of agent.n_quantiles={config.n_quantiles}, "
                    f"got {config.top_quantiles_to_drop}"
                )
            return TQC(
                ent_coef=config.ent_coef,
                top_quantiles_to_drop_per_net=config.top_quantiles_to_drop,
                **shared,
            )
        case DQNConfig():
            return DQN(
                exploration_fraction=config.exploration_fraction,
                exploration_final_eps=config.exploration_final_eps,
                # below n_envs it means the same, but SB3 warns of it
                target_update_interval=max(config.target_update_interval, env.num_envs),
                **shared,
            )
        case _:
            assert_never(config)


def policy_class(config: OffPolicyAgentConfig) -> type[OffPolicyFusion]:
    """The class of the algorithm's policy."""
    match config:
        case SACConfig():
            return FusionSACPolicy
        case TD3Config():
            return FusionTD3Policy
        case TQCConfig():
            return FusionTQCPolicy
        case DQNConfig():
            return FusionDQNPolicy
        case _:
            assert_never(config)


def has_goal_keys(space: spaces.Space[Any]) -> bool:
    """Whether observations tell the goal that was wanted and the one that was reached, which HER swaps."""
    return isinstance(space, spaces.Dict) and all(key in space.spaces for key in GOAL_KEYS)


def check_action_space(config: AgentConfig, space: spaces.Space[Any]) -> None:
    """Raise a ConfigError if an off-policy algorithm has no actions of this space, naming those that have."""
    if not isinstance(config, OffPolicyConfig):
        return
    if isinstance(config, DQNConfig) and not isinstance(space, spaces.Discrete):
        fits = "sac, tqc, td3 or ppo" if isinstance(space, spaces.Box) else "ppo or a2c"
        raise ConfigError(
            f"agent=dqn takes discrete actions, and these are {space}; use agent={fits}"
        )
    if not isinstance(config, DQNConfig) and not isinstance(space, spaces.Box):
        fits = "dqn or ppo" if isinstance(space, spaces.Discrete) else "ppo or a2c"
        raise ConfigError(
            f"agent={config.kind} takes continuous actions, and these are {space}; use agent={fits}"
        )


def check_her(config: OffPolicyConfig, env: SuiteVecEnv) -> None:
    """Raise a ConfigError if HER could not relabel this suite, or would be asked to before an episode has ended."""
    suite = env.suite
    if len(suite.tasks) > 1:
        raise ConfigError(
            f"hindsight experience replay computes rewards by one task's rule, and suite '{suite.name}' has "
            f"{len(suite.tasks)} tasks; use agent.her=false"
        )
    longest = episode_limit(suite.tasks[0])
    each = (
        config.learning_starts // config.n_envs + 1
    )  # timesteps of an environment before the first gradient step
    if longest is not None and each < longest:
        raise ConfigError(
            f"agent.learning_starts must let an episode of up to {longest} timesteps end in each of "
            f"{config.n_envs} environments, for hindsight experience replay; use at least "
            f"agent.learning_starts={longest * config.n_envs}, got {config.learning_starts}"
        )
    if longest is not None and config.buffer_size // config.n_envs < longest:
        raise ConfigError(
            f"agent.buffer_size must hold an episode of up to {longest} timesteps of each of {config.n_envs} "
            f"environments, for hindsight experience replay; use at least {longest * config.n_envs}, "
            f"got {config.buffer_size}"
        )
    seen = cast(spaces.Dict, env.observation_space)
    goals = [
        np.zeros((1, *cast(tuple[int, ...], seen[key].shape)), seen[key].dtype) for key in GOAL_KEYS
    ]
    try:
        env.env_method(
            "compute_reward", *goals, [{}], indices=[0]
        )  # it may refuse by itself to judge by goals alone
    except (AttributeError, ConfigError) as error:
        raise ConfigError(f"hindsight experience replay: {error}; or use agent.her=false") from None


def episode_limit(task: TaskConfig) -> int | None:
    """Timesteps after which an episode is cut off, where the environment tells."""
    env = make_env(task)
    env.close()
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    return getattr(env.unwrapped, "max_steps", None)  # MiniGrid counts by itself


def _action_noise(deviation: float, space: spaces.Box) -> NormalActionNoise | None:
    if not deviation:
        return None
    return NormalActionNoise(np.zeros(space.shape), np.full(space.shape, deviation))
