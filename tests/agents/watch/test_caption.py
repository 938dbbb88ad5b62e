"""Captions: what is asked and what is done, within the width of the picture."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from mirl.agents.watch.caption import (
    FONT_SIZE,
    LINE,
    MARGIN,
    MAX_HEIGHT,
    MAX_MISSION_LINES,
    WIDTH,
    Note,
    captioned,
    scaled,
    shortened,
    wrapped,
)

PLAIN = Image.new("RGB", (WIDTH, 100))
FONT = ImageFont.load_default(FONT_SIZE)


def below(mission: str, note: Note) -> np.ndarray:
    """Return the pixels of a caption."""
    return np.asarray(captioned(PLAIN, mission, note))[PLAIN.height + 1 :]


def test_each_part_is_shown() -> None:
    """The mission, the step and the result each change their own lines."""
    first = below("go to the red door", Note("step 1", "return 0.00"))
    rows = {
        0: below("go to the blue door", Note("step 1", "return 0.00")),
        1: below("go to the red door", Note("step 2", "return 0.00")),
        2: below("go to the red door", Note("step 1", "return 0.50")),
    }
    for row, other in rows.items():
        changed = np.flatnonzero((first != other).any(axis=(1, 2)))
        assert changed.min() >= MARGIN + LINE * row - 1
        assert changed.max() <= MARGIN + LINE * (row + 1)


def test_outcome_has_its_color() -> None:
    pixels = below("", Note("", "success", "#00ff00")).reshape(-1, 3)
    assert (pixels == (0, 255, 0)).all(axis=1).any()


@pytest.mark.parametrize("letter", ["W", "i", "W ", "go to it "])
def test_lines_fit_the_width(letter: str) -> None:
    """Wide letters, long words and long texts stay within the picture."""
    lines = wrapped(f"Task: {letter * 60}", FONT)
    lines.append(shortened(letter * 60, FONT))
    assert max(FONT.getlength(line) for line in lines) <= WIDTH - 2 * MARGIN
    assert FONT.getlength(lines[-1]) > WIDTH / 2


def test_very_long_mission_ends_early() -> None:
    lines = wrapped("open the door " * 100, FONT)
    assert len(lines) == MAX_MISSION_LINES
    assert lines[-1].endswith(" …")
    assert wrapped("open the door", FONT) == ["open the door"]


def test_size_depends_on_mission_alone() -> None:
    """All frames of a video have one size, whatever their notes say."""
    sizes = {
        captioned(PLAIN, "go", Note(step, "return 0.00, failure: time limit")).size
        for step in ("", "step 1", "step 1, action: " + "-0.12 " * 30)
    }
    assert sizes == {(WIDTH, PLAIN.height + 3 * LINE + 2 * MARGIN)}


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (20, 40, (WIDTH, WIDTH // 2)),
        (480, 480, (WIDTH, WIDTH)),
        (1, 5000, (WIDTH, 1)),
        (5000, 1, (1, MAX_HEIGHT)),
    ],
)
def test_frames_keep_their_proportions(height: int, width: int, expected: tuple[int, int]) -> None:
    assert scaled(np.zeros((height, width, 3), np.uint8)).size == expected


def test_high_picture_is_centered() -> None:
    picture = scaled(np.zeros((100, 10, 3), np.uint8))
    row = np.asarray(captioned(picture, "", Note("", "")))[10, :, 0]
    black = np.flatnonzero(row == 0)
    assert black.size == picture.width
    assert abs(black.min() - (WIDTH - 1 - black.max())) <= 1
