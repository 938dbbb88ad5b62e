"""Tests of the task sampler."""

import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirl.configs.errors import ConfigError
from mirl.envs.sampling import (
    FAST_RATE,
    SLOW_RATE,
    UNIFORM_SHARE,
    SamplingStrategy,
    TaskSampler,
)

STRATEGIES = get_args(SamplingStrategy)
Episodes = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(episodes=Episodes)
def test_every_task_keeps_being_sampled(
    strategy: SamplingStrategy, episodes: list[tuple[int, bool]]
) -> None:
    """The probability of a task never falls below its share of the uniform part."""
    sampler = TaskSampler(strategy, range(4), seed=0)
    for task, success in episodes:
        sampler.record(task, success)
    assert sampler.probabilities.sum() == pytest.approx(1)
    assert sampler.probabilities.min() >= UNIFORM_SHARE / 4 - 1e-12


@given(episodes=Episodes)
def test_uniform_stays_uniform(episodes: list[tuple[int, bool]]) -> None:
    sampler = TaskSampler("uniform", range(4), seed=0)
    for task, success in episodes:
        sampler.record(task, success)
    np.testing.assert_allclose(sampler.probabilities, 0.25)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sampling_starts_uniform(strategy: SamplingStrategy) -> None:
    """Before the first episode, all tasks are equally likely."""
    np.testing.assert_allclose(TaskSampler(strategy, (0, 1), seed=0).probabilities, 0.5)


def moving_average(outcomes: list[bool], rate: float) -> float:
    """Return an exponential moving average as a sum: rate (1 - rate)^age for each success."""
    total = 0.0
    for age, success in enumerate(reversed(outcomes)):
        if success:
            total += rate * (1 - rate) ** age
    return total


@given(first=st.lists(st.booleans(), max_size=60), second=st.lists(st.booleans(), max_size=60))
def test_weights_follow_the_formulas(first: list[bool], second: list[bool]) -> None:
    """The probabilities equal the formulas of the class docstring."""
    expected: dict[SamplingStrategy, list[float]] = {"lowest_success": [], "learning_progress": []}
    for outcomes in (first, second):
        fast = moving_average(outcomes, FAST_RATE)
        slow = moving_average(outcomes, SLOW_RATE)
        expected["lowest_success"].append(1 - fast)
        expected["learning_progress"].append(abs(fast - slow))
    for strategy, weights in expected.items():
        sampler = TaskSampler(strategy, (0, 1), seed=0)
        for task, outcomes in enumerate((first, second)):
            for success in outcomes:
                sampler.record(task, success)
        shares = np.array([0.5, 0.5])
        if sum(weights):
            shares = np.array(weights) / sum(weights)
        probabilities = UNIFORM_SHARE / 2 + (1 - UNIFORM_SHARE) * shares
        np.testing.assert_allclose(sampler.probabilities, probabilities)


def test_learning_progress_prefers_changing_tasks() -> None:
    """Tasks whose success rate changes are preferred to solved ones and to hopeless ones."""
    sampler = TaskSampler("learning_progress", (0, 1, 2), seed=0)
    for episode in range(5000):
        sampler.record(0, True)
        sampler.record(1, False)
        sampler.record(2, episode > 4900)
    solved, hopeless, changing = sampler.probabilities
    assert changing > 0.8 > 0.1 > solved
    assert hopeless == pytest.approx(UNIFORM_SHARE / 3)


def test_draws_follow_the_probabilities() -> None:
    sampler = TaskSampler("lowest_success", (2, 5, 7), seed=0)
    for _ in range(100):
        sampler.record(5, True)
    drawn = sampler.draw(20_000)
    shares = [np.mean(drawn == task) for task in (2, 5, 7)]
    np.testing.assert_allclose(shares, sampler.probabilities, atol=0.02)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(episodes=Episodes, later=Episodes)
def test_state_continues_through_json(
    strategy: SamplingStrategy, episodes: list[tuple[int, bool]], later: list[tuple[int, bool]]
) -> None:
    """A sampler that loads a state from JSON continues exactly like the first one."""
    first, second = (TaskSampler(strategy, range(4), seed=seed) for seed in (0, 1))
    for task, success in episodes:
        first.record(task, success)
    first.draw(3)
    second.load(json.loads(json.dumps(first.state())))
    for task, success in later:
        first.record(task, success)
        second.record(task, success)
        assert first.draw(2).tolist() == second.draw(2).tolist()
    assert first.state() == second.state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "fixed"}, "sampling=lowest_success, got fixed"),
        ({"tasks": [0, 1, 2]}, r"tasks=\[0, 1\], got \[0, 1, 2\]"),
        ({"recent_success": [0.5]}, r"2 rates of 0 to 1 as 'recent_success', got \[0.5\]"),
        ({"recent_success": [0.5, 1.5]}, "2 rates of 0 to 1"),
        ({"recent_success": [0.5, float("nan")]}, "2 rates of 0 to 1"),
        ({"long_ago_success": "Qapla'"}, "2 rates of 0 to 1 as 'long_ago_success'"),
        ({"generator": None}, "a PCG64 state as 'generator'"),
        ({"generator": {"bit_generator": "MT19937"}}, "a PCG64 state as 'generator'"),
        (
            {"generator": {"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}}},
            "a PCG64 state as 'generator'",
        ),
    ],
)
def test_invalid_state_changes_nothing(change: dict[str, Any], message: str) -> None:
    """A state that does not fit is an error, after which the sampler is as before."""
    sampler = TaskSampler("lowest_success", (0, 1), seed=0)
    before = sampler.state()
    with pytest.raises(ConfigError, match=message):
        sampler.load({**before, **change})
    assert sampler.state() == before
