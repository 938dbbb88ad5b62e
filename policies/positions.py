"""Positional encodings."""

import math

import torch
from jaxtyping import Float, Real
from torch import Tensor


def sinusoids(positions: Real[Tensor, "*batch"], dim: int) -> Float[Tensor, "*batch dim"]:
    """Sines (even features) and cosines (odd) of the position p (Vaswani et al., 2017): sin(p / 10000^(2i/dim))."""
    exact = positions if positions.is_floating_point() else positions.float()
    frequency = torch.exp(
        torch.arange(0, dim, 2, device=positions.device, dtype=exact.dtype)
        * (-math.log(10_000.0) / dim)
    )
    angles = exact.unsqueeze(-1) * frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim]


def sinusoidal_positions(
    length: int, dim: int, device: torch.device | None = None
) -> Float[Tensor, "length dim"]:
    """``sinusoids`` of the positions 0, 1, …, length − 1."""
    return sinusoids(torch.arange(length, device=device), dim)
