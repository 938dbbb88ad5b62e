"""Comparison of programs with their policies."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirl.agents.exports import round_trip
from mirl.agents.exports.round_trip import (
    ProgramAndPolicy,
    checked_difference,
    compare_episodes,
    compare_samples,
    equal_actions,
)
from mirl.configs.errors import ConfigError


def test_masked_logits_must_be_equal() -> None:
    """Masked logits are left out of the scale, and must be equal."""
    lowest = np.finfo(np.float32).min
    theirs = {"action_logits": np.float32([[1.0, lowest]])}
    assert checked_difference(theirs, theirs) == 0
    for wrong in ([[1.01, lowest]], [[1.0, 2.0]]):
        with pytest.raises(ConfigError):
            checked_difference({"action_logits": np.float32(wrong)}, theirs)


def test_tolerance_scales_with_outputs() -> None:
    """The tolerance is relative to the largest number of each output."""
    large = {"value": np.float32([[3000.0]])}
    ours = {"value": np.float32([[3000.01]])}
    assert checked_difference(ours, large) == pytest.approx(0.01, rel=0.05)
    theirs = large | {"action_mean": np.float32([[1.0]])}
    for wrong in (1.001, float("nan")):
        with pytest.raises(ConfigError, match="action_mean differs"):
            checked_difference(ours | {"action_mean": np.float32([[wrong]])}, theirs)


def test_actions_are_compared_by_row() -> None:
    discrete = equal_actions(np.array([[0, 1], [2, 3]]), np.array([[0, 1], [2, 4]]))
    assert discrete.tolist() == [True, False]
    continuous = equal_actions(np.array([[1.0], [2.0]]), np.array([[1.0 + 1e-6], [2.1]]))
    assert continuous.tolist() == [True, False]


class TwoSteps:
    """An environment of two timesteps per episode."""

    num_envs = 1

    def __init__(self) -> None:
        self.n_steps = 0

    def reset(self) -> dict[str, np.ndarray]:
        return {"x": np.zeros((1, 1))}

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        self.n_steps += 1
        return self.reset(), np.zeros(1), np.array([self.n_steps % 2 == 0]), [{}]


def pair_of(monkeypatch: pytest.MonkeyPatch, wrong_from: int) -> ProgramAndPolicy:
    """Return a program whose actions are wrong from a call on, and its policy."""
    calls: list[int] = []

    def run(inputs: Any) -> dict[str, np.ndarray]:
        calls.append(len(inputs["x"]))
        return {"action": np.full(len(inputs["x"]), int(len(calls) > wrong_from))}

    monkeypatch.setattr(
        round_trip,
        "policy_outputs",
        lambda policy, observations, state, starts: {"action": np.zeros(len(starts), np.int64)},
    )
    program: Any = SimpleNamespace(keys=("x",), state_dim=0)
    return ProgramAndPolicy(run, program, None, {})  # type: ignore[arg-type]


def test_episodes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong action of an episode is an error that names the timestep."""
    env: Any = TwoSteps()
    assert compare_episodes(pair_of(monkeypatch, 256), env) == (128, 256, 1.0)
    with pytest.raises(ConfigError, match=r"in timestep 101 of an episode \(1 of 1 env"):
        compare_episodes(pair_of(monkeypatch, 100), env)


def test_wrong_actions_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    observations = {"x": np.zeros((256, 1))}
    assert compare_samples(pair_of(monkeypatch, 1), observations, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError, match=r"on 0\.0% of 256 observations"):
        compare_samples(pair_of(monkeypatch, 0), observations, 0)
