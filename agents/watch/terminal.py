"""A session in the terminal: pictures of colored half blocks."""

import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from mirl.agents.watch.session import Moment, Session
from mirl.agents.watch.single_env import Frame

COLUMNS = 64
"""Width of a picture, in characters."""
CLEAR = "\x1b[H\x1b[J"
"""Escape sequence that moves to the top left corner and clears the screen."""
RESET = "\x1b[0m"
BETWEEN_EPISODES = 1.5
"""Seconds for which the end of an episode is shown."""


def play(
    session: Session, speed: float, write: Callable[[str], object], episodes: int | None = None
) -> None:
    """Show episodes until Ctrl-C.

    Args:
        session: the session.
        speed: timesteps per second.
        write: writes text to the terminal.
        episodes: number of episodes; None for no limit.
    """
    played = 0
    while episodes is None or played < episodes:
        write(CLEAR + screen(session.moment()))
        if not session.is_over:
            time.sleep(1 / speed)
            session.step()
            continue
        played += 1
        if played != episodes:
            time.sleep(BETWEEN_EPISODES)
            session.next_episode()


def screen(moment: Moment) -> str:
    """Return the text of a screen: mission, picture, and the numbers behind the next action.

    Args:
        moment: the timestep.
    """
    value = ""
    if moment.value is not None:
        value = f", value {moment.value:.2f}"
    lines = [
        moment.mission,
        half_blocks(moment.picture),
        f"episode {moment.episode}, timestep {moment.timestep}, "
        f"return {moment.episode_return:.2f}{value}: {moment.outcome}",
    ]
    if moment.unknown_words:
        words = ", ".join(moment.unknown_words)
        lines.insert(1, f"the missions of this task never have: {words}")
    if moment.action:
        lines.append(f"next action: {moment.action}")
    for name, probability in moment.probabilities.items():
        lines.append(f"{name:>10} {probability:4.0%} {'█' * round(30 * probability)}")
    return "\n".join(lines) + "\n"


def half_blocks(frame: Frame, columns: int = COLUMNS) -> str:
    """Return a picture as lines of half blocks, each of which shows two pixels.

    Args:
        frame: the picture, (H, W, 3).
        columns: width in characters.
    """
    # an even number of rows, because a character shows two of them
    height = 2 * max(1, round(columns * frame.shape[0] / frame.shape[1] / 2))
    pixels = np.asarray(Image.fromarray(frame).resize((columns, height), Image.Resampling.BOX))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = []
        for (r, g, b), (under_r, under_g, under_b) in zip(
            upper.tolist(), lower.tolist(), strict=True
        ):
            cells.append(f"\x1b[38;2;{r};{g};{b};48;2;{under_r};{under_g};{under_b}m▀")
        lines.append("".join(cells) + RESET)
    return "\n".join(lines)
