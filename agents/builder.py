"""From a configuration to an agent, and from a checkpoint to a policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mirl.agents.faults import guard_steps
from mirl.agents.off_policy import OffPolicyAgent, build_off_policy, policy_class
from mirl.agents.on_policy.a2c import A2C
from mirl.agents.on_policy.ppo import PPO
from mirl.agents.runs.atomic_files import check_regular
from mirl.agents.runs.checkpoint import POLICY, find_checkpoint, load_weights
from mirl.agents.runs.run import load_config
from mirl.configs.agents import A2CConfig, OffPolicyConfig, OnPolicyConfig, PPOConfig, TQCConfig
from mirl.configs.compose import validate
from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    AutoContextConfig,
    AutoEncoderConfig,
    NoMemoryConfig,
    VectorEncoderConfig,
)
from mirl.configs.schema import DeviceName, PrecisionName, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy, RecurrentFusionPolicy
from mirl.policies.routing import default_context, default_encoder

FUSED = {"optimizer_kwargs": {"fused": True}}
"""Adam with one kernel for all weights instead of several for each."""
SLACK, SPARE = 8, 2**26
"""A policy registers some layers that it replaces, and target networks; bytes per byte of the file, and beside them."""

Agent = PPO | A2C | OffPolicyAgent


def resolve_auto(config: TrainConfig, space: spaces.Space[Any]) -> TrainConfig:
    """The configuration with the context and the encoder that the observations call for, where it says ``auto``.

    :raises ConfigError: when they call for none.
    """
    assert isinstance(space, spaces.Dict), "the observation contract is a Dict"
    context = (
        default_context(space) if isinstance(config.context, AutoContextConfig) else config.context
    )
    if context.kind == "task_id" and len(config.task.tasks) == 1:
        raise ConfigError(
            f"the observations of '{config.task.name}' state neither a goal nor a mission, and a single task has no "
            f"other context: their keys are {sorted(space.spaces)}; name one: context=goal context.key=…"
        )
    encoder, sites = config.encoder, config.sites
    if isinstance(encoder, AutoEncoderConfig):
        encoder = default_encoder(space, context.key, None)
        if isinstance(encoder, VectorEncoderConfig):  # it has no map
            sites = tuple(dict.fromkeys("vector" if site == "map" else site for site in sites))
    parts = {"context": context.model_dump(), "encoder": encoder.model_dump(), "sites": sites}
    return validate(TrainConfig, {**config.model_dump(), **parts})


def build_agent(config: TrainConfig, env: SuiteVecEnv) -> Agent:
    """The algorithm with MIRL's policy, untrained.

    :raises ConfigError: when the algorithm does not fit the environment.
    """
    config = resolve_auto(config, env.observation_space)
    match config.agent:
        case OnPolicyConfig():
            return build_algorithm(
                config.agent,
                on_policy_class(config),
                policy_kwargs(config),
                env,
                seed=config.seed,
                device=resolve_device(config.device),
                precision=config.precision,
                skip_faults=config.on_fault == "skip",
            )
        case OffPolicyConfig():
            # a buffer that is never filled would cost memory for nothing
            most = config.total_timesteps + config.agent.n_envs * config.agent.train_freq
            agent = config.agent.model_copy(
                update={"buffer_size": min(config.agent.buffer_size, most)}
            )
            built = build_off_policy(
                agent,
                policy_kwargs(config),
                env,
                seed=config.seed,
                device=resolve_device(config.device),
            )
            guard_steps(built, skip=config.on_fault == "skip")
            return built
        case _:
            assert_never(config.agent)


def on_policy_class(config: TrainConfig) -> type[FusionPolicy]:
    """The policy of PPO and A2C, with a memory or without."""
    return FusionPolicy if isinstance(config.memory, NoMemoryConfig) else RecurrentFusionPolicy


def policy_kwargs(config: TrainConfig) -> dict[str, Any]:
    """What the policy takes from the configuration."""
    shared: dict[str, Any] = {
        "fusion": config.fusion,
        "context": config.context,
        "encoder": config.encoder,
        "sites": config.sites,
        "net_arch": list(config.agent.net_arch),
    }
    match config.agent:
        case OnPolicyConfig():
            shares = config.agent.share_features_extractor
            memory = {} if isinstance(config.memory, NoMemoryConfig) else {"memory": config.memory}
            return {
                **shared,
                **memory,
                "share_features_extractor": shares,
                "popart": config.agent.popart,
            }
        case TQCConfig():
            quantiles = {
                "n_critics": config.agent.n_critics,
                "n_quantiles": config.agent.n_quantiles,
            }
            return {**shared, **FUSED, **quantiles}
        case OffPolicyConfig():
            return {**shared, **FUSED}
        case _:
            assert_never(config.agent)


def build_policy(
    config: TrainConfig, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> BasePolicy:
    """The policy of the configuration's algorithm for spaces as SB3 trains on them, untrained."""
    config = resolve_auto(config, observation_space)
    match config.agent:
        case OnPolicyConfig():
            return on_policy_class(config)(
                observation_space, action_space, lambda _: 0.0, **policy_kwargs(config)
            )
        case OffPolicyConfig():
            return policy_class(config.agent)(
                observation_space, action_space, lambda _: 0.0, **policy_kwargs(config)
            )
        case _:
            assert_never(config.agent)


