"""Batches of observations as the networks take them."""

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor


def batch_of(space: spaces.Dict, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of samples, preprocessed as SB3 does for rollouts."""
    space.seed(seed)
    samples = [space.sample() for _ in range(size)]
    arrays = {
        key: torch.from_numpy(np.stack([np.asarray(one[key]) for one in samples])) for key in space
    }
    result = preprocess_obs(arrays, space)
    assert isinstance(result, dict)
    return result
