"""A session in the terminal."""

import re
from collections.abc import Callable

import numpy as np

from mirl.agents.watch.session import Session
from mirl.agents.watch.terminal import CLEAR, half_blocks, play, screen

Open = Callable[..., Session]
COLOR = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")


def test_half_blocks_have_the_colors() -> None:
    """A character has the upper pixel as its foreground and the lower one as its background."""
    frame = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)
    [line] = half_blocks(frame, columns=2).splitlines()
    assert COLOR.findall(line) == [
        ("255", "0", "0", "0", "0", "255"),
        ("0", "255", "0", "9", "8", "7"),
    ]


def test_screen_has_mission_and_numbers(open_session: Open) -> None:
    session = open_session(mission="go to the pink door")
    lines = screen(session.moment()).splitlines()
    assert lines[0] == "go to the pink door"
    assert lines[1] == "the missions of this task never have: pink"
    assert any(line.startswith("next action: ") for line in lines)
    assert any(re.match(r" +forward +\d+%", line) for line in lines)


def test_play_shows_whole_episodes(open_session: Open) -> None:
    """Two episodes are shown from their first to their last timestep."""
    written: list[str] = []
    session = open_session()
    play(session, 10_000, written.append, episodes=2)
    assert all(text.startswith(CLEAR) for text in written)
    assert sum("timestep 0," in text for text in written) == 2
    assert sum(": running" not in text for text in written) == 2
