"""Ctrl-C while a command imports its modules ends it in one line."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from mirl.configs.commands.interrupts import ended_by_interrupt


@pytest.fixture
def handle() -> Iterator[Callable[..., object]]:
    """Return a function that sets the handler of SIGINT, which the test may change."""
    previous = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, previous)


def test_interrupt_ends_the_process(
    handle: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    handle(signal.default_int_handler)
    with ended_by_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert codes == [130]
    assert capfd.readouterr() == ("", "stopped\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_interrupt_stays_ignored(handle: Callable[..., object]) -> None:
    """A job that a shell runs in the background ignores Ctrl-C."""
    handle(signal.SIG_IGN)
    with ended_by_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_thread_changes_no_handler(handle: Callable[..., object]) -> None:
    """A thread that imports a command, which may set no handler, imports it as usual."""
    handle(signal.default_int_handler)
    handlers: list[object] = []

    def enter() -> None:
        with ended_by_interrupt():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
