"""Hints to the nearest valid name."""

import pytest

from mirl.configs.errors import nearest


@pytest.mark.parametrize(
    ("name", "valid", "hint"),
    [
        ("flim", ["film", "gate"], " Did you mean 'film'?"),
        ("xyz", ["film", "gate"], " Valid: film, gate."),
        ("xyz", [], ""),
        ("xyz", [f"option{i}" for i in range(50)], ""),
    ],
)
def test_hint_is_nearest_name(name: str, valid: list[str], hint: str) -> None:
    """The hint is the nearest name, or else the list of valid names if it is short."""
    assert nearest(name, valid) == hint
