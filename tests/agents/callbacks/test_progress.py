"""The bar, and lines without a terminal, show timesteps, speed and success."""

from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mirl.agents.callbacks import progress
from mirl.agents.callbacks.progress import ProgressBar, ProgressLines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    return clock


def test_bar_shows_dash_without_success() -> None:
    """Before the first episode has ended, and where none reports success, the bar shows –."""
    bar = ProgressBar(1000)
    [task] = bar.progress.tasks
    assert task.fields["success"] == "–"
    bar.model = cast(Any, SimpleNamespace(ep_success_buffer=deque(), _num_timesteps_at_start=0))
    bar._on_training_start()
    bar.updated_at = -1.0  # long ago, so that the bar is due
    bar._on_rollout_start()
    assert task.fields["success"] == "–"


def test_bar_shows_speed_and_success(clock: SimpleNamespace) -> None:
    bar = ProgressBar(1000)
    model = SimpleNamespace(ep_success_buffer=deque([1, 0]), _num_timesteps_at_start=100)
    bar.model = cast(Any, model)
    bar._on_training_start()
    clock.now = 2.0
    bar.num_timesteps = 500
    bar._on_rollout_start()
    [task] = bar.progress.tasks
    assert (task.completed, task.total) == (500, 1000)
    assert task.fields == {"speed": 200.0, "success": "50%"}
    clock.now = 2.05
    bar.num_timesteps = 600
    bar._on_rollout_start()
    assert task.completed == 500, "it is not refreshed that often"
    bar._on_training_end()
    assert task.completed == 600


def test_lines_follow_the_log(clock: SimpleNamespace) -> None:
    """There is a line per row of the log, and at most one a second."""
    lines: list[str] = []
    progress_lines = ProgressLines(10_000, interval=1000, log=lines.append)
    model = SimpleNamespace(ep_success_buffer=deque(), _num_timesteps_at_start=1000)
    progress_lines.model = cast(Any, model)
    progress_lines.num_timesteps = 1000
    progress_lines._on_training_start()
    for clock.now, timesteps in [(1.0, 1999), (2.0, 2000), (2.5, 3000), (4.0, 5000), (9.0, 5999)]:
        progress_lines.num_timesteps = timesteps
        progress_lines._on_rollout_start()
        model.ep_success_buffer = deque([1, 1, 0, 1])
    assert lines == [
        "2,000 of 10,000 timesteps, 500 steps/s, success 75%",
        "5,000 of 10,000 timesteps, 1,000 steps/s, success 75%",
    ]
