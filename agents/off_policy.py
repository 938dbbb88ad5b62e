"""SAC, TD3, TQC and DQN, with hindsight experience replay for tasks with goals.

The algorithms are those of Stable-Baselines3 and sb3-contrib, unmodified; the networks are MIRL's.
"""

from typing import Any, assert_never, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
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
from mirl.envs.contract.descriptions import describe_space
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

NOT_FOR_THE_ALGORITHM = frozenset(
    {"kind", "n_envs", "net_arch", "her", "n_sampled_goal", "goal_selection_strategy"}
)
"""Options of every off-policy algorithm that are not keyword arguments of SB3's class."""


def build_off_policy(
    config: OffPolicyAgentConfig,
    policy_kwargs: dict[str, Any],
    env: SuiteVecEnv,
    *,
    seed: int,
    device: str,
) -> OffPolicyAgent:
    """Build an off-policy algorithm, untrained.

    Args:
        config: the options of the algorithm.
        policy_kwargs: keyword arguments of its policy.
        env: the training environments, ``config.n_envs`` of them.
        seed: seed of the algorithm.
        device: torch device of the policy.

    Returns:
        The algorithm.

    Raises:
        ConfigError: the algorithm does not fit the action space, or HER does not fit the suite.
    """
    check_action_space(config, env.action_space)
    _check_no_action_mask(config, env)
    # the options have the names and meanings of SB3's own arguments, but for the few named below
    kwargs = config.model_dump(exclude=set(NOT_FOR_THE_ALGORITHM))
    kwargs |= {
        "policy": off_policy_class(config),
        "env": env,
        "policy_kwargs": policy_kwargs,
        "replay_buffer_class": DictReplayBuffer,
        "seed": seed,
        "device": device,
    }
    if config.her and has_goal_keys(env.observation_space):
        check_her(config, env)
        kwargs["replay_buffer_class"] = HerReplayBuffer
        kwargs["replay_buffer_kwargs"] = {
            "n_sampled_goal": config.n_sampled_goal,
            "goal_selection_strategy": config.goal_selection_strategy,
        }
    match config:
        case SACConfig():
            return SAC(**kwargs)
        case TD3Config():
            action_space = cast(spaces.Box, env.action_space)
            kwargs["action_noise"] = _build_action_noise(config.action_noise, action_space)
            return TD3(**kwargs)
        case TQCConfig():
            _check_dropped_quantiles(config)
            # these two are arguments of the policy, not of the algorithm
            del kwargs["n_critics"]
            del kwargs["n_quantiles"]
            kwargs["top_quantiles_to_drop_per_net"] = kwargs.pop("top_quantiles_to_drop")
            return TQC(**kwargs)
        case DQNConfig():
            # an interval below n_envs means the same as n_envs, but SB3 warns of it
            kwargs["target_update_interval"] = max(config.target_update_interval, env.num_envs)
            return DQN(**kwargs)
        case _:
            assert_never(config)


def off_policy_class(config: OffPolicyAgentConfig) -> type[OffPolicyFusion]:
    """Return the class of an algorithm's policy.

    Args:
        config: the options of the algorithm.

    Returns:
        The class.
    """
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
    """Return True if observations have the keys that hindsight experience replay relabels.

    Args:
        space: the observation space.

    Returns:
        True if it has a desired and an achieved goal.
    """
    return isinstance(space, spaces.Dict) and all(key in space.spaces for key in GOAL_KEYS)


def check_action_space(config: AgentConfig, space: spaces.Space[Any]) -> None:
    """Check that an algorithm supports an action space.

    Args:
        config: the options of the algorithm; PPO and A2C support every space.
        space: the action space.

    Raises:
        ConfigError: it does not; names the algorithms that do.
    """
    if not isinstance(config, OffPolicyConfig):
        return
    if isinstance(config, DQNConfig) and not isinstance(space, spaces.Discrete):
        others = "ppo or a2c"
        if isinstance(space, spaces.Box):
            others = "sac, tqc, td3 or ppo"
        raise ConfigError(
            f"agent=dqn takes discrete actions, and these are {space}; use agent={others}"
        )
    if not isinstance(config, DQNConfig) and not isinstance(space, spaces.Box):
        others = "ppo or a2c"
        if isinstance(space, spaces.Discrete):
            others = "dqn or ppo"
        raise ConfigError(
            f"agent={config.kind} takes continuous actions, and these are {space}; "
            f"use agent={others}"
        )
    if isinstance(space, spaces.Box) and not (space.low < space.high).all():
        raise ConfigError(
            f"agent={config.kind} scales actions to their bounds, so each lower bound must be "
            f"below the upper one, got {describe_space(space)} with equal bounds; leave out what "
            "cannot change, or use agent=ppo"
        )


