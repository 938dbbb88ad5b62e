"""Affine maps, the building blocks of the fusions.

The weights are plain parameters rather than ``nn.Linear`` layers, because SB3's ``ortho_init``
re-initializes every ``nn.Linear`` that it finds.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

RELU_GAIN = math.sqrt(2)
"""Gain of an orthogonal initialization in front of a ReLU."""


class Affine(nn.Module):
    """Affine map y = c x W + b with W of shape (in, out).

    Args:
        in_dim: size of x.
        out_dim: size of y.
        gain: gain of the orthogonal initialization of c W; 0 initializes W to zero.
        bias: whether to add b, which starts at zero.
        scale: c. An optimizer such as Adam changes each element of W by about the same amount for
            every c, so that a smaller c makes smaller steps.

    Examples:
        >>> import torch
        >>> from mirl.policies.fusions import Affine
        >>> layer = Affine(4, 2, gain=0)  # starts at zero
        >>> layer(torch.ones(3, 4)).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        gain: float,
        bias: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        # a gain of 0 draws no random numbers
        self.weight = nn.Parameter(torch.zeros(in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None
        if gain != 0:
            nn.init.orthogonal_(self.weight, gain / scale)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return c x W + b."""
        if self.scale != 1:
            x = self.scale * x
        y = x @ self.weight
        if self.bias is not None:
            y = y + self.bias
        return y


def as_linear(f: Callable[[Tensor], Tensor], in_dim: int) -> nn.Linear:
    """Convert an affine function to a linear layer, by its values at zero and at the unit vectors.

    Args:
        f: an affine function of (n, in_dim) in float64.
        in_dim: size of its argument.

    Returns:
        The layer, in float64.
    """
    # f(0) = b, and f(e_i) − b is column i of the matrix
    points = torch.cat([torch.zeros(1, in_dim), torch.eye(in_dim)]).double()
    at_zero, at_units = f(points).split([1, in_dim])
    # without initialization, which would draw from torch's generator
    layer = nn.utils.skip_init(nn.Linear, in_dim, at_zero.shape[1], dtype=torch.float64)
    linear = cast(nn.Linear, layer)
    linear.weight.copy_((at_units - at_zero).T)
    linear.bias.copy_(at_zero.squeeze(0))
    return linear
