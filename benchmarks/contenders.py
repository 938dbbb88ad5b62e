"""What ``benchmarks/throughput.py`` times: agents at the same task, network and hyperparameters, one per process.

``python benchmarks/contenders.py mirl --seconds 10`` trains one and prints its speed as a line of JSON.
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
import numpy as np
import torch
from gymnasium import spaces
from machine import RSS_UNIT
from minigrid.wrappers import ImgObsWrapper
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env as make_sb3_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor, nn

from mirl.agents import A2C, PPO
from mirl.agents.building import build_agent
from mirl.agents.rollouts import Rollouts
from mirl.configs.compose import compose_train
from mirl.configs.networks import RecurrentConfig, choose
from mirl.envs import SuiteVecEnv, make_vec_env
from mirl.policies import FusionExtractor, FusionPolicy, RecurrentFusionPolicy, count_parameters

ROLLOUT, BATCH, EPOCHS = 8192, 1024, 4
"""Timesteps per rollout and per minibatch, and passes over each rollout; the same for all."""
DOOR_KEY = "MiniGrid-DoorKey-8x8-v0"
MEMORIES = ("lstm", "gru", "mi_lstm", "fast_weights", "attention")
WARM_UP = 2
"""Iterations before the clock starts."""


class TutorialCnn(BaseFeaturesExtractor):
    """The network of MiniGrid's tutorial for Stable-Baselines3 (minigrid.farama.org, "Training Agents using SB3")."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        self.cnn = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], 16, (2, 2)),
            nn.ReLU(),
            nn.Conv2d(16, 32, (2, 2)),
            nn.ReLU(),
            nn.Conv2d(32, 64, (2, 2)),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.linear = nn.Sequential(nn.Linear(64 * 4 * 4, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.linear(self.cnn(observations))
        return features


class ImageOnly(VecEnvWrapper):
    """What ``ImgObsWrapper`` and SB3's ``VecTransposeImage`` make of MiniGrid, over environments stepped by EnvPool."""

    def __init__(self, venv: VecEnv, *, flat: bool = False) -> None:
        shape, high = ((147,), 10) if flat else ((3, 7, 7), 255)
        super().__init__(venv, observation_space=spaces.Box(0, high, shape, np.uint8))
        self.flat = flat

    def _image(self, observation: Any) -> Any:
        image = observation["image"]
        return image.reshape(len(image), -1) if self.flat else np.ascontiguousarray(image.transpose(0, 3, 1, 2))

    def reset(self) -> Any:
        return self._image(self.venv.reset())

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones):
            final = infos[slot]["terminal_observation"]
            infos[slot]["terminal_observation"] = self._image({"image": final["image"][None]})[0]
        return self._image(observation), rewards, dones, infos


class Clock(BaseCallback):
    """Timesteps per second from the end of the warm-up on, and the split of the time where it is logged."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.iterations = seconds, 0
        self.split: dict[str, list[float]] = {}

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        if self.iterations == WARM_UP:
            self.start, self.before = now, self.num_timesteps
        self.iterations += 1
        self.elapsed = now - self.start if self.iterations > WARM_UP else 0.0
        if isinstance(self.model, PPO | A2C):
            for part, percent in self.model.stopwatch.percent.items():
                self.split.setdefault(part, []).append(percent)

    def _on_step(self) -> bool:
        return self.elapsed < self.seconds

    def result(self) -> dict[str, Any]:
        """The speed, and the median share of each part."""
        timesteps = self.model.num_timesteps - self.before
        # an algorithm that counts the timestep that was broken off counts a few too many
        timesteps -= timesteps % (self.model.n_steps * self.training_env.num_envs)  # type: ignore[attr-defined]
        return {
            "steps_per_second": timesteps / self.elapsed,
            "timesteps": timesteps,
            "seconds": self.elapsed,
            "percent": {name: float(np.median(shares)) for name, shares in self.split.items()},
            "precision": getattr(self.model, "precision", "fp32"),
            "parameters": count_parameters(self.model.policy),
            "rollout_bytes": rollout_bytes(self.model.rollout_buffer),  # type: ignore[attr-defined]
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT,
            "peak_cuda_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        }


def rollout_bytes(buffer: RolloutBuffer) -> int:
    """What a rollout holds."""
    if isinstance(buffer, Rollouts):
        return buffer.nbytes
    arrays = {**buffer.observations, **vars(buffer)} if isinstance(buffer.observations, dict) else vars(buffer)
    return sum(array.nbytes for array in arrays.values() if isinstance(array, np.ndarray))


def stock(vec_env_cls: type[VecEnv]) -> Callable[[], VecEnv]:
    """MiniGrid in Python, 16 environments, as SB3's own helper vectorises it."""

    def make(env_id: str) -> gym.Env[Any, Any]:
        return ImgObsWrapper(gym.make(env_id))

    return lambda: make_sb3_vec_env(make, 16, seed=0, vec_env_cls=vec_env_cls, env_kwargs={"env_id": DOOR_KEY})


def pooled(env_id: str = DOOR_KEY, *, flat: bool = False, seed: int = 0) -> Callable[[], VecEnv]:
    """The same environments stepped by EnvPool, 256 of them."""
    return lambda: ImageOnly(make_vec_env(env_id, 256, backend="envpool", seed=seed), flat=flat)


def tutorial_ppo(algorithm: type[SB3PPO], make: Callable[[], VecEnv], **options: Any) -> OnPolicyAlgorithm:
    """PPO with the tutorial's network."""
    env = make()
    return algorithm(
        "CnnPolicy",
        env,
        n_steps=ROLLOUT // env.num_envs,
        batch_size=BATCH,
        n_epochs=EPOCHS,
        policy_kwargs={"features_extractor_class": TutorialCnn},
        **{"seed": 0, **options},
    )


def tutorial_a2c(algorithm: type[SB3A2C], **options: Any) -> OnPolicyAlgorithm:
    """A2C with the tutorial's network, a gradient step every 8 timesteps of 256 environments."""
    kwargs = {"features_extractor_class": TutorialCnn}
    return algorithm("CnnPolicy", pooled()(), n_steps=8, policy_kwargs=kwargs, seed=0, **options)


def small_ppo(algorithm: type[SB3PPO], **options: Any) -> OnPolicyAlgorithm:
    """PPO over the flattened view with two tanh layers of 64 for the actor and two for the critic; NAVIX's settings.

    Those are one epoch of eight minibatches over rollouts of 8192 timesteps.
    """
    env = pooled(flat=True)()
    return algorithm("MlpPolicy", env, n_steps=32, batch_size=1024, n_epochs=1, seed=0, **options)


def configured(*words: str) -> OnPolicyAlgorithm:
    """The agent of a command line, as ``train.py`` builds it."""
    config = compose_train([*words, "progress=false"])
    return build_agent(config, SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend))


