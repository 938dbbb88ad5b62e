"""Factors by which the context acts inside a policy: scales, gates, masks and similarities."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from mirl.policies.fusions import Fusion

MAX_VALUES = 50_000
"""Maximum number of values kept of each factor, evenly spaced among all of its values."""
QUANTILES = (0.05, 0.5, 0.95)


class Distribution(NamedTuple):
    """Summary of the values of a factor."""

    mean: float
    std: float
    q05: float
    q50: float
    q95: float


def distribution(values: NDArray[np.float32]) -> Distribution:
    """Return the mean, the standard deviation and three quantiles of values.

    Args:
        values: the values, (n,).
    """
    quantiles = (float(value) for value in np.quantile(values, QUANTILES))
    return Distribution(float(values.mean()), float(values.std()), *quantiles)


@contextmanager
def recorded_modulation(module: nn.Module) -> Iterator[dict[str, Float[np.ndarray, " values"]]]:
    """Record the factors of each fusion that is used within the context.

    Args:
        module: the policy.

    Yields:
        The values by "path of the fusion: name of the factor", complete once the context ends. A
        layer that fuses each distinct pair of a cell and a context once records each pair once.
    """
    kept: dict[str, list[Tensor]] = {}
    values: dict[str, Float[np.ndarray, " values"]] = {}
    replaced: list[tuple[Fusion, str]] = []
    for name, fusion in module.named_modules():
        if isinstance(fusion, Fusion):
            # a fusion with similarities computes its output by the second method
            method = "interact_with_similarities" if fusion.similarities_dim else "interact"
            _record(fusion, method, name.removesuffix(".fusion"), kept)
            replaced.append((fusion, method))
    try:
        yield values
    finally:
        for fusion, method in replaced:
            delattr(fusion, method)
    for name, tensors in kept.items():
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        step = -(-len(flat) // MAX_VALUES)
        values[name] = flat[::step].cpu().numpy()


def _record(fusion: Fusion, method: str, name: str, kept: dict[str, list[Tensor]]) -> None:
    """Replace a method of one fusion by one that records, until the attribute is deleted."""
    original = getattr(fusion, method)

    def recording(x: Tensor, z: Tensor, groups: Any) -> Any:
        for factor, tensor in fusion.modulation(x, z, groups).items():
            kept.setdefault(f"{name}: {factor}", []).append(tensor)
        return original(x, z, groups)

    setattr(fusion, method, recording)
