"""Builders of agents and policies from a configuration."""

import warnings
from typing import Any, assert_never

import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from mirl.agents.faults import guard_steps
from mirl.agents.off_policy import OffPolicyAgent, build_off_policy, off_policy_class
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.agents.start_up import load_compiler_late
from mirl.configs.agents import A2CConfig, OffPolicyConfig, OnPolicyConfig, PPOConfig, TQCConfig
from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AnyContextConfig,
    AutoEncoderConfig,
    AutoFusionConfig,
    BaseEncoderConfig,
    NoMemoryConfig,
    TaskIdContextConfig,
)
from mirl.configs.schema import DeviceName, PrecisionName, ResolvedConfig, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.envs.actions import ActionSpace
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.off_policy import OffPolicyFusion
from mirl.policies.routing import (
    advice_auto,
    check_resolvable,
    has_feature_map,
    legacy_input_keys,
    resolve_network,
)

FUSED_ADAM = {"fused": True}
"""Adam with one kernel for all weights instead of several for each."""
NOT_FOR_THE_ALGORITHM = frozenset(
    {"kind", "n_envs", "anneal", "net_arch", "share_features_extractor", "popart", "scale_values"}
)
"""Options of PPO and A2C that are not keyword arguments of the algorithm."""
Agent = PPO | A2C | OffPolicyAgent
Policy = FusionPolicy | OffPolicyFusion


# ------------------------------------------------------------------------------------ configuration


def resolve_auto(config: TrainConfig, observation_space: spaces.Space[Any]) -> ResolvedConfig:
    """Resolve ``auto``: context and encoder from the observation space, the fusion from both.

    This is the only place that does so: everything after it takes a ``ResolvedConfig``.

    Args:
        config: the configuration of a run.
        observation_space: the observation space of its environments, a ``Dict``.

    Returns:
        The configuration with every ``auto`` resolved.

    Raises:
        ConfigError: the observations have no context, site "map" has no feature map to fuse, or the
            chosen fusion lacks an option that is given.
    """
    assert isinstance(observation_space, spaces.Dict), "the observation contract is a Dict"
    # an explicit site "map" is kept, and an explicit encoder without a feature map rejects it
    move_map_site = isinstance(config.encoder, AutoEncoderConfig)
    network = resolve_network(config.network, observation_space, move_map_site=move_map_site)
    assert isinstance(network.context, AnyContextConfig), "it has been resolved"
    if _is_constant(network.context, observation_space):
        # if the observation has no other context, that is the error to report
        check_resolvable(config.network, observation_space)
        raise ConfigError(
            f"context=task_id needs several tasks, and '{network.context.keys[0]}' has one; "
            f"{advice_auto(config.network.context, observation_space)}"
        )
    assert isinstance(network.encoder, BaseEncoderConfig), "it has been resolved"
    # checked last, because the observation may be rejected whatever the sites are
    if "map" in network.chosen_sites and not has_feature_map(network.encoder):
        raise ConfigError(
            f"sites=[map] fuses a feature map, and encoder={network.encoder.kind} has none; "
            "use sites=[vector]"
        )
    resolved = {
        "fusion": network.chosen_fusion.model_dump(),
        "fusion_is_chosen": isinstance(config.fusion, AutoFusionConfig),
        "context": network.context.model_dump(),
        "encoder": network.encoder.model_dump(),
        "sites": network.chosen_sites,
        "observation_keys": network.observation_keys,
    }
    # check that the parts fit together, as for any configuration
    return validate(ResolvedConfig, {**config.model_dump(), **resolved})


def _is_constant(context: AnyContextConfig, space: spaces.Dict) -> bool:
    """Return True if the context is the id of a single task."""
    if not isinstance(context, TaskIdContextConfig):
        return False
    subspace = space[context.key]
    return isinstance(subspace, spaces.Discrete) and bool(subspace.n == 1)


def with_input_keys(config: ResolvedConfig, observation_space: spaces.Space[Any]) -> ResolvedConfig:
    """Add the observation keys to a stored configuration, because old runs did not store them.

    Args:
        config: the configuration of a run.
        observation_space: the observation space of its environments, a ``Dict``.

    Returns:
        The configuration; unchanged if it has ``observation_keys``.
    """
    if config.observation_keys is not None:
        return config
    assert isinstance(observation_space, spaces.Dict), "the observation contract is a Dict"
    keys = legacy_input_keys(observation_space, config.context)
    return config.model_copy(update={"observation_keys": keys})


def resolve_device(name: DeviceName) -> str:
    """Return the torch device that an option names.

    Args:
        name: "cpu", "cuda", or "auto" for CUDA if it is available.

    Returns:
        "cpu" or "cuda".

    Raises:
        ConfigError: CUDA is requested but not available.
    """
    is_available = torch.cuda.is_available()
    if name == "cuda" and not is_available:
        raise ConfigError(
            "device=cuda: torch finds no CUDA device here; use device=cpu or device=auto"
        )
    if name == "auto":
        return "cuda" if is_available else "cpu"
    return name


# ------------------------------------------------------------------------------------------- agents


