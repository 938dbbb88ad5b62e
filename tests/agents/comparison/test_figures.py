"""Figures of a comparison are written in every format."""

from pathlib import Path

import pytest
from comparison_records import record, summary, two_settings

from mirl.agents.comparison.figures import draw_figures


def test_one_figure_and_one_per_task(tmp_path: Path) -> None:
    records = two_settings("a", [0.2, 0.4], [0.4, 0.6]) + two_settings("b/c", [0.6], [1.0])
    records[0]["held_out_curve"] = [(100, 0.5)]
    expected = {
        f"{name}.{kind}"
        for name in ("curves", "curves-a", "curves-b-c")
        for kind in ("png", "pdf", "svg")
    }
    written = draw_figures(tmp_path, records)
    assert {path.name for path in written} == expected
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("points", [[], [(100, 1.0)]])
def test_short_curves_can_be_drawn(tmp_path: Path, points: list[tuple[int, float]]) -> None:
    of_run = record("film", "a", 0, summary("a", None, 1.0))
    of_run["return_curve"] = points
    assert len(draw_figures(tmp_path, [of_run])) == 3
