"""Parts that several encoders share."""

from typing import Any

import numpy as np
import pytest
import torch
from batches import batch_of
from grid_cases import grid_space
from gymnasium import spaces

from mirl.configs.networks import (
    EncoderConfig,
    GridEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.encoders import build_encoder

close = torch.testing.assert_close


@pytest.mark.parametrize("kind", ["vector", "grid"])
def test_numbers_keep_digits_under_autocast(kind: str) -> None:
    """Numbers in real units are told apart in bfloat16 as in float32: 512 and 513."""
    torch.manual_seed(0)
    parts: dict[str, spaces.Space[Any]] = {"speed": spaces.Box(0, 1000, (2,), np.float32)}
    config: EncoderConfig = VectorEncoderConfig(hidden=(), features_dim=16)
    if kind == "grid":
        parts["image"] = grid_space(5, 5)
        config = GridEncoderConfig(channels=4, features_dim=16)
    space = spaces.Dict(parts)
    encoder = build_encoder(config, space)
    batch = {
        key: value[:1].expand(2, *value.shape[1:]) for key, value in batch_of(space, 1).items()
    }
    batch["speed"] = torch.tensor([[512.0, 513.0], [513.0, 512.0]])
    plain = encoder(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(batch)
    # of a product in bfloat16, 512 and 513 would be the same number
    close((half[0] - half[1]).float(), plain[0] - plain[1], rtol=1e-2, atol=1e-2)
    assert (plain[0] - plain[1]).abs().max() > 0.1
