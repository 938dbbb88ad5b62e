"""SAC, TD3, TQC and DQN, with hindsight experience replay for tasks with goals.

The algorithms are those of Stable-Baselines3 and sb3-contrib, unmodified; the networks are MIRL's.
"""

from collections.abc import Mapping
from typing import Any, assert_never, cast

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import TQC
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import update_learning_rate

from mirl.agents.vec_normalize import check_not_normalized
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
    check_not_normalized(env)
    # the options have the names and meanings of SB3's own arguments, except for the few below
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
    critic_rate = kwargs.pop("critic_learning_rate", None)
    if critic_rate is not None:
        agent = _build(config, kwargs, env, OWN_RATE_CLASSES)
        agent.critic_learning_rate = critic_rate
        return agent
    return _build(config, kwargs, env, CLASSES)


def _build(
    config: OffPolicyAgentConfig,
    kwargs: dict[str, Any],
    env: SuiteVecEnv,
    classes: Mapping[type[OffPolicyConfig], type[Any]],
) -> Any:
    match config:
        case SACConfig():
            return classes[SACConfig](**kwargs)
        case TD3Config():
            action_space = cast(spaces.Box, env.action_space)
            kwargs["action_noise"] = _build_action_noise(config.action_noise, action_space)
            return classes[TD3Config](**kwargs)
        case TQCConfig():
            _check_dropped_quantiles(config)
            # these two are arguments of the policy, not of the algorithm
            del kwargs["n_critics"]
            del kwargs["n_quantiles"]
            kwargs["top_quantiles_to_drop_per_net"] = kwargs.pop("top_quantiles_to_drop")
            return classes[TQCConfig](**kwargs)
        case DQNConfig():
            # an interval below n_envs means the same as n_envs, but SB3 warns of it
            kwargs["target_update_interval"] = max(config.target_update_interval, env.num_envs)
            return dqn_class(env.observation_space)(**kwargs)
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


class OwnCriticRate(OffPolicyAlgorithm):
    """Mixin for SB3's SAC, TD3 and TQC that gives the critics a separate learning rate."""

    critic_learning_rate: float
    """Learning rate of the critics' optimizer."""
    critic: Any
    """The critics, with their optimizer."""

    def _update_learning_rate(
        self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer
    ) -> None:
        super()._update_learning_rate(optimizers)
        update_learning_rate(self.critic.optimizer, self.critic_learning_rate)


class OwnCriticRateSAC(OwnCriticRate, SAC):
    """SAC with a separate learning rate for the critics."""


class OwnCriticRateTD3(OwnCriticRate, TD3):
    """TD3 with a separate learning rate for the critics."""


class OwnCriticRateTQC(OwnCriticRate, TQC):
    """TQC with a separate learning rate for the critics."""


CLASSES: Mapping[type[OffPolicyConfig], type[Any]] = {
    SACConfig: SAC,
    TD3Config: TD3,
    TQCConfig: TQC,
}
"""SB3's class of each actor-critic algorithm."""
OWN_RATE_CLASSES: Mapping[type[OffPolicyConfig], type[Any]] = {
    SACConfig: OwnCriticRateSAC,
    TD3Config: OwnCriticRateTD3,
    TQCConfig: OwnCriticRateTQC,
}
"""The same, with a separate learning rate for the critics."""


class MaskedDQN(DQN):
    """SB3's DQN with random actions limited to the available ones: those with a 1 in the mask.

    ``FusionDQNPolicy`` masks the greedy actions and the values of the next states by
    ``action_mask``. The arguments are those of SB3's DQN.
    """

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return the greedy actions, or random ones at the exploration rate.

        Args:
            observation: one observation, or a batch of them.
            state: not used.
            episode_start: not used.
            deterministic: take the greedy actions.

        Returns:
            The actions and ``state``.
        """
        # numpy's global generator, as in SB3, which seeds it; a checkpoint restores it
        if not deterministic and np.random.rand() < self.exploration_rate:  # noqa: NPY002
            return self._random_actions(observation), state
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts:
            assert self._last_obs is not None, "learn() has reset the environments"
            actions = self._random_actions(self._last_obs)
            return actions, actions
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def _random_actions(self, observation: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """Return one of the available actions for each observation."""
        assert isinstance(observation, dict), "a mask is a key of the observation"
        mask = np.asarray(observation[ACTION_MASK_KEY]).astype(np.int8)
        action_space = cast(spaces.Discrete, self.action_space)
        # (n,) for one observation, (B, n) for a batch
        actions = [action_space.sample(mask=row) for row in np.atleast_2d(mask)]
        return np.array(actions).reshape(mask.shape[:-1])


def dqn_class(observation_space: spaces.Space[Any]) -> type[DQN]:
    """Return the class of DQN: SB3's own, or the one that masks actions.

    Args:
        observation_space: the observation space, which may have the key ``action_mask``.
    """
    if isinstance(observation_space, spaces.Dict) and ACTION_MASK_KEY in observation_space.spaces:
        return MaskedDQN
    return DQN


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
        ConfigError: it does not; the error names the algorithms that do.
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
    try:
        # an environment may refuse to compute a reward from goals alone
        env.check_compute_reward(_steps_before_learning(config))
    except (AttributeError, ConfigError) as error:
        raise ConfigError(
            f"task '{suite.tasks[0].name}': hindsight experience replay: {error}; or use "
            "agent.her=false"
        ) from None


def _check_episodes_fit(config: OffPolicyConfig, max_steps: int) -> None:
    """Check that the longest episode ends before learning starts, and fits into the buffer."""
    # SB3's HerReplayBuffer raises if it is sampled before the first episode has ended
    if _steps_before_learning(config) < max_steps:
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


def _steps_before_learning(config: OffPolicyConfig) -> int:
    """Return each environment's timesteps by the time of the first possible gradient step."""
    return config.learning_starts // config.n_envs + 1


def episode_limit(task: TaskConfig) -> int | None:
    """Return the timesteps after which an episode is truncated.

    Args:
        task: the task.

    Returns:
        The limit; None if the environment does not state one.
    """
    env = make_env(task)
    env.close()
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    return getattr(env.unwrapped, "max_steps", None)  # MiniGrid has its own limit


def _build_action_noise(deviation: float, space: spaces.Box) -> NormalActionNoise | None:
    if not deviation:
        return None
    # SB3 adds the noise to actions that are scaled to [-1, 1]
    return NormalActionNoise(np.zeros(space.shape), np.full(space.shape, deviation))
