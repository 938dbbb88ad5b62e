"""Intervals are due once, and signals are deferred once."""

import os
import signal
import threading

import pytest

from mirl.agents.callbacks.schedule import Interval, IterationTimer, stop_signals


def test_second_signal_acts_at_once() -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job starts without
    try:
        with stop_signals() as asked:
            assert not asked()
            os.kill(os.getpid(), signal.SIGINT)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_outside_main_thread_are_left() -> None:
    """Outside the main thread no handler is installed, and nothing is ever requested."""
    requested = []

    def enter() -> None:
        with stop_signals() as stop_requested:
            requested.append(stop_requested())

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert requested == [False]
    assert signal.getsignal(signal.SIGINT) is handler


def test_interval_is_due_once() -> None:
    interval = Interval(100)
    due = [timesteps for timesteps in range(0, 451, 50) if interval.due(timesteps)]
    assert due == [100, 200, 300, 400]


def test_interval_may_be_skipped() -> None:
    """An interval that is passed without a call is not made up for."""
    interval = Interval(100)
    interval.last = 250
    assert not interval.due(299)
    assert interval.due(720)
    assert not interval.due(799)


def test_timer_restarts_with_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 4.0, 10.0, 12.0])
    monkeypatch.setattr("mirl.agents.callbacks.schedule.time.perf_counter", lambda: next(now))
    timer = IterationTimer()
    timer.start()
    assert timer.seconds() == 3.0
    timer._on_rollout_start()
    assert timer.seconds() == 2.0
