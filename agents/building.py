"""From a configuration to an agent, and from a checkpoint to a policy."""

from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from mirl.agents.algorithms import A2C, PPO, build_algorithm
from mirl.agents.checkpoint import find_checkpoint, load_weights
from mirl.agents.run_directory import read_config
from mirl.configs.errors import ConfigError
from mirl.configs.schema import DeviceName, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy


def build_agent(config: TrainConfig, env: SuiteVecEnv) -> PPO | A2C:
    """The algorithm with a ``FusionPolicy``, untrained."""
    return build_algorithm(
        config.agent,
        FusionPolicy,
        policy_kwargs(config),
        env,
        seed=config.seed,
        device=resolve_device(config.device),
        precision=config.precision,
    )


def policy_kwargs(config: TrainConfig) -> dict[str, Any]:
    """What ``FusionPolicy`` takes from the configuration."""
    return {
        "fusion": config.fusion,
        "context": config.context,
        "encoder": config.encoder,
        "sites": config.sites,
        "net_arch": list(config.agent.net_arch),
        "share_features_extractor": config.agent.share_features_extractor,
    }


def resolve_device(name: DeviceName) -> str:
    """``auto`` is CUDA where there is one.

    :raises ConfigError: when CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no CUDA device here; use device=cpu or device=auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_policy(
    run_dir: Path | str,
    which: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    device: DeviceName,
) -> tuple[FusionPolicy, Path]:
    """The policy of a run's checkpoint, ready to act, and the checkpoint's folder.

    :param which: ``best``, ``last`` or a number of timesteps.
    :raises ConfigError: when there is no such run or checkpoint, or the environment's spaces are not those of training.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    checkpoint = find_checkpoint(run_dir / "checkpoints", which)
    policy = FusionPolicy(_as_trained(observation_space), action_space, lambda _: 0.0, **policy_kwargs(config))
    load_weights(checkpoint, policy)
    policy.to(resolve_device(device)).set_training_mode(False)
    return policy, checkpoint


def _as_trained(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space that SB3 trains on: it transposes images to channels first (``VecTransposeImage``)."""
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict(
        {
            key: VecTransposeImage.transpose_space(part, key)
            if isinstance(part, spaces.Box) and is_image_space(part) and not is_image_space_channels_first(part)
            else part
            for key, part in space.items()
        }
    )
