"""Construction of the encoder that a config belongs to."""

import numpy as np
import pytest
from gymnasium import spaces

from mirl.configs.networks import (
    EncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.encoders import build_encoder

CASES: dict[str, tuple[EncoderConfig, spaces.Box]] = {
    "grid": (GridEncoderConfig(channels=4, features_dim=8), spaces.Box(0, 5, (5, 5, 3), np.uint8)),
    "image": (
        ImageEncoderConfig(channels=4, features_dim=8),
        spaces.Box(0, 255, (40, 40, 3), np.uint8),
    ),
    "text": (TextEncoderConfig(features_dim=8), spaces.Box(0, 9, (4,), np.int16)),
    "vector": (VectorEncoderConfig(features_dim=8), spaces.Box(-1, 1, (3,), np.float32)),
}


@pytest.mark.parametrize("kind", CASES)
def test_encoder_belongs_to_its_config(kind: str) -> None:
    config, space = CASES[kind]
    encoder = build_encoder(config, spaces.Dict({"seen": space}))
    assert encoder.Config is type(config)
    assert encoder.keys == ("seen",)
    assert encoder.out_dim == 8
    assert (encoder.channels is not None) == encoder.has_map
