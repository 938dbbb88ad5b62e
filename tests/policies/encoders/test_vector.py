"""Encoder of numbers."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from mirl.configs.networks import (
    VectorEncoderConfig,
)
from mirl.policies.encoders import build_encoder

close = torch.testing.assert_close


@pytest.mark.parametrize("hidden", [(), (7,), (7, 9)])
def test_vector_encoder_is_an_mlp(hidden: tuple[int, ...]) -> None:
    """The vector encoder is an MLP with a ReLU after every layer."""
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2, 3)), "b": spaces.Discrete(4)})
    encoder = build_encoder(VectorEncoderConfig(hidden=hidden, features_dim=5), space)
    seen = torch.randn(3, 10)
    expected = seen
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            expected = torch.relu(layer(expected))
    close(encoder({"a": seen[:, :6].reshape(3, 2, 3), "b": seen[:, 6:]}), expected)
    assert sum(isinstance(layer, nn.Linear) for layer in encoder.modules()) == len(hidden) + 1
    assert expected.shape == (3, encoder.out_dim)
