"""Spaces and batches of cells with MiniGrid's codes, and an encoder of them."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from mirl.configs.networks import (
    EncoderConfig,
)
from mirl.policies.encoders import CellsEncoder, build_encoder

CODES = (10, 5, 3)
"""Largest codes of MiniGrid's objects, colors and states."""


def grid_space(height: int, width: int) -> spaces.Box:
    high = np.broadcast_to(np.array(CODES, np.uint8), (height, width, 3))
    return spaces.Box(np.zeros_like(high), high.copy(), (height, width, 3), np.uint8)


def codes(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    channels = [
        torch.randint(0, high + 1, (batch, height, width), generator=generator) for high in CODES
    ]
    return torch.stack(channels, dim=-1).float()


def encoder_of(
    config: EncoderConfig, image: spaces.Box, **others: spaces.Space[object]
) -> CellsEncoder:
    encoder = build_encoder(config, spaces.Dict({"image": image, **others}))
    assert isinstance(encoder, CellsEncoder)
    return encoder
