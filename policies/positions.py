"""Positional encodings."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoidal_positions(length: int, dim: int, device: torch.device | None = None) -> Float[Tensor, "length dim"]:
    """Sines (even features) and cosines (odd) of the position p (Vaswani et al., 2017): sin(p / 10000^(2i/dim))."""
    position = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    angles = position * frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
