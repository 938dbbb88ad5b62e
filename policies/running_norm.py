"""Normalization by running statistics, for features that differ by orders of magnitude."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

LIMIT = 5.0
"""Bound of the normalized values, in standard deviations.

As in Andrychowicz et al., "Hindsight Experience Replay", NeurIPS 2017, appendix A.
"""
MIN_STD = 0.01
"""Lower bound of the standard deviation, so that a nearly constant feature is not scaled up to
noise of standard deviation 1."""


class RunningNorm(nn.Module):
    """Normalization y = clip((x − μ) / max(σ, 0.01), ±5) by the statistics of all updates.

    The statistics are buffers. They are saved with the weights and change only in ``update``, never
    in a forward pass. Before the first update y = x.

    Args:
        dim: number of features.

    References:
        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", 1979, for the merging of statistics (here in float64).
    """

    mean: Float[Tensor, " features"]
    """μ, in float64."""
    variance: Float[Tensor, " features"]
    """σ², in float64."""
    count: Float[Tensor, ""]
    """Number of observations so far."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Return the normalized features."""
        std = self.variance.sqrt().clamp(min=MIN_STD)
        centered = x - self.mean.to(x.dtype)
        normalized = (centered / std.to(x.dtype)).clamp(-LIMIT, LIMIT)
        # a Python `if` on the count would make the host wait for the device
        return torch.where(self.count > 0, normalized, x)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "batch features"]) -> None:
        """Add rows to the running statistics.

        Args:
            x: (B, features); B may be 0.
        """
        rows = x.double()
        if len(rows):
            # without the correction by n - 1, a single row has variance 0 instead of NaN
            self.merge(rows.mean(0), rows.var(0, correction=0), len(rows))

    @torch.no_grad()
    def merge(
        self,
        mean: Float[Tensor, " features"],
        variance: Float[Tensor, " features"],
        n_rows: int,
    ) -> None:
        """Add the statistics of further rows.

        Args:
            mean: (features,), the mean of the rows, in float64.
            variance: (features,), their population variance, in float64.
            n_rows: number of rows, at least 1.
        """
        total = self.count + n_rows
        # the old mean and variance enter below, so they are replaced last
        delta = mean - self.mean
        # sums of squared deviations: between the two sets of rows, and within each
        between = delta.square() * self.count * n_rows / total
        within = self.variance * self.count + variance * n_rows
        squares = within + between
        self.mean += delta * n_rows / total
        # in place, so that references to the buffers stay valid
        self.variance.copy_(squares / total)
        self.count.copy_(total)
