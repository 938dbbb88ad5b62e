"""Measure Sample Factory's APPO on EnvPool's DoorKey-8x8 with the CNN of MiniGrid's SB3 tutorial.

Sampling and learning alternate in one process, as in Sample Factory's own EnvPool examples; its
asynchronous mode was slower on two cores. Policy and value share their two tanh layers of 64, as
Sample Factory builds them. 256 environments, 32 steps per rollout, 4 epochs of minibatches of
1,024; all else is its default. Whole training iterations are timed.
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
from tutorial_cnn import DOOR_KEY, FEATURES, TUTORIAL, extractor

N_ENVS = 256
N_STEPS = 32
N_EPOCHS = 4
BATCH_SIZE = 1024
WARM_UP = 2 * N_ENVS * N_STEPS
"""Timesteps that are not timed."""


class DoorKey(gym.Env):
    """EnvPool's DoorKey as one environment with many agents, channels first, with autoreset."""

    is_multiagent = True
    num_agents = N_ENVS

    def __init__(self) -> None:
        self.pool = envpool.make_gymnasium(DOOR_KEY, num_envs=N_ENVS, seed=1)
        self.observation_space = gym.spaces.Box(0, 255, (3, 7, 7), np.uint8)
        self.action_space = gym.spaces.Discrete(int(self.pool.action_space.n))

    def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:
        """Reset all environments and return their images, (B, C, H, W)."""
        observation, _ = self.pool.reset()
        # (B, H, W, C) -> (B, C, H, W)
        return observation["image"].transpose(0, 3, 1, 2), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, object]]:
        """Step all environments and reset those whose episode has ended.

        Args:
            action: The actions, of shape (B,).

        Returns:
            Images, rewards, terminations, truncations and infos.
        """
        observation, reward, terminated, truncated, _ = self.pool.step(np.asarray(action))
        image = observation["image"]
        ended = np.flatnonzero(terminated | truncated)
        if ended.size > 0:
            initial, _ = self.pool.reset(ended)
            image[ended] = initial["image"]
        # (B, H, W, C) -> (B, C, H, W)
        return image.transpose(0, 3, 1, 2), reward, terminated, truncated, {}


def make_doorkey(
    name: str, cfg: AttrDict, env_config: AttrDict | None, render_mode: str | None = None
) -> DoorKey:
    """Build the environment.

    A module-level function, because Sample Factory also calls it in another process.

    Args:
        name: Unused, like the others.
        cfg: Unused.
        env_config: Unused.
        render_mode: Unused.
    """
    return DoorKey()


class TutorialEncoder(Encoder):
    """The features extractor of the tutorial.

    Args:
        cfg: The configuration of Sample Factory.
        obs_space: Unused.
    """

    def __init__(self, cfg: AttrDict, obs_space: gym.spaces.Dict) -> None:
        super().__init__(cfg)
        self.layers = extractor()

    def forward(self, obs_dict: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the features, (B, 128).

        Args:
            obs_dict: Images of shape (B, 3, 7, 7) as ``obs``.
        """
        return self.layers(obs_dict["obs"])

    def get_out_size(self) -> int:
        """Return the size of the features."""
        return FEATURES


class Timer(AlgoObserver):
    """Count timesteps and seconds after the warm-up, and stop the training when the time is up.

    Args:
        seconds: How long to train after the warm-up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = 0.0
        self.elapsed = 0.0
        self.start_timesteps = 0
        self.timesteps = 0

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Update the counts after a training step.

        Args:
            runner: The training.
            training_iteration_since_resume: Unused.
        """
        timesteps = sum(runner.env_steps.values())
        if self.start == 0.0:
            if timesteps >= WARM_UP:
                self.start = time.perf_counter()
                self.start_timesteps = timesteps
        elif timesteps > self.start_timesteps + self.timesteps:
            self.elapsed = time.perf_counter() - self.start
            self.timesteps = timesteps - self.start_timesteps
            if self.elapsed >= self.seconds:
                runner.cfg.train_for_env_steps = 0


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    timer = Timer(parser.parse_args().seconds)

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
        options = [f"--{key}={value}" for key, value in settings.items()]
        options += ["--decoder_mlp_layers", "64", "64"]
        parser, _ = parse_sf_args(options)
        _, runner = make_runner(parse_full_cfg(parser, options))
        runner.register_observer(timer)
        runner.init()
        runner.run()
    network = f"{TUTORIAL['network']}, tanh layers shared"
    report(
        "sample-factory",
        timer.timesteps,
        timer.elapsed,
        ("envpool", "torch"),
        **{**TUTORIAL, "network": network},
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
