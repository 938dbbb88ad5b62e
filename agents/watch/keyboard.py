"""Episodes that a person plays in the terminal with the keyboard."""

import os
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mirl.agents.watch.caption import note_of
from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import render
from mirl.agents.watch.terminal import CLEAR, half_blocks
from mirl.configs.errors import ConfigError

GRID_KEYS = {
    "left": ("left",),
    "right": ("right",),
    "forward": ("up",),
    "pickup": ("p",),
    "drop": ("d",),
    "toggle": ("t", "space"),
    "done": ("enter",),
}
"""Keys of MiniGrid's actions by their names."""
NAMED_CHARACTERS = {" ": "space", "\n": "enter", "\r": "enter", "\x04": "q"}
"""Names of the keys that are not visible characters; Ctrl-D is ``q``."""
ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}
"""Arrow keys by the last character of the escape sequence that a terminal sends for them."""
SEQUENCE_SECONDS = 0.05
"""Maximum time in seconds until a terminal sends the rest of such a sequence."""
MAX_COLUMNS = 96
"""Maximum width of a picture, in characters."""


def play(player: EpisodePlayer, seed: int, write: Callable[[str], object]) -> None:
    """Play episodes with typed keys, until ``q``.

    Args:
        player: the episodes.
        seed: seed of the first episode.
        write: writes text to the terminal.

    Raises:
        ConfigError: there is no terminal to type in, or there are no keys for the actions.
    """
    keys = key_actions(player)
    with typed_keys() as read_key:
        player.start(seed)
        while True:
            write(CLEAR + screen(player, keys, *shutil.get_terminal_size()))
            key = read_key()
            if key == "q":
                return
            if key == "n" or (player.is_over and key == "enter"):
                player.start(None)
            elif key in keys and not player.is_over:
                player.step(keys[key])


def key_actions(player: EpisodePlayer) -> dict[str, int]:
    """Return the action of each key: letters and arrows for MiniGrid's actions, else digits.

    Args:
        player: the episodes.

    Raises:
        ConfigError: the actions are not ``Discrete``, or there are more than ten.
    """
    names = player.action_names
    if names and set(names) <= GRID_KEYS.keys():
        keys: dict[str, int] = {}
        for action, name in enumerate(names):
            keys |= dict.fromkeys(GRID_KEYS[name], action)
        return keys
    if not 0 < len(names) <= 10:
        raise ConfigError(
            f"task '{player.task.name}' cannot be played by keys: its actions are "
            f"{player.env.action_space}, expected MiniGrid's or a Discrete of at most 10; "
            "mirl-watch shows an agent that was trained on it"
        )
    return {str(action): action for action in range(len(names))}


def screen(player: EpisodePlayer, keys: dict[str, int], columns: int, lines: int) -> str:
    """Return the text of a screen: mission, picture, step, return, outcome and keys.

    Args:
        player: the episode.
        keys: the action of each key.
        columns: width of the terminal.
        lines: height of the terminal.
    """
    help_lines = textwrap.wrap(f"keys: {_described(player, keys)}; n next episode, q quit", columns)
    # as many lines at the end of an episode, so that the picture keeps its size
    n_below = 2 + len(help_lines)
    if player.is_over:
        help_lines = ["keys: Enter or n next episode, q quit"]
    note = note_of(player)
    above = textwrap.wrap(f"Task: {player.mission}", columns)
    below = [note.step, note.result, *help_lines]
    frame = render(player.env)
    height, width, _ = frame.shape
    # a character is as wide as a pixel and as high as two of them; one line is for the cursor
    free_lines = max(lines - len(above) - n_below - 1, 1)
    picture_columns = min(columns, MAX_COLUMNS, 2 * free_lines * width // height)
    return "\n".join([*above, half_blocks(frame, max(picture_columns, 1)), *below]) + "\n"


def _described(player: EpisodePlayer, keys: dict[str, int]) -> str:
    """Return the keys in words: ``left, up forward, t or space toggle``."""
    texts = []
    for action, name in enumerate(player.action_names):
        of_action = " or ".join(key for key, number in keys.items() if number == action)
        texts.append(name if name == of_action else f"{of_action} {name}")
    return ", ".join(texts)


@contextmanager
def typed_keys() -> Iterator[Callable[[], str]]:
    """Read keys from the terminal as they are typed; yield a function that waits for the next.

    Raises:
        ConfigError: standard input is not a terminal, or the system does not support this.
    """
    try:
        # only on Unix
        import termios
        import tty
    except ImportError:
        raise ConfigError("view=terminal needs a Unix terminal; use view=window") from None
    if not sys.stdin.isatty():
        raise ConfigError(
            "expected a terminal to type in, or a display for a window, and there is neither; "
            "start mirl-play in a terminal (ssh -t HOST), or see an agent by mirl-watch"
        )
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # deliver each key at once, and keep Ctrl-C working
        tty.setcbreak(descriptor)
        yield lambda: read_key(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_key(descriptor: int) -> str:
    """Wait for a key and return its name: ``p``, ``space``, ``up``; empty for an unused key.

    Args:
        descriptor: file descriptor of the terminal.
    """
    byte = os.read(descriptor, 1)
    if not byte:  # the terminal was closed
        return "q"
    character = byte.decode(errors="ignore")
    if character != "\x1b":
        return NAMED_CHARACTERS.get(character, character)
    # an arrow is sent as ESC [ A or ESC O A; the Escape key as ESC alone
    sequence = ""
    while select.select([descriptor], [], [], SEQUENCE_SECONDS)[0]:
        byte = os.read(descriptor, 1)
        if not byte:  # the terminal was closed
            return ""
        sequence += byte.decode(errors="ignore")
        if len(sequence) > 1 and (sequence[-1].isalpha() or sequence[-1] == "~"):
            return ARROWS.get(sequence[-1], "")
    return ""
