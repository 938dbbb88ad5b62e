"""A run that was killed, again and again and while it wrote, ends as one that was not: to the bit."""

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_records import metrics_of, points_of, tensors_of

from mirl.agents import checkpoint, files, train
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv

Build = Callable[..., TrainConfig]
OFTEN = ("checkpoint_every=128", "evaluation.every=192", "total_timesteps=640")
TWO = "[{name: a, env_id: MiniGrid-GoToDoor-5x5-v0}, {name: b, env_id: MiniGrid-GoToDoor-6x6-v0}]"
RUNS = {
    "ppo on envpool": ("backend=envpool",),
    "ppo on gymnasium, tasks drawn": (
        "backend=gymnasium",
        "task.name=two",
        f"task.tasks={TWO}",
        "sampling=lowest_success",
        "agent.popart=true",
    ),
    "a2c on envpool": ("backend=envpool", "agent=a2c"),
    "a2c on gymnasium": ("backend=gymnasium", "agent=a2c"),
}


class Killed(BaseException):
    """As if the process were gone: nothing that handles errors handles it."""


def kill_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Die at a timestep, or while a file is being flushed, whichever event is number ``moment``."""
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


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_a_killed_run_ends_as_one_that_was_not(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    # TensorBoard orders the files of a folder by the second in which each was begun: let no two be of the same
    clock = SimpleNamespace(time=itertools.count(1_000_000_000).__next__)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)
    whole, cut = (tiny(*words, *OFTEN, f"name={name}") for name in ("whole", "cut"))
    train(whole)
    moments = random.Random(str(words))
    for _ in range(5):
        with monkeypatch.context() as patch:
            kill_at(patch, moments.randrange(1, 60))
            with pytest.raises(Killed):
                train(cut)
    assert train(cut).finished
    kept, expected = tensors_of(cut.run_dir), tensors_of(whole.run_dir)
    assert kept.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(kept[name], values, err_msg=name)
    assert metrics_of(cut.run_dir) == metrics_of(whole.run_dir)
    assert points_of(cut.run_dir) == points_of(whole.run_dir)
