"""Observations and contexts of played episodes are kept evenly."""

import numpy as np
import pytest

from mirl.agents.analysis.recording import RecordedEpisodes
from mirl.configs.compose import compose_suite
from mirl.configs.tasks import SuiteConfig
from mirl.envs.texts.codec import suite_codec


@pytest.fixture
def suite() -> SuiteConfig:
    """Return a suite of three tasks."""
    return compose_suite("mt3")


def play(recorded: RecordedEpisodes, n_steps: int) -> None:
    """Show the recorder three environments, whose observations count the timesteps."""
    codec = suite_codec(recorded.suite)
    colors = ("red", "green", "blue", "grey")
    for step in range(n_steps):
        missions = [codec.encode(f"go to the {colors[step % 4]} door")] * 3
        obs = {"image": np.full((3, 1), step), "mission": np.array(missions)}
        begun = np.arange(3) if step % 5 == 0 else np.arange(0)
        shown = recorded.update(obs, np.arange(3), begun, np.arange(3))
        assert shown is obs


def test_observations_are_a_uniform_sample(suite: SuiteConfig) -> None:
    """Each timestep is kept with the same probability."""
    counts = np.zeros(50)
    for seed in range(300):
        recorded = RecordedEpisodes(suite, ["mission"], n_observations=10, seed=seed)
        play(recorded, 50)
        assert list(recorded.tasks) == [0] * 10 + [1] * 10 + [2] * 10
        counts += np.bincount(recorded.observations["image"][:, 0], minlength=50)
    expected = 300 * 30 / 50
    assert counts.sum() == 300 * 30
    # five standard deviations of a binomial count
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_contexts_are_distinct_and_named(suite: SuiteConfig) -> None:
    recorded = RecordedEpisodes(suite, ["mission"])
    play(recorded, 50)
    names, contexts = recorded.contexts
    assert names == [f"go to the {color} door" for color in ("blue", "green", "grey", "red")]
    codec = suite_codec(suite)
    assert (contexts["mission"] == np.array([codec.encode(name) for name in names])).all()


def test_contexts_are_taken_from_every_task(suite: SuiteConfig) -> None:
    recorded = RecordedEpisodes(suite, ["task"], n_contexts=2)
    recorded.update({"task": np.array([0, 1, 2])}, np.arange(3), np.arange(3), np.arange(3))
    names, contexts = recorded.contexts
    assert names == sorted(task.name for task in suite.tasks[:2])
    assert sorted(contexts["task"].tolist()) == [0, 1]


def test_goals_are_named_by_their_numbers(suite: SuiteConfig) -> None:
    recorded = RecordedEpisodes(suite, ["desired_goal"])
    goals = np.array([[1.25, -3.0], [0.5, 2.0]], np.float32)
    recorded.update({"desired_goal": goals}, np.zeros(2, np.int64), np.arange(2), np.arange(2))
    names, _ = recorded.contexts
    assert names == ["(0.5 2)", "(1.2 -3)"]
