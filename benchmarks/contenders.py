"""Agents that ``throughput.py`` measures: the same task, network and hyperparameters.

    python benchmarks/contenders.py mirl --seconds 10
    python benchmarks/contenders.py task=goto_local fusion=film --seconds 10
    python benchmarks/contenders.py synthetic contexts=1024 --seconds 10

Each call trains one agent and prints its throughput as one line of JSON. ``throughput.py
--against`` runs this script in two source trees, so the names of the contenders and the format of
the output must not change.
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch
from gymnasium import spaces
from machine import RSS_UNIT
from minigrid.wrappers import ImgObsWrapper
from peers.tutorial_cnn import FEATURES, extractor
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env as make_sb3_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from synthetic import synthetic_ppo
from torch import Tensor

from mirl.agents import A2C, PPO
from mirl.agents.builder import build_agent, resolve_auto
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.configs.compose import compose_train
from mirl.configs.networks import RecurrentConfig, choose
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.policies import FusionExtractor, FusionPolicy, RecurrentFusionPolicy, count_parameters

ROLLOUT = 8192
"""Timesteps per rollout."""
BATCH = 1024
"""Timesteps per minibatch."""
EPOCHS = 4
"""Passes over each rollout."""
DOOR_KEY = "MiniGrid-DoorKey-8x8-v0"
CORES = ("lstm", "gru", "mi_lstm", "fast_weights", "attention")
"""Recurrent cores, as ``memory=`` names them."""
WARM_UP = 2
"""Iterations before the timing starts."""


class TutorialCnn(BaseFeaturesExtractor):
    """The network of MiniGrid's tutorial "Training Agents using SB3" (minigrid.farama.org).

    Args:
        observation_space: Images of shape (3, 7, 7).
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, FEATURES)
        self.layers = extractor()

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features of images: (B, 3, 7, 7) -> (B, 128)."""
        features: Tensor = self.layers(observations)
        return features


class ImageOnly(VecEnvWrapper):
    """Only the image, as ``ImgObsWrapper`` and SB3's ``VecTransposeImage`` return it.

    Args:
        venv: Environments whose observations hold MiniGrid's view as ``image``, (B, 7, 7, 3).
        flat: Flatten each image to a vector of 147 numbers instead.
    """

    def __init__(self, venv: VecEnv, *, flat: bool = False) -> None:
        if flat:
            space = spaces.Box(0, 10, (147,), np.uint8)
        else:
            space = spaces.Box(0, 255, (3, 7, 7), np.uint8)
        super().__init__(venv, observation_space=space)
        self.flat = flat

    def _image(self, observation: Any) -> Any:
        image = observation["image"]
        if self.flat:
            return image.reshape(len(image), -1)
        # (B, H, W, C) -> (B, C, H, W)
        return np.ascontiguousarray(image.transpose(0, 3, 1, 2))

    def reset(self) -> Any:
        """Reset all environments and return their images."""
        return self._image(self.venv.reset())

    def step_wait(self) -> Any:
        """Return images, rewards, dones and infos of the current step."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for env_index in np.flatnonzero(dones):
            info = infos[env_index]
            image = info["terminal_observation"]["image"]
            info["terminal_observation"] = self._image({"image": image[None]})[0]
        return self._image(observation), rewards, dones, infos


class ThroughputTimer(BaseCallback):
    """Measure timesteps per second after the warm-up, and stop the training when the time is up.

    Args:
        seconds: How long to train after the warm-up.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.iterations = 0
        self.start_time = 0.0
        self.start_timesteps = 0
        self.elapsed = 0.0
        self.percent: dict[str, list[float]] = {}
        """Share of an iteration's time for each of its parts, one value per iteration."""

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        # an off-policy agent collects a timestep per iteration, the first ones without learning
        warm_up = WARM_UP + getattr(self.model, "learning_starts", 0)
        if self.iterations == warm_up:
            self.start_time = now
            self.start_timesteps = self.num_timesteps
        self.iterations += 1
        if self.iterations > warm_up:
            self.elapsed = now - self.start_time
        if isinstance(self.model, PPO | A2C):
            for part, percent in self.model.profiler.percent.items():
                self.percent.setdefault(part, []).append(percent)

    def _on_step(self) -> bool:
        return self.elapsed < self.seconds

    def result(self) -> dict[str, Any]:
        """Return the throughput, the median share of each part, and the memory used."""
        timesteps = self.model.num_timesteps - self.start_timesteps
        # SB3 also counts the timestep at which this callback stops the last rollout
        n_steps: int = getattr(self.model, "n_steps", 1)
        timesteps -= timesteps % (n_steps * self.training_env.num_envs)
        peak_cuda_bytes = None
        if torch.cuda.is_available():
            peak_cuda_bytes = torch.cuda.max_memory_allocated()
        return {
            "steps_per_second": timesteps / self.elapsed,
            "timesteps": timesteps,
            "seconds": self.elapsed,
            "percent": {part: float(np.median(shares)) for part, shares in self.percent.items()},
            "precision": getattr(self.model, "precision", "fp32"),
            "parameters": count_parameters(self.model.policy),
            "rollout_bytes": rollout_bytes(getattr(self.model, "rollout_buffer", None)),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT,
            "peak_cuda_bytes": peak_cuda_bytes,
        }


