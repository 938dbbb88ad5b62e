"""torch-ac's PPO on MiniGrid's own DoorKey-8x8, each environment a process, with the CNN of MiniGrid's SB3 tutorial.

torch-ac takes a list of Python environments, so EnvPool does not fit. 16 of them, 128 steps a rollout, 4 epochs of
minibatches of 1,024. One torch thread: on two cores a second one spins where an environment needs the core, and is far
slower. Timed are whole iterations, the first left out.
"""

import argparse
import time
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from minigrid.wrappers import ImgObsWrapper
from report import report
from torch import nn
from torch.distributions import Categorical
from torch_ac import ACModel, PPOAlgo
from tutorial_cnn import extractor, head

N_ENVS, N_STEPS, N_EPOCHS, BATCH_SIZE = 16, 128, 4, 1024


class TutorialModel(nn.Module, ACModel):
    """The tutorial's network as torch-ac's model."""

    recurrent = False

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.extractor, self.actor, self.critic = extractor(), head(n_actions), head(1)

    def forward(self, images: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        features = self.extractor(images)
        return Categorical(logits=self.actor(features)), self.critic(features).squeeze(1)


def to_images(observations: Sequence[np.ndarray], device: torch.device | None = None) -> torch.Tensor:
    """(B, H, W, C) of bytes -> (B, C, H, W) in 0..1."""
    return torch.from_numpy(np.stack(observations)).to(device).permute(0, 3, 1, 2) / 255


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    limit = parser.parse_args().seconds

    torch.set_num_threads(1)
    envs = [ImgObsWrapper(gym.make("MiniGrid-DoorKey-8x8-v0")) for _ in range(N_ENVS)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    algo = PPOAlgo(
        envs,
        TutorialModel(int(envs[0].action_space.n)),
        device=torch.device("cpu"),
        num_frames_per_proc=N_STEPS,
        recurrence=1,
        epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
        preprocess_obss=to_images,
    )
    algo.update_parameters(algo.collect_experiences()[0])

    timesteps, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < limit:
        algo.update_parameters(algo.collect_experiences()[0])
        timesteps += algo.num_frames
    report(
        "torch-ac",
        timesteps,
        seconds,
        ("minigrid", "torch"),
        environment="MiniGrid-DoorKey-8x8-v0",
        observation="image 7 x 7 x 3",
        network="CNN of MiniGrid's SB3 tutorial",
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
