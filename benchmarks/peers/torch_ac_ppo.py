"""Measure torch-ac's PPO on MiniGrid's DoorKey-8x8 with the CNN of MiniGrid's SB3 tutorial.

torch-ac takes a list of Python environments, one process each, so it cannot use EnvPool. 16
environments, 128 steps per rollout, 4 epochs of minibatches of 1,024. One torch thread: on two
cores, a second one competes with the environments for a core and is far slower. Whole iterations
are timed, after the first.
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
from tutorial_cnn import DOOR_KEY, TUTORIAL, extractor, head

N_ENVS = 16
N_STEPS = 128
N_EPOCHS = 4
BATCH_SIZE = 1024


class TutorialModel(nn.Module, ACModel):
    """The network of the tutorial as a model of torch-ac.

    Args:
        n_actions: Number of actions.
    """

    recurrent = False

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.extractor = extractor()
        self.actor = head(n_actions)
        self.critic = head(1)

    def forward(self, images: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Return the action distribution and the values, (B,).

        Args:
            images: Images of shape (B, 3, 7, 7).
        """
        features = self.extractor(images)
        values = self.critic(features).squeeze(1)  # (B, 1) -> (B,)
        return Categorical(logits=self.actor(features)), values


def to_images(
    observations: Sequence[np.ndarray], device: torch.device | None = None
) -> torch.Tensor:
    """Return observations as images in 0..1.

    Args:
        observations: B images of bytes, each of shape (H, W, C).
        device: The device of the images.
    """
    images = torch.from_numpy(np.stack(observations)).to(device)
    # (B, H, W, C) -> (B, C, H, W)
    return images.permute(0, 3, 1, 2) / 255


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    limit = parser.parse_args().seconds

    torch.set_num_threads(1)
    envs = [ImgObsWrapper(gym.make(DOOR_KEY)) for _ in range(N_ENVS)]
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
    experiences, _ = algo.collect_experiences()
    algo.update_parameters(experiences)

    timesteps = 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < limit:
        experiences, _ = algo.collect_experiences()
        algo.update_parameters(experiences)
        timesteps += algo.num_frames
    report(
        "torch-ac",
        timesteps,
        seconds,
        ("minigrid", "torch"),
        **TUTORIAL,
        n_envs=N_ENVS,
        n_steps=N_STEPS,
        n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
