"""Ctrl-C while a command imports its modules ends it in one line."""

import os
import signal
import threading

import pytest

from mirl.configs.interrupts import ended_by_interrupt


def test_interrupt_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    handler = signal.getsignal(signal.SIGINT)
    with ended_by_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert codes == [130]
    assert capfd.readouterr() == ("", "stopped\n")
    assert signal.getsignal(signal.SIGINT) is handler


def test_thread_changes_no_handler() -> None:
    """A thread that imports a command, which may set no handler, imports it as usual."""
    handlers: list[object] = []

    def enter() -> None:
        with ended_by_interrupt():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
