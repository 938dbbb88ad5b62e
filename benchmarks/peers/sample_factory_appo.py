"""Sample Factory's APPO on EnvPool's DoorKey-8x8 with the CNN of MiniGrid's SB3 tutorial.

It samples and learns in turn in one process, as Sample Factory's own EnvPool examples do; on two cores its asynchronous
mode was slower. Policy and value share their two tanh layers of 64, as Sample Factory builds them. 256 environments, 32
steps a rollout, 4 epochs of minibatches of 1,024; all else is its default. Timed are whole training iterations.
"""

import argparse
import tempfile
import time

import envpool
import gymnasium as gym
import numpy as np
import torch
from report import report
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.encoder import Encoder
from sample_factory.train import make_runner
from sample_factory.utils.attr_dict import AttrDict
from tutorial_cnn import FEATURES, extractor

N_ENVS, N_STEPS, N_EPOCHS, BATCH_SIZE = 256, 32, 4, 1024
WARM_UP = 2 * N_ENVS * N_STEPS
"""Timesteps that are not timed."""


class DoorKey(gym.Env):
    """EnvPool's DoorKey as one environment of many agents, channels first, reset where an episode has ended."""

    is_multiagent = True
    num_agents = N_ENVS

    def __init__(self) -> None:
        self.pool = envpool.make_gymnasium("MiniGrid-DoorKey-8x8-v0", num_envs=N_ENVS, seed=1)
        self.observation_space = gym.spaces.Box(0, 255, (3, 7, 7), np.uint8)
        self.action_space = gym.spaces.Discrete(int(self.pool.action_space.n))

    def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:
        return self.pool.reset()[0]["image"].transpose(0, 3, 1, 2), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, object]]:
        observation, reward, terminated, truncated, _ = self.pool.step(np.asarray(action))
        image = observation["image"]
        ended = np.flatnonzero(terminated | truncated)
        if ended.size:
            image[ended] = self.pool.reset(ended)[0]["image"]
        return image.transpose(0, 3, 1, 2), reward, terminated, truncated, {}


def make_doorkey(name: str, cfg: AttrDict, env_config: AttrDict | None, render_mode: str | None = None) -> DoorKey:
    """Sample Factory also calls it in a process of its own, to ask for the spaces; so it stands here."""
    return DoorKey()


class TutorialEncoder(Encoder):
    """The tutorial's extractor."""

    def __init__(self, cfg: AttrDict, obs_space: gym.spaces.Dict) -> None:
        super().__init__(cfg)
        self.layers = extractor()

    def forward(self, obs_dict: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.layers(obs_dict["obs"])

    def get_out_size(self) -> int:
        return FEATURES


class Clock(AlgoObserver):
    """Timesteps learned from, and the seconds that they took; ends the training."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = self.elapsed = 0.0
        self.first = self.timesteps = 0

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        timesteps = sum(runner.env_steps.values())
        if not self.start:
            if timesteps >= WARM_UP:
                self.start, self.first = time.perf_counter(), timesteps
        elif timesteps > self.first + self.timesteps:
            self.elapsed, self.timesteps = time.perf_counter() - self.start, timesteps - self.first
            if self.elapsed >= self.seconds:
                runner.cfg.train_for_env_steps = 0


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    clock = Clock(parser.parse_args().seconds)

    register_env("doorkey", make_doorkey)
    global_model_factory().register_encoder_factory(TutorialEncoder)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "env": "doorkey",
            "device": "cpu",
            "train_dir": folder,
            "batched_sampling": True,
            "num_workers": 1,
            "num_envs_per_worker": 1,
            "worker_num_splits": 1,
            "serial_mode": True,
            "async_rl": False,
            "rollout": N_STEPS,
            "recurrence": 1,
            "use_rnn": False,
            "num_epochs": N_EPOCHS,
            "batch_size": BATCH_SIZE,
            "num_batches_per_epoch": N_ENVS * N_STEPS // BATCH_SIZE,
            "obs_scale": 255.0,
            "normalize_input": False,
            "nonlinearity": "tanh",
        }
        words = [f"--{key}={value}" for key, value in settings.items()]
        words += ["--decoder_mlp_layers", "64", "64"]
        _, runner = make_runner(parse_full_cfg(parse_sf_args(words)[0], words))
        runner.register_observer(clock)
        runner.init()
        runner.run()
    report(
        "sample-factory",
        clock.timesteps,
        clock.elapsed,
        ("envpool", "torch"),
        environment="MiniGrid-DoorKey-8x8-v0",
        observation="image 7 x 7 x 3",
        network="CNN of MiniGrid's SB3 tutorial, tanh layers shared",
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