def with_missions(algorithm: type[SB3PPO]) -> OnPolicyAlgorithm:
    """A rollout of 1024 environments and 128 timesteps with missions, for the memory that it takes."""
    env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", 1024)
    return algorithm(FusionPolicy, env, n_steps=128, batch_size=4096, n_epochs=1, seed=0)


def recurrent_ppo(algorithm: type[OnPolicyAlgorithm], backend: str, n_envs: int, **policy: Any) -> OnPolicyAlgorithm:
    """PPO on MemoryS7, with a trunk and a memory each for actor and critic: the same networks for both algorithms."""
    shared = {"net_arch": [64], "share_features_extractor": False, **policy}
    return algorithm(
        RecurrentFusionPolicy if algorithm is PPO else "MultiInputLstmPolicy",
        make_vec_env("MiniGrid-MemoryS7-v0", n_envs, backend=backend),
        n_steps=ROLLOUT // n_envs,
        batch_size=BATCH,
        n_epochs=EPOCHS,
        policy_kwargs=shared,
        seed=0,
    )


CONTRIB_LSTM = {"features_extractor_class": FusionExtractor, "lstm_hidden_size": 128}


def remembering(memory: str) -> OnPolicyAlgorithm:
    """MIRL's PPO with a memory, on EnvPool; without the norm before it, which sb3-contrib's has not."""
    config = type(choose(memory, RecurrentConfig))(normalize=False)
    return recurrent_ppo(PPO, "envpool", 256, memory=config, sites=("vector",))


def compiled(agent: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """The same agent, its features extractor compiled by torch."""
    agent.policy.features_extractor.forward = torch.compile(agent.policy.features_extractor.forward)
    return agent


CONTENDERS: dict[str, Callable[[], OnPolicyAlgorithm]] = {
    "sb3_dummy": lambda: tutorial_ppo(SB3PPO, stock(DummyVecEnv)),
    "sb3_subproc": lambda: tutorial_ppo(SB3PPO, stock(SubprocVecEnv)),
    "sb3_envpool": lambda: tutorial_ppo(SB3PPO, pooled()),
    "mirl_fp32": lambda: tutorial_ppo(PPO, pooled()),
    "mirl": lambda: tutorial_ppo(PPO, pooled(), precision="auto"),
    "mirl_compiled": lambda: compiled(tutorial_ppo(PPO, pooled(), precision="auto")),
    "sb3_envpool_a2c": lambda: tutorial_a2c(SB3A2C),
    "mirl_a2c": lambda: tutorial_a2c(A2C, precision="auto"),
    "sb3_envpool_small": lambda: small_ppo(SB3PPO),
    "mirl_small": lambda: small_ppo(PPO),
    "goto_local_concat": lambda: configured("task=goto_local", "fusion=concat"),
    "goto_local_bilinear": lambda: configured("task=goto_local"),
    "goto_local_bilinear_fp32": lambda: configured("task=goto_local", "precision=fp32"),
    "goto_local_bilinear_a2c": lambda: configured("task=goto_local", "agent=a2c"),
    "contrib_lstm_python": lambda: recurrent_ppo(RecurrentPPO, "gymnasium", 16, **CONTRIB_LSTM),
    "contrib_lstm_envpool": lambda: recurrent_ppo(RecurrentPPO, "envpool", 256, **CONTRIB_LSTM),
    **{f"mirl_{memory}": partial(remembering, memory) for memory in MEMORIES},
    "missions_sb3": lambda: with_missions(SB3PPO),
    "missions_mirl": lambda: with_missions(PPO),
}


def measure(agent: OnPolicyAlgorithm, seconds: float) -> dict[str, Any]:
    """Train for so long after the warm-up, and tell how fast."""
    warnings.simplefilter("ignore")
    clock = Clock(seconds)
    agent.learn(10**12, callback=clock)
    return clock.result()


def main() -> None:
    """Train one contender, by its name or by options of train.py, and print its speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", nargs="+", help=f"options of train.py, or one of {', '.join(CONTENDERS)}")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    known = CONTENDERS.get(options.contender[0])
    agent = configured(*options.contender) if known is None else known()
    print(json.dumps(measure(agent, options.seconds)))  # noqa: T201


if __name__ == "__main__":
    main()