def rollout_bytes(buffer: SB3RolloutBuffer | None) -> int | None:
    """Return the size of a rollout buffer in bytes.

    Args:
        buffer: A buffer of MIRL's or of SB3's; None for an agent without one.
    """
    if buffer is None:
        return None
    if isinstance(buffer, RolloutBuffer):
        return buffer.nbytes
    arrays = dict(vars(buffer))
    if isinstance(buffer.observations, dict):
        arrays |= buffer.observations
    return sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))


# ----------------------------------------------------------------------------------- environments


def make_python_envs(vec_env_cls: type[VecEnv], env_id: str = DOOR_KEY, seed: int = 0) -> VecEnv:
    """Build 16 environments of a MiniGrid task in Python with SB3's own helper.

    Args:
        vec_env_cls: SB3's class of vectorized environments.
        env_id: The registered id of the task.
        seed: The seed of the environments.
    """

    def make(env_id: str) -> gym.Env[Any, Any]:
        return ImgObsWrapper(gym.make(env_id))

    return make_sb3_vec_env(
        make, 16, seed=seed, vec_env_cls=vec_env_cls, env_kwargs={"env_id": env_id}
    )


def make_envpool_envs(
    env_id: str = DOOR_KEY, *, flat: bool = False, seed: int = 0, n_envs: int = 256
) -> VecEnv:
    """Build EnvPool environments of a MiniGrid task.

    Args:
        env_id: The registered id of the task.
        flat: Flatten the images.
        seed: The seed of the environments.
        n_envs: Number of environments.
    """
    return ImageOnly(make_vec_env(env_id, n_envs, backend="envpool", seed=seed), flat=flat)


# ----------------------------------------------------------------------------------------- agents


def tutorial_ppo(algorithm: type[SB3PPO], env: VecEnv, **options: Any) -> OnPolicyAlgorithm:
    """Build PPO with the network of the tutorial.

    Args:
        algorithm: SB3's PPO or MIRL's.
        env: Environments with images as observations.
        **options: Further options of the algorithm.
    """
    options = {
        "seed": 0,
        "n_steps": ROLLOUT // env.num_envs,
        "batch_size": BATCH,
        "n_epochs": EPOCHS,
        **options,
    }
    return algorithm(
        "CnnPolicy", env, policy_kwargs={"features_extractor_class": TutorialCnn}, **options
    )


def tutorial_a2c(algorithm: type[SB3A2C], **options: Any) -> OnPolicyAlgorithm:
    """Build A2C with the network of the tutorial and a gradient step every 8 timesteps.

    Args:
        algorithm: SB3's A2C or MIRL's.
        **options: Further options of the algorithm.
    """
    return algorithm(
        "CnnPolicy",
        make_envpool_envs(),
        n_steps=8,
        policy_kwargs={"features_extractor_class": TutorialCnn},
        seed=0,
        **options,
    )


def small_ppo(algorithm: type[SB3PPO]) -> OnPolicyAlgorithm:
    """Build PPO on flattened images with two tanh layers of 64 each for actor and critic.

    The settings are those of NAVIX: one epoch of eight minibatches over 8192 timesteps.

    Args:
        algorithm: SB3's PPO or MIRL's.
    """
    env = make_envpool_envs(flat=True)
    return algorithm("MlpPolicy", env, n_steps=32, batch_size=1024, n_epochs=1, seed=0)


def sb3_her() -> OffPolicyAlgorithm:
    """Build SB3's SAC with hindsight experience replay and its own network, on FetchReach."""
    gym.register_envs(gymnasium_robotics)
    return SAC(
        "MultiInputPolicy",
        make_sb3_vec_env("FetchReach-v4", 1, seed=0),
        replay_buffer_class=HerReplayBuffer,
        learning_starts=100,
        seed=0,
    )


def agent_of_options(*options: str) -> OnPolicyAlgorithm | OffPolicyAlgorithm:
    """Build the agent of a command line, as ``train.py`` does.

    Args:
        *options: Options of ``train.py``.
    """
    config = compose_train([*options, "progress=false"])
    env = SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend)
    return build_agent(resolve_auto(config, env.observation_space), env)


def mission_ppo(algorithm: type[SB3PPO]) -> OnPolicyAlgorithm:
    """Build PPO with missions and 1024 environments, to measure the memory of its rollouts.

    Args:
        algorithm: SB3's PPO or MIRL's.
    """
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 1024)
    return algorithm(
        FusionPolicy,
        env,
        n_steps=128,
        batch_size=4096,
        n_epochs=1,
        policy_kwargs={"fusion": "bilinear", "sites": ("vector", "heads")},
        seed=0,
    )


