"""Normalization: what ``observe`` was shown has mean 0 and deviation 1, whatever the pieces it came in."""

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
def test_pieces_give_the_statistics_of_the_whole(sizes: list[int], seed: int) -> None:
    rows = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed)) * 5 + 3
    norm = RunningNorm(4)
    for piece in rows.split(sizes):
        norm.update(piece)
    torch.testing.assert_close(norm.mean, rows.double().mean(0))
    torch.testing.assert_close(norm.variance, rows.double().var(0, correction=0))


def test_before_anything_was_observed_nothing_changes() -> None:
    x = torch.randn(5, 3) * 100
    torch.testing.assert_close(RunningNorm(3)(x), x, rtol=0, atol=0)


def test_what_was_observed_has_mean_0_and_deviation_1() -> None:
    rows = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 7 + 100
    norm = RunningNorm(2)
    norm.update(rows)
    torch.testing.assert_close(norm(rows).mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(rows).std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_a_constant_is_not_blown_up_and_outliers_are_cut() -> None:
    norm = RunningNorm(1)
    norm.update(torch.full((10, 1), 2.0))
    torch.testing.assert_close(
        norm(torch.tensor([[2.0 + MIN_STD]])), torch.ones(1, 1), atol=1e-3, rtol=0
    )
    assert norm(torch.tensor([[1e9]])).item() == LIMIT


def test_the_extractor_observes_what_it_reads_and_normalises_by_it() -> None:
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
            for key in extractor.routing.others
        ],
        1,
    )
    torch.testing.assert_close(extractor.encoder.normalize.mean, seen.double().mean(0))
    torch.testing.assert_close(extractor.context.normalize.mean, goal.double().mean(0))


@pytest.mark.parametrize("normalize", [True, False])
def test_a_specialised_extractor_normalises_as_its_original(normalize: bool) -> None:
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
