"""Kinds of subspaces by shape, dtype and bounds."""

import numpy as np
import pytest
from gymnasium import spaces

from mirl.policies.encoders import kind_of, reads_pixels, space_text


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (spaces.Box(0, 20, (6,), np.int16), "text"),
        (spaces.Box(1, 20, (6,), np.int16), "vector"),
        (spaces.Box(0, 255, (40, 40, 3), np.uint8), "image"),
        (spaces.Box(0, 1, (40, 40, 3), np.float32), "image"),
        (spaces.Box(0, 255, (40, 40), np.uint8), "image"),
        (spaces.Box(0, 1, (7, 7, 9), np.float32), "grid"),
        (spaces.Box(0, 10, (7, 7, 3), np.uint8), "grid"),
        (spaces.Box(0, 10, (7, 7), np.uint8), "grid"),
        (spaces.Box(-1, 1, (7, 7), np.float32), "vector"),
        (spaces.Box(0, 10, (2, 2), np.uint8), "vector"),
        (spaces.Box(-1, 1, (5,), np.float32), "vector"),
        (spaces.Discrete(4), "vector"),
    ],
    ids=str,
)
def test_kind_follows_the_space(space: spaces.Space[object], kind: str) -> None:
    assert kind_of(space) == kind


def test_codes_are_no_pixels() -> None:
    """Codes are not read as pixels; bytes of rank 2 can be both."""
    assert not reads_pixels(spaces.Box(0, 10, (7, 7, 3), np.uint8))
    assert reads_pixels(spaces.Box(0, 255, (40, 40, 3), np.uint8))
    assert reads_pixels(spaces.Box(0, 255, (40, 40), np.uint8))


def test_text_of_space_is_one_line() -> None:
    """The description of a space with different bounds prints no arrays."""
    high = np.arange(60, dtype=np.float32).reshape(4, 5, 3)
    space = spaces.Box(np.zeros_like(high), high, (4, 5, 3), np.float32)
    assert space_text(space) == "Box(0, 59, (4, 5, 3), float32)"
    assert space_text(spaces.Discrete(3)) == "Discrete(3)"
