"""Normalization by running statistics."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs.networks import GoalContextConfig, VectorEncoderConfig
from mirl.policies import FusionExtractor, specialize_extractor
from mirl.policies.running_norm import LIMIT, MIN_STD, RunningNorm

SPACE = spaces.Dict(
    {
        "observation": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "direction": spaces.Discrete(4),
        "desired_goal": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    }
)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 2**31))
def test_merged_statistics_equal_whole_batch(sizes: list[int], seed: int) -> None:
    """Updates with pieces of a batch give the statistics of the whole batch."""
    rows = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed)) * 5 + 3
    norm = RunningNorm(4)
    for piece in rows.split(sizes):
        norm.update(piece)
    torch.testing.assert_close(norm.mean, rows.double().mean(0))
    torch.testing.assert_close(norm.variance, rows.double().var(0, correction=0))


def test_no_change_before_first_update() -> None:
    """Before the first update the values are unchanged."""
    x = torch.randn(5, 3) * 100
    torch.testing.assert_close(RunningNorm(3)(x), x, rtol=0, atol=0)


def test_normalized_mean_and_std() -> None:
    """The values of the update have mean 0 and standard deviation 1."""
    rows = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 7 + 100
    norm = RunningNorm(2)
    norm.update(rows)
    torch.testing.assert_close(norm(rows).mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(rows).std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_lower_std_bound_and_clipping() -> None:
    """A constant is not scaled up, and outliers are clipped."""
    norm = RunningNorm(1)
    norm.update(torch.full((10, 1), 2.0))
    torch.testing.assert_close(
        norm(torch.tensor([[2.0 + MIN_STD]])), torch.ones(1, 1), atol=1e-3, rtol=0
    )
    assert norm(torch.tensor([[1e9]])).item() == LIMIT


def test_extractor_updates_both_norms() -> None:
    """The extractor updates the statistics of its inputs and of the goal."""
    encoder, context = VectorEncoderConfig(normalize=True), GoalContextConfig(normalize=True)
    extractor = FusionExtractor(SPACE, encoder=encoder, context=context)
    observation, goal = torch.randn(64, 3) * 4 + 1, torch.randn(64, 2) * 9
    direction = torch.nn.functional.one_hot(torch.arange(64) % 4, 4).float()
    extractor.update_statistics(
        {"observation": observation, "direction": direction, "desired_goal": goal}
    )
    seen = torch.cat(
        [
            {"observation": observation, "direction": direction}[key]
            for key in extractor.encoder.keys
        ],
        1,
    )
    torch.testing.assert_close(extractor.encoder.normalize.mean, seen.double().mean(0))
    torch.testing.assert_close(extractor.context.normalize.mean, goal.double().mean(0))


@pytest.mark.parametrize("normalize", [True, False])
def test_specialized_extractor_keeps_the_norm(normalize: bool) -> None:
    """A specialized extractor normalizes as the original does."""
    encoder, context = (
        VectorEncoderConfig(normalize=normalize),
        GoalContextConfig(normalize=normalize),
    )
    extractor = FusionExtractor(SPACE, encoder=encoder, context=context)
    assert extractor.has_running_norm == normalize
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = {
        "observation": torch.randn(16, 3) * 4 + 1,
        "desired_goal": torch.tensor([[2.0, -3.0]]).expand(16, 2),
    }
    direction = torch.arange(16) % 4
    one_hot = torch.nn.functional.one_hot(direction, 4).float()
    extractor.update_statistics({**batch, "direction": one_hot})
    extractor.update_statistics({**batch, "direction": one_hot, "desired_goal": torch.randn(16, 2)})
    expected = extractor({**batch, "direction": one_hot})
    given = specialize_extractor(extractor, np.array([2.0, -3.0], np.float32))(
        {**batch, "direction": direction}
    )
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
