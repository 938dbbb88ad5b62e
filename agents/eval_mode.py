"""Evaluation mode of a policy, with its own random generator."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy


@contextmanager
def eval_mode(policy: BasePolicy, seed: int) -> Iterator[None]:
    """Put a policy in evaluation mode with its own random state; restore both on exit.

    Args:
        policy: the policy.
        seed: seed of torch's generators inside the context.
    """
    was_training = policy.training
    # without a list, fork_rng would initialize every GPU of the machine
    devices: list[torch.device] = []
    if policy.device.type == "cuda":
        devices.append(policy.device)
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            policy.set_training_mode(False)
            yield
    finally:
        policy.set_training_mode(was_training)


@contextmanager
def restored_global_generators() -> Iterator[None]:
    """Restore the global generators of Python and numpy, which environments may use, on exit."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
