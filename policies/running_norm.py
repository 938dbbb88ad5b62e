"""Observations of real numbers in one unit: positions, velocities and angles differ by orders of magnitude."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

LIMIT = 5.0
"""Normalized values are cut at so many deviations (Andrychowicz et al., 2017, arXiv:1707.01495, appendix A)."""
MIN_STD = 0.01
"""What hardly ever moves is not blown up to a noise of deviation 1."""


class RunningNorm(nn.Module):
    """y = clip((x − μ) / max(σ, 0.01), ±5), with the mean and variance of all that ``observe`` was shown.

    They are buffers: saved with the weights, the same in every pass between two calls of ``observe``, and never moved
    by a pass. Before the first call y = x. Merging follows Chan, Golub and LeVeque (1979), in float64.
    """

    mean: Float[Tensor, " features"]
    variance: Float[Tensor, " features"]
    count: Float[Tensor, ""]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        deviation = self.variance.sqrt().clamp(min=MIN_STD)
        normalized = ((x - self.mean.to(x.dtype)) / deviation.to(x.dtype)).clamp(-LIMIT, LIMIT)
        return torch.where(self.count > 0, normalized, x)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "batch features"]) -> None:
        """Let the statistics be those of all rows so far, these included."""
        rows = x.double()
        if not len(rows):
            return
        total = self.count + len(rows)
        delta = rows.mean(0) - self.mean
        between = delta.square() * self.count * len(rows) / total
        squares = self.variance * self.count + rows.var(0, correction=0) * len(rows) + between
        self.mean += delta * len(rows) / total
        self.variance.copy_(squares / total)
        self.count.copy_(total)
