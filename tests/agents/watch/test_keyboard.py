"""Typed keys play episodes, in a terminal of the test's own."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from mirl import play as play_command
from mirl.agents.watch import keyboard
from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.keyboard import key_actions, play, read_key, screen
from mirl.agents.watch.single_env import open_env
from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig

SCRIPT = Path(__file__).parents[3] / "play.py"
SECONDS = 90
"""Time until a screen has to appear, at most."""


def player_of(env_id: str = "MiniGrid-GoToDoor-5x5-v0") -> EpisodePlayer:
    suite = SuiteConfig(name="s", tasks=(TaskConfig(name="t", env_id=env_id),))
    env = open_env(suite, 0)
    assert env is not None
    return EpisodePlayer(env, suite, 0)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (b"\x1b[A", "up"),
        (b"\x1bOD", "left"),
        (b"\x1b[1;5C", "right"),
        (b"\x1b[3~", ""),
        (b"\x1b", ""),
        (b" ", "space"),
        (b"\n", "enter"),
        (b"p", "p"),
        (b"\x04", "q"),
        (b"", "q"),
        ("é".encode(), ""),
    ],
)
def test_keys_have_names(typed: bytes, name: str) -> None:
    reader, writer = os.pipe()
    os.write(writer, typed)
    os.close(writer)
    try:
        assert read_key(reader) == name
    finally:
        os.close(reader)


def test_keys_follow_each_other() -> None:
    """Keys that are typed ahead are read one by one."""
    reader, writer = os.pipe()
    os.write(writer, b"\x1b[A\x1b[Bd\x1b[C")
    os.close(writer)
    try:
        assert [read_key(reader) for _ in range(4)] == ["up", "down", "d", "right"]
    finally:
        os.close(reader)


@pytest.fixture
def play_keys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``play_keys(player, keys)``: the screens of a person who types some keys."""

    def run(player: EpisodePlayer, keys: Sequence[str]) -> list[str]:
        typed = iter([*keys, "q"])

        @contextmanager
        def no_terminal() -> Iterator[Callable[[], str]]:
            yield lambda: next(typed)

        monkeypatch.setattr(keyboard, "typed_keys", no_terminal)
        written: list[str] = []
        with closing(player.env):
            play(player, 3, written.append)
        return written

    return run


def test_keys_take_their_actions(play_keys: Callable[..., list[str]]) -> None:
    """Each key is an action, others are none, and Enter starts an episode after the end."""
    shown = play_keys(player_of(), ["left", "right", "up", "p", "d", "x", "enter", "up", "enter"])
    steps = [re.search(r"step .*", text) for text in shown]
    assert [step[0] for step in steps if step is not None] == [
        "step 0",
        "step 1, action: left",
        "step 2, action: right",
        "step 3, action: forward",
        "step 4, action: pickup",
        "step 5, action: drop",
        "step 5, action: drop",
        "step 6, action: done",
        "step 6, action: done",
        "step 0",
    ]
    assert re.search(r"return 0\.\d\d, (success|failure)\n", shown[7])
    assert "keys: Enter or n next episode, q quit" in shown[7]


@pytest.mark.parametrize("key", ["t", "space"])
def test_toggle_has_two_keys(play_keys: Callable[..., list[str]], key: str) -> None:
    shown = play_keys(player_of("MiniGrid-Empty-5x5-v0"), [key])
    assert "step 1, action: toggle\n" in shown[1]


def test_digits_play_other_tasks(play_keys: Callable[..., list[str]]) -> None:
    """Actions without names are digits, and n starts another episode at any time."""
    shown = play_keys(player_of("FrozenLake-v1"), ["0", "n", "9"])
    assert "keys: 0, 1, 2, 3; n next episode, q quit" in shown[0]
    assert "step 1, action: 0\n" in shown[1]
    assert all("step 0\n" in text for text in shown[2:])


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(11)])
def test_unplayable_actions_are_one_line(space: spaces.Space[np.ndarray]) -> None:
    player = player_of("FrozenLake-v1")
    with closing(player.env) as env:
        env.action_space = space
        other = EpisodePlayer(env, SuiteConfig(name="s", tasks=(player.task,)), 0)
        with pytest.raises(ConfigError, match="task 't' cannot be played by keys: its actions are"):
            key_actions(other)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 60), (30, 50), (20, 8)])
def test_screen_fits_the_terminal(columns: int, lines: int) -> None:
    player = player_of()
    with closing(player.env):
        player.start(0)
        shown = screen(player, key_actions(player), columns, lines).splitlines()
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in shown]
    assert max(len(line) for line in plain) <= columns
    assert len(plain) < lines or lines == 8  # where the picture keeps a line
    assert any("▀" in line for line in plain)


class Terminal:
    """The other end of a terminal in which ``mirl-play`` runs."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = ""

    def type_keys(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text: str) -> str:
        """Read until a text appears; return what was shown since the last one."""
        end = time.monotonic() + SECONDS
        while text not in self.shown:
            assert time.monotonic() < end, f"no '{text}' in {self.shown!r}"
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.shown += os.read(self.descriptor, 100_000).decode(errors="ignore")
        before, self.shown = self.shown.split(text, 1)
        return before + text


@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals")
def test_command_plays_in_terminal() -> None:
    """Typed keys lead to the end of an episode and to the next; q ends the command."""
    near, far = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24"}
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    command = [sys.executable, str(SCRIPT), "task=goto_door", "seed=1"]
    with subprocess.Popen(command, stdin=far, stdout=far, stderr=far, env=environment) as process:
        os.close(far)
        terminal = Terminal(near)
        try:
            mission = re.search(r"Task: (go to the \w+ door)", terminal.wait_for("n next episode"))
            assert mission is not None
            terminal.type_keys("\x1b[D")
            terminal.wait_for("step 1, action: left")
            terminal.type_keys("\n")
            assert mission[1] in terminal.wait_for("step 2, action: done")
            terminal.wait_for("return 0.00, failure")
            terminal.type_keys("n")
            terminal.wait_for("step 0")
            terminal.type_keys("q")
            assert process.wait(timeout=SECONDS) == 0
        finally:
            process.kill()
            os.close(near)


def test_missing_terminal_is_one_line() -> None:
    """Without a terminal and a display, the command says so and ends with exit code 2."""
    environment = dict(os.environ)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, SCRIPT, "task=goto_door"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    error = "error: expected a terminal to type in, or a display for a window, .* mirl-watch\n"
    assert re.fullmatch(error, done.stderr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("task=mt3 level=lava", "suite 'mt3' has no task 'lava'"),
        ("task=CartPole-v1 view=window", "has no get_keys_to_action; use view=terminal"),
        ("task=roles4", "is a game of several agents"),
        ("task=goto_door view=page", "expected 'auto', 'window' or 'terminal', got 'page'"),
    ],
)
def test_mistakes_say_what_is_possible(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        play_command.run(words.split())