def resolve_device(name: DeviceName) -> str:
    """``auto`` is CUDA where there is one.

    :raises ConfigError: when CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda: torch finds no CUDA device here; use device=cpu or device=auto"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_policy(
    run_dir: Path | str,
    which: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    device: DeviceName,
) -> tuple[Any, Path]:
    """The policy of a run's checkpoint, ready to act, and the checkpoint's folder.

    The policy is a ``FusionPolicy`` for PPO and A2C, a ``RecurrentFusionPolicy`` if the run has a memory, and one of
    ``mirl.policies.off_policy`` for the other algorithms.

    :param which: ``best``, ``last`` or a number of timesteps.
    :raises ConfigError: when there is no such run or checkpoint, or the environment's spaces are not those of training.
    """
    run_dir = Path(run_dir)
    config = load_config(run_dir)
    checkpoint = find_checkpoint(run_dir / "checkpoints", which)
    with _no_larger_than(checkpoint / POLICY):
        policy = build_policy(config, _as_trained(observation_space), action_space)
    load_weights(checkpoint, policy)
    policy.to(resolve_device(device)).set_training_mode(False)
    return policy, checkpoint


@contextmanager
def _no_larger_than(weights: Path) -> Iterator[None]:
    """Within it no network is built that is far larger than what a file holds the weights of.

    A configuration from a stranger may ask for any size. Memory that was allocated is not taken before it is written
    to, and each parameter is registered before that.
    """
    check_regular(weights)
    most, registered = SLACK * weights.stat().st_size + SPARE, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal registered
        registered += 0 if parameter is None else parameter.numel() * parameter.element_size()
        if registered > most:
            raise ConfigError(
                f"the configuration asks for a network of more than {registered:,} bytes, and {weights} has "
                f"{weights.stat().st_size:,}"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (
        RuntimeError,
        MemoryError,
        OverflowError,
    ) as error:  # torch cannot allocate what is asked for
        raise ConfigError(
            f"the configuration asks for a network that cannot be built: {error}"
        ) from None
    finally:
        hook.remove()


def _as_trained(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space that SB3 trains on: it transposes images to channels first (``VecTransposeImage``)."""
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict(
        {
            key: VecTransposeImage.transpose_space(part, key)
            if isinstance(part, spaces.Box)
            and is_image_space(part)
            and not is_image_space_channels_first(part)
            else part
            for key, part in space.items()
        }
    )


def build_algorithm(
    config: PPOConfig | A2CConfig,
    policy: type,
    policy_kwargs: dict[str, Any],
    env: VecEnv,
    *,
    seed: int,
    device: str,
    precision: PrecisionName,
    skip_faults: bool = False,
) -> PPO | A2C:
    """The algorithm that ``config`` names, over an environment whose ``num_envs`` is ``config.n_envs``."""
    rate = config.learning_rate
    shared: dict[str, Any] = {
        "learning_rate": LinearSchedule(rate, 0.0, 1.0) if config.anneal else rate,
        "n_steps": config.n_steps,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.ent_coef,
        "vf_coef": config.vf_coef,
        "max_grad_norm": config.max_grad_norm,
        "normalize_advantage": config.normalize_advantage,
        "advantages_per_task": config.advantages_per_task,
        "pcgrad": config.pcgrad,
        "conflict_every": config.conflict_every,
        "sequence_length": config.sequence_length,
        "burn_in": config.burn_in,
        "policy_kwargs": policy_kwargs,
        "seed": seed,
        "device": device,
        "precision": precision,
        "skip_faults": skip_faults,
    }
    match config:
        case PPOConfig():
            return PPO(
                policy,
                env,
                batch_size=config.batch_size,
                n_epochs=config.n_epochs,
                clip_range=config.clip_range,
                **shared,
            )
        case A2CConfig():
            return A2C(policy, env, **shared, rms_prop_eps=config.rms_prop_eps)
        case _:
            assert_never(config)
