"""A policy acting beside its training, without a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from stable_baselines3.common.policies import BasePolicy


@contextmanager
def eval_mode(policy: BasePolicy, seed: int) -> Iterator[None]:
    """Within it the policy is in evaluation mode and samples from ``seed``; afterwards all is as before.

    Only the generators in use are saved: ``fork_rng`` by itself would start every GPU of the machine.
    """
    training = policy.training
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            policy.set_training_mode(False)
            yield
    finally:
        policy.set_training_mode(training)
