"""Pictures with a caption below them: the mission, the last action and its result."""

import textwrap
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mirl.agents.watch.episode import EpisodePlayer
from mirl.agents.watch.single_env import Frame

WIDTH = 320
"""Width of a picture, in pixels."""
MAX_HEIGHT = 480
"""Maximum height of a picture without its caption, in pixels."""
LINE = 19
"""Height of a line of the caption, in pixels."""
MARGIN = 6
"""Pixels between the caption and the edges."""
FONT_SIZE = 15
MAX_MISSION_LINES = 8
"""Maximum number of lines of a mission; the rest is left out."""
SUCCESS_COLOR = "#006400"
FAILURE_COLOR = "#b00000"


class Note(NamedTuple):
    """The lines below a picture that change from one timestep to the next."""

    step: str
    """The number of the timestep and the action that led to it."""
    result: str
    """The return so far, and at the end the outcome."""
    color: str = "black"
    """Color of the result."""


def note_of(player: EpisodePlayer) -> Note:
    """Return the note for the current timestep of an episode.

    Args:
        player: the episode.
    """
    step = f"step {player.timestep}"
    if player.last_action:
        step += f", action: {player.last_action}"
    result = f"return {player.episode_return:.2f}"
    if player.is_over:
        result += f", {player.ending}"
    colors = {"success": SUCCESS_COLOR, "failure": FAILURE_COLOR}
    return Note(step, result, colors.get(player.outcome, "black"))


def scaled(frame: Frame) -> Image.Image:
    """Return a frame scaled to its display size.

    Args:
        frame: the frame, (H, W, 3).
    """
    height, width, _ = frame.shape
    scale = min(WIDTH / width, MAX_HEIGHT / height)
    # a frame that is very wide or very high keeps a line of pixels
    size = (max(round(scale * width), 1), max(round(scale * height), 1))
    # nearest-neighbor keeps the few pixels of a small frame sharp
    method = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BICUBIC
    return Image.fromarray(frame).resize(size, method)


def captioned(picture: Image.Image, mission: str, note: Note, legend: str = "") -> Image.Image:
    """Return a picture with its caption; the note does not change its size.

    Args:
        picture: a picture from ``scaled``.
        mission: the mission, which is wrapped.
        note: the lines below it.
        legend: the last line, with the meaning of the marks in the picture; empty for none.
    """
    font = ImageFont.load_default(FONT_SIZE)
    lines = [(line, "black") for line in wrapped(f"Task: {mission}", font)]
    lines += [
        (shortened(note.step, font), "black"),
        (shortened(note.result, font), note.color),
    ]
    if legend:
        lines.append((shortened(legend, font), "black"))
    height = picture.height + LINE * len(lines) + 2 * MARGIN
    image = Image.new("RGB", (WIDTH, height), "white")
    image.paste(picture, ((WIDTH - picture.width) // 2, 0))
    draw = ImageDraw.Draw(image)
    draw.line((0, picture.height, WIDTH, picture.height), fill="lightgray")
    for number, (line, color) in enumerate(lines):
        top = picture.height + MARGIN + LINE * number
        draw.text((MARGIN, top), line, fill=color, font=font)
    return image


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def wrapped(text: str, font: Font) -> list[str]:
    """Return a text as lines that fit the width, at most ``MAX_MISSION_LINES``.

    Args:
        text: the text.
        font: its font.
    """
    # letters differ in width, so fewer and fewer per line until the widest line fits
    for columns in range(80, 8, -1):
        lines = textwrap.wrap(
            text, columns, max_lines=MAX_MISSION_LINES, placeholder=" …", break_on_hyphens=False
        )
        if all(_fits(line, font) for line in lines):
            break
    return lines


def shortened(text: str, font: Font) -> str:
    """Return a text that fits the width, with … in place of its end if it is longer.

    Args:
        text: the text.
        font: its font.
    """
    if _fits(text, font):
        return text
    while text and not _fits(f"{text} …", font):
        text = text[:-1]
    return f"{text} …"


def _fits(line: str, font: Font) -> bool:
    return font.getlength(line) <= WIDTH - 2 * MARGIN
