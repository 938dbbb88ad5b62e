"""Sinusoidal positional encodings."""

import math

import torch
from jaxtyping import Float, Real
from torch import Tensor


def sinusoids(positions: Real[Tensor, "*batch"], dim: int) -> Float[Tensor, "*batch dim"]:
    """Encode positions p by sines (even features) and cosines (odd features).

        encoding[2i] = sin(p / 10000^(2i / dim)),  encoding[2i + 1] = cos(p / 10000^(2i / dim))

    Args:
        positions: positions of any shape; integers are converted to float32.
        dim: size of the encoding.

    Returns:
        The encodings, (*positions, dim).

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """
    if not positions.is_floating_point():
        positions = positions.float()
    even = torch.arange(0, dim, 2, device=positions.device, dtype=positions.dtype)
    frequencies = torch.exp(even * (-math.log(10_000.0) / dim))
    angles = positions.unsqueeze(-1) * frequencies
    # (*batch, dim / 2, 2) -> (*batch, dim); an odd dim leaves out the last cosine
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim]


def sinusoidal_positions(
    length: int, dim: int, device: torch.device | None = None
) -> Float[Tensor, "length dim"]:
    """Return the ``sinusoids`` of the positions 0, 1, ..., length - 1.

    Args:
        length: number of positions.
        dim: size of the encoding.
        device: device of the result; None for torch's default.
    """
    return sinusoids(torch.arange(length, device=device), dim)
