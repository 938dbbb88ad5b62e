"""Deterministic actions from the parameters of action distributions."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mirl.policies.actions import ToActions, parameters_name

BOUNDS = spaces.Box(np.float32([[-3, 0.5]]), np.float32([[1, 2]]))


def test_box_actions_are_clipped() -> None:
    mean = torch.tensor([[-9.0, 0.0], [0.0, 9.0]])
    actions = ToActions(BOUNDS)(mean)
    np.testing.assert_allclose(actions, [[[-3, 0.5]], [[0, 2]]])


def test_squashed_actions_are_scaled() -> None:
    """The limits of tanh are the bounds, and 0 is the middle between them."""
    mean = torch.tensor([[-99.0, 99.0], [0.0, 0.0]])
    actions = ToActions(BOUNDS, squash=True)(mean)
    np.testing.assert_allclose(actions, [[[-3, 2]], [[-1, 1.25]]])


@pytest.mark.parametrize(
    ("space", "logits", "action"),
    [
        (spaces.Discrete(3), [0.1, 0.3, 0.2], 1),
        (spaces.MultiDiscrete([2, 3]), [0.1, 0.2, 0.5, 0.3, 0.4], [1, 0]),
        (spaces.MultiBinary(3), [-1.0, 2.0, 0.0], [0, 1, 0]),
    ],
    ids=["discrete", "multi_discrete", "multi_binary"],
)
def test_most_probable_action(space: spaces.Space[Any], logits: list[float], action: Any) -> None:
    assert ToActions(space)(torch.tensor([logits])).tolist() == [action]


def test_parameters_are_named() -> None:
    assert parameters_name(BOUNDS) == "action_mean"
    assert parameters_name(spaces.Discrete(2)) == "action_logits"
