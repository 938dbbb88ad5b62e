"""Figures of the benchmarks, all in one style."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from machine import ROOT

PICTURES = ROOT / "docs" / "pictures"
"""Folder of the figures."""


@contextmanager
def figure(
    name: str, n_panels: int = 1, size: tuple[float, float] = (7, 3.6), n_rows: int = 1
) -> Iterator[list[Any]]:
    """Create a figure, and write it to ``docs/pictures/NAME.png`` on exit.

    Args:
        name: The name of the file.
        n_panels: Number of panels.
        size: Width and height in inches.
        n_rows: Number of rows of panels, a divisor of their number.

    Yields:
        The axes of each panel.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # draws without a display
    from matplotlib import pyplot as plt

    drawn, panels = plt.subplots(
        n_rows, n_panels // n_rows, figsize=size, layout="constrained", squeeze=False
    )
    yield list(panels.flat)
    drawn.savefig(PICTURES / f"{name}.png", dpi=150)
    plt.close(drawn)


@contextmanager
def picture(name: str, **labels: Any) -> Iterator[Any]:
    """Create a figure with one panel and a legend, and write it as ``figure`` does.

    Args:
        name: The name of the file.
        **labels: Properties of the axes, such as ``xlabel`` and ``ylim``.

    Yields:
        The axes.
    """
    with figure(name) as [axes]:
        yield axes
        axes.set(**labels)
        # next to the axes, so that it does not cover any curve
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)


def draw_range(axes: Any, x: list[int], values: np.ndarray, label: str, **style: Any) -> None:
    """Draw the mean of several runs as a line, over a band from their minimum to their maximum.

    Args:
        axes: The axes to draw on.
        x: The points on the horizontal axis, of shape (points,).
        values: The values, of shape (runs, points).
        label: The entry of the legend.
        **style: Properties of the line.
    """
    [line] = axes.plot(x, values.mean(0), label=label, linewidth=1.6, **style)
    color = line.get_color()
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
