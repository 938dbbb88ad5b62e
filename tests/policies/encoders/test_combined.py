"""Encoder of several inputs."""

import numpy as np
import pytest
import torch
from batches import batch_of
from grid_cases import grid_space
from gymnasium import spaces

from mirl.configs.networks import (
    CombinedEncoderConfig,
    GridEncoderConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
    VectorEncoderConfig,
)
from mirl.policies.encoders import build_encoder

close = torch.testing.assert_close


def test_combined_encoder_equals_its_parts() -> None:
    """The vector is relu(V [v₁, v₂, …] + b) over the vectors of each key's encoder."""
    space = spaces.Dict(
        {
            "left.camera": spaces.Box(0, 255, (24, 24, 3), np.uint8),
            "grid": grid_space(5, 5),
            "note": spaces.Box(0, 9, (4,), np.int16),
            "speed": spaces.Box(-1, 1, (2,), np.float32),
        }
    )
    config = CombinedEncoderConfig(
        parts={
            "left.camera": ImageEncoderConfig(channels=6, features_dim=5),
            "grid": GridEncoderConfig(channels=6, features_dim=7),
            "note": TextEncoderConfig(words="bag", features_dim=8),
            "speed": VectorEncoderConfig(hidden=(), features_dim=3),
        },
        features_dim=9,
    )
    encoder = build_encoder(config, space)
    assert encoder.channels == 6
    batch = batch_of(space, 3)
    vectors = []
    for key, part in zip(encoder.keys, encoder.get_submodule("parts"), strict=True):  # type: ignore[arg-type]
        vectors.append(part({key: batch[key]}))
    expected = torch.relu(encoder.get_submodule("join")(torch.cat(vectors, dim=1)))
    close(encoder(batch), expected)
    assert expected.shape == (3, encoder.out_dim)


@pytest.mark.parametrize(("attributes", "expected"), [((4, 4), (4, 4, 4)), ((4, 0), ())])
def test_maps_share_attributes(attributes: tuple[int, int], expected: tuple[int, ...]) -> None:
    """The fusion of several maps tells apart only attributes that all of them have."""
    space = spaces.Dict({"near": grid_space(5, 5), "far": grid_space(7, 7)})
    parts = dict(
        zip(
            ("near", "far"),
            (GridEncoderConfig(channels=16, attributes=each) for each in attributes),
            strict=True,
        )
    )
    encoder = build_encoder(CombinedEncoderConfig(parts=parts), space)
    assert encoder.attribute_dims == expected
