"""Evaluation mode leaves neither the mode nor the random state changed."""

import random

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import MultiInputActorCriticPolicy

from mirl.agents.eval_mode import eval_mode, restored_global_generators

SPACE = spaces.Dict({"observation": spaces.Box(-1, 1, (2,))})


@pytest.fixture
def policy() -> MultiInputActorCriticPolicy:
    return MultiInputActorCriticPolicy(SPACE, spaces.Discrete(2), lambda _: 0.0)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored(policy: MultiInputActorCriticPolicy, training: bool) -> None:
    policy.set_training_mode(training)
    with eval_mode(policy, 0):
        assert not policy.training
    assert policy.training is training


def test_mode_is_restored_after_error(policy: MultiInputActorCriticPolicy) -> None:
    policy.set_training_mode(True)
    with pytest.raises(RuntimeError), eval_mode(policy, 0):
        raise RuntimeError
    assert policy.training


def test_random_state_is_restored(policy: MultiInputActorCriticPolicy) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with eval_mode(policy, 1):
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with eval_mode(policy, 1):
        assert torch.equal(torch.rand(2), first)
    with eval_mode(policy, 2):
        assert not torch.equal(torch.rand(2), first)


def test_global_generators_are_restored() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    with restored_global_generators():
        random.random()
        np.random.random(1000)  # noqa: NPY002
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