def recurrent_ppo(
    algorithm: type[OnPolicyAlgorithm], backend: str, n_envs: int, **policy: Any
) -> OnPolicyAlgorithm:
    """Build recurrent PPO on MemoryS7, with separate networks for actor and critic.

    Args:
        algorithm: sb3-contrib's RecurrentPPO or MIRL's PPO.
        backend: The library that steps the environments.
        n_envs: Number of environments.
        **policy: Further options of the policy.
    """
    return algorithm(
        RecurrentFusionPolicy if algorithm is PPO else "MultiInputLstmPolicy",
        make_vec_env("MiniGrid-MemoryS7-v0", n_envs, backend=backend),
        n_steps=ROLLOUT // n_envs,
        batch_size=BATCH,
        n_epochs=EPOCHS,
        policy_kwargs={"net_arch": [64], "share_features_extractor": False, **policy},
        seed=0,
    )


def contrib_lstm(backend: str, n_envs: int) -> OnPolicyAlgorithm:
    """Build sb3-contrib's RecurrentPPO with MIRL's features extractor.

    Args:
        backend: The library that steps the environments.
        n_envs: Number of environments.
    """
    return recurrent_ppo(
        RecurrentPPO,
        backend,
        n_envs,
        features_extractor_class=FusionExtractor,
        features_extractor_kwargs={"fusion": "bilinear", "sites": ("vector",)},
        lstm_hidden_size=128,
    )


def mirl_recurrent(core: str) -> OnPolicyAlgorithm:
    """Build MIRL's recurrent PPO on EnvPool.

    Args:
        core: The recurrent core, as ``memory=`` names it.
    """
    # without the normalization before the core, which sb3-contrib does not have
    config = type(choose(core, RecurrentConfig))(normalize=False)
    options = {"memory": config, "fusion": "bilinear", "sites": ("vector",)}
    return recurrent_ppo(PPO, "envpool", 256, **options)


def compiled(agent: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """Compile the features extractor of an agent with ``torch.compile``.

    Args:
        agent: The agent, which is changed and returned.
    """
    features_extractor = agent.policy.features_extractor
    features_extractor.forward = torch.compile(features_extractor.forward)
    return agent


def mirl(precision: str = "auto") -> OnPolicyAlgorithm:
    """Build MIRL's PPO with the network of the tutorial, on EnvPool.

    Args:
        precision: The precision of the networks.
    """
    return tutorial_ppo(PPO, make_envpool_envs(), precision=precision)


CONTENDERS: dict[str, Callable[[], OnPolicyAlgorithm | OffPolicyAlgorithm]] = {
    "sb3_her": sb3_her,
    "sb3_dummy": lambda: tutorial_ppo(SB3PPO, make_python_envs(DummyVecEnv)),
    "sb3_subproc": lambda: tutorial_ppo(SB3PPO, make_python_envs(SubprocVecEnv)),
    "sb3_envpool": lambda: tutorial_ppo(SB3PPO, make_envpool_envs()),
    "mirl_fp32": partial(mirl, "fp32"),
    "mirl": mirl,
    "mirl_compiled": lambda: compiled(mirl()),
    "sb3_envpool_a2c": partial(tutorial_a2c, SB3A2C),
    "mirl_a2c": partial(tutorial_a2c, A2C, precision="auto"),
    "sb3_envpool_small": partial(small_ppo, SB3PPO),
    "mirl_small": partial(small_ppo, PPO),
    "contrib_lstm_python": partial(contrib_lstm, "gymnasium", 16),
    "contrib_lstm_envpool": partial(contrib_lstm, "envpool", 256),
    **{f"mirl_{core}": partial(mirl_recurrent, core) for core in CORES},
    "missions_sb3": partial(mission_ppo, SB3PPO),
    "missions_mirl": partial(mission_ppo, PPO),
}
"""Function that builds the agent of each contender."""


def measure(agent: OnPolicyAlgorithm | OffPolicyAlgorithm, seconds: float) -> dict[str, Any]:
    """Train an agent and measure its throughput.

    Args:
        agent: The agent.
        seconds: How long to train after the warm-up.

    Returns:
        The measurement, as ``ThroughputTimer.result`` gives it.
    """
    warnings.simplefilter("ignore")
    timer = ThroughputTimer(seconds)
    agent.learn(10**12, callback=timer)
    return timer.result()


def main() -> None:
    """Measure one contender, or the agent of a command line, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "contender",
        nargs="+",
        help=f"options of train.py, synthetic with sizes, or one of {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--seconds", type=float, default=10, help="after the warm-up")
    arguments = parser.parse_args()
    name, *rest = arguments.contender
    build = CONTENDERS.get(name)
    if name == "synthetic":
        build = partial(synthetic_ppo, *rest)
    elif build is None:
        build = partial(agent_of_options, name, *rest)
    print(json.dumps(measure(build(), arguments.seconds)))  # noqa: T201


if __name__ == "__main__":
    main()
