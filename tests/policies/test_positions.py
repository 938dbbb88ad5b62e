"""Positional encodings, compared with the formula of Vaswani et al. (2017)."""

import math

import pytest
import torch

from mirl.policies.positions import sinusoidal_positions


@pytest.mark.parametrize(("length", "dim"), [(1, 2), (7, 6), (80, 64)])
def test_positions_equal_the_formula(length: int, dim: int) -> None:
    """The encodings equal the formula of the paper."""
    table = sinusoidal_positions(length, dim)
    assert table.shape == (length, dim)
    for p in range(length):
        for i in range(dim // 2):
            angle = p / 10_000 ** (2 * i / dim)
            # float32 resolves an angle of 80 to about 1e-5
            assert float(table[p, 2 * i]) == pytest.approx(math.sin(angle), abs=2e-5)
            assert float(table[p, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=2e-5)


def test_positions_are_distinct() -> None:
    """The encodings of different positions are different."""
    table = sinusoidal_positions(80, 32)
    distances = torch.cdist(table, table) + 10 * torch.eye(80)
    assert distances.min() > 0.1