def build_agent(config: ResolvedConfig, env: SuiteVecEnv, ranks: Ranks = ONE_PROCESS) -> Agent:
    """Build the algorithm of a configuration with MIRL's policy, untrained.

    Args:
        config: the configuration.
        env: the training environments, of this rank.
        ranks: the processes that train the agent.

    Returns:
        The algorithm.

    Raises:
        ConfigError: the algorithm does not fit the environments.
    """
    load_compiler_late()
    device = resolve_device(config.device)
    skip_faults = config.on_fault == "skip"
    match config.agent:
        case OnPolicyConfig():
            return build_on_policy(
                config.agent,
                on_policy_class(config),
                policy_kwargs(config),
                env,
                total_timesteps=config.total_timesteps,
                seed=config.seed,
                device=device,
                precision=config.precision,
                skip_faults=skip_faults,
                ranks=ranks,
            )
        case OffPolicyConfig():
            # a buffer that is never filled would only cost memory
            max_timesteps = config.total_timesteps + config.agent.n_envs * config.agent.train_freq
            buffer_size = min(config.agent.buffer_size, max_timesteps)
            agent = build_off_policy(
                config.agent.model_copy(update={"buffer_size": buffer_size}),
                policy_kwargs(config),
                env,
                seed=config.seed,
                device=device,
            )
            # SB3's own training loop has no rollback, so check each gradient before its step
            guard_steps(agent, skip=skip_faults)
            return agent
        case _:
            assert_never(config.agent)


def build_on_policy(
    config: PPOConfig | A2CConfig,
    policy: type[FusionPolicy],
    policy_kwargs: dict[str, Any],
    env: VecEnv,
    *,
    total_timesteps: int,
    seed: int,
    device: str,
    precision: PrecisionName,
    skip_faults: bool = False,
    ranks: Ranks = ONE_PROCESS,
) -> PPO | A2C:
    """Build PPO or A2C, untrained.

    Args:
        config: the options of the algorithm.
        policy: the class of its policy.
        policy_kwargs: keyword arguments of the policy.
        env: the training environments, ``config.n_envs`` of them over all ranks.
        total_timesteps: timesteps over which the learning rate is annealed.
        seed: seed of the algorithm.
        device: torch device of the policy.
        precision: floating-point precision of the policy.
        skip_faults: undo an update with non-finite weights and continue, instead of raising.
        ranks: the processes that train the agent.

    Returns:
        The algorithm.
    """
    # the other options have the names and meanings of the algorithm's own arguments
    options = config.model_dump(exclude=set(NOT_FOR_THE_ALGORITHM))
    if config.anneal:
        options["learning_rate"] = annealed_rate(config, total_timesteps)
    algorithm: type[PPO] | type[A2C] = PPO if isinstance(config, PPOConfig) else A2C
    with warnings.catch_warnings():
        if ranks.size > 1:  # SB3 compares the batch size with the rollout of a single rank
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        agent = algorithm(
            policy,
            env,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=device,
            precision=precision,
            skip_faults=skip_faults,
            **options,
        )
    agent.use_ranks(ranks)
    return agent


def annealed_rate(config: OnPolicyConfig, total_timesteps: int) -> LinearSchedule:
    """Return the learning rate schedule: the full rate in the first update, then towards zero.

    SB3 computes the remaining progress after a rollout: the first update of a short run would have
    far less than the full rate, and the last one a rate of zero. Here, each update gets the rate
    for the progress at the start of its rollout.

    Args:
        config: the options of the algorithm.
        total_timesteps: timesteps over which the learning rate is annealed.

    Returns:
        The rate as a function of the remaining progress after the rollout.
    """
    rollout = config.rollout_size / total_timesteps
    # start + (1 - remaining) * (0 - start) / fraction, by the definition of LinearSchedule
    return LinearSchedule(config.learning_rate * (1 + rollout), 0.0, 1 + rollout)


# ----------------------------------------------------------------------------------------- policies


def on_policy_class(config: ResolvedConfig) -> type[FusionPolicy]:
    """Return the policy class of PPO and A2C, which is recurrent if ``memory`` is set.

    Args:
        config: the configuration.

    Returns:
        The class.
    """
    if isinstance(config.memory, NoMemoryConfig):
        return FusionPolicy
    return RecurrentFusionPolicy


def policy_kwargs(config: ResolvedConfig) -> dict[str, Any]:
    """Return the keyword arguments of the policy, except for the spaces and the learning rate.

    Args:
        config: the configuration.

    Returns:
        The keyword arguments.
    """
    kwargs: dict[str, Any] = {
        "network": config.network,
        "net_arch": list(config.agent.net_arch),
    }
    match config.agent:
        case OnPolicyConfig():
            kwargs["share_features_extractor"] = config.agent.share_features_extractor
            kwargs["popart"] = config.agent.popart
            kwargs["scale_values"] = config.agent.scale_values
        case OffPolicyConfig():
            # PPO and A2C switch their own optimizers to fused kernels
            kwargs["optimizer_kwargs"] = FUSED_ADAM
            if isinstance(config.agent, TQCConfig):
                kwargs["n_critics"] = config.agent.n_critics
                kwargs["n_quantiles"] = config.agent.n_quantiles
        case _:
            assert_never(config.agent)
    return kwargs


def build_policy(
    config: ResolvedConfig, observation_space: spaces.Dict, action_space: ActionSpace
) -> Policy:
    """Build the policy of a configuration without its algorithm, untrained.

    Args:
        config: the configuration.
        observation_space: the observation space as SB3 trains on it, with channels-first images.
        action_space: the action space.

    Returns:
        The policy.

    Raises:
        ConfigError: the spaces do not fit the configuration.
    """
    load_compiler_late()
    match config.agent:
        case OnPolicyConfig():
            policy_class: type[Policy] = on_policy_class(config)
        case OffPolicyConfig():
            policy_class = off_policy_class(config.agent)
        case _:
            assert_never(config.agent)
    # SB3's policies build an optimizer, which is not used here, so its rate does not matter
    return policy_class(observation_space, action_space, _no_learning_rate, **policy_kwargs(config))


def _no_learning_rate(_progress_remaining: float) -> float:
    return 0.0