def _check_no_action_mask(config: OffPolicyAgentConfig, env: SuiteVecEnv) -> None:
    space = env.observation_space
    if isinstance(space, spaces.Dict) and ACTION_MASK_KEY in space.spaces:
        raise ConfigError(
            f"agent={config.kind} cannot mask actions, and the tasks of suite '{env.suite.name}' "
            "have different numbers of them; use agent=ppo or a2c"
        )


def _check_dropped_quantiles(config: TQCConfig) -> None:
    if config.top_quantiles_to_drop >= config.n_quantiles:
        raise ConfigError(
            "agent.top_quantiles_to_drop must leave some of "
            f"agent.n_quantiles={config.n_quantiles}, got {config.top_quantiles_to_drop}"
        )


def check_her(config: OffPolicyConfig, env: SuiteVecEnv) -> None:
    """Check that hindsight experience replay can relabel a suite.

    Args:
        config: the options of the algorithm.
        env: the training environments.

    Raises:
        ConfigError: the suite has several tasks, its rewards depend on more than the goals, or the
            first gradient step would come before an episode has ended.
    """
    suite = env.suite
    if len(suite.tasks) > 1:
        raise ConfigError(
            "hindsight experience replay computes rewards by one task's rule, and suite "
            f"'{suite.name}' has {len(suite.tasks)} tasks; use agent.her=false"
        )
    max_steps = episode_limit(suite.tasks[0])
    if max_steps is not None:
        _check_episodes_fit(config, max_steps)
    observation_space = cast(spaces.Dict, env.observation_space)
    goals = [_zeros(cast(spaces.Box, observation_space[key])) for key in GOAL_KEYS]
    try:
        # an environment may refuse to compute a reward from goals alone
        env.env_method("compute_reward", *goals, [{}], indices=[0])
    except (AttributeError, ConfigError) as error:
        raise ConfigError(f"hindsight experience replay: {error}; or use agent.her=false") from None


def _check_episodes_fit(config: OffPolicyConfig, max_steps: int) -> None:
    """Check that the longest episode ends before learning starts, and fits into the buffer."""
    # timesteps of each environment when the first gradient step may come
    steps_before_learning = config.learning_starts // config.n_envs + 1
    # SB3's HerReplayBuffer raises if it is sampled before the first episode has ended
    if steps_before_learning < max_steps:
        raise ConfigError(
            f"agent.learning_starts must let an episode of up to {max_steps} timesteps end in each "
            f"of {config.n_envs} environments, for hindsight experience replay; use at least "
            f"agent.learning_starts={max_steps * config.n_envs}, got {config.learning_starts}"
        )
    # SB3 divides the capacity among the environments
    if config.buffer_size // config.n_envs < max_steps:
        raise ConfigError(
            f"agent.buffer_size must hold an episode of up to {max_steps} timesteps of each of "
            f"{config.n_envs} environments, for hindsight experience replay; use at least "
            f"{max_steps * config.n_envs}, got {config.buffer_size}"
        )


def _zeros(space: spaces.Box) -> NDArray[np.generic]:
    """Return a batch (1, ...) of one observation of zeros."""
    return np.zeros((1, *space.shape), space.dtype)


def episode_limit(task: TaskConfig) -> int | None:
    """Return the timesteps after which an episode is truncated.

    Args:
        task: the task.

    Returns:
        The limit; None if the environment states none.
    """
    env = make_env(task)
    env.close()
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    return getattr(env.unwrapped, "max_steps", None)  # MiniGrid has a limit of its own


def _build_action_noise(deviation: float, space: spaces.Box) -> NormalActionNoise | None:
    if not deviation:
        return None
    # SB3 adds the noise to actions that are scaled to [-1, 1]
    return NormalActionNoise(np.zeros(space.shape), np.full(space.shape, deviation))
