"""Training runs that are killed at chosen moments, within the test process."""

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_records import metrics_of, points_of, tensors_of

from mirl.agents import train
from mirl.agents.runs import atomic_files as files
from mirl.agents.runs import checkpoint
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv


class Killed(BaseException):
    """Simulated death of the process; no handler of errors catches it."""


def kill_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Raise ``Killed`` at the event number ``moment``: a timestep or the flush of a file."""
    events = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal events
            events += 1
            if events == moment:
                raise Killed
            return function(*arguments)

        return call

    patch.setattr(SuiteVecEnv, "step_async", counted(SuiteVecEnv.step_async))
    for module in (files, checkpoint):
        patch.setattr(module, "flush", counted(files.flush))


def assert_kills_change_nothing(
    monkeypatch: pytest.MonkeyPatch, whole: TrainConfig, cut: TrainConfig
) -> None:
    """Check that two runs of a configuration end alike, one of which is killed three times."""
    # TensorBoard orders event files by the second of their creation, so each needs another one
    clock = SimpleNamespace(time=itertools.count(1_000_000_000).__next__)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)
    train(whole)
    moments = random.Random(whole.run_name)
    for _ in range(3):
        with monkeypatch.context() as patch:
            kill_at(patch, moments.randrange(1, 60))
            with pytest.raises(Killed):
                train(cut)
    assert train(cut).finished
    kept = tensors_of(cut.run_dir)
    expected = tensors_of(whole.run_dir)
    assert kept.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(kept[name], values, err_msg=name)
    assert metrics_of(cut.run_dir) == metrics_of(whole.run_dir)
    assert points_of(cut.run_dir) == points_of(whole.run_dir)
