"""Pictures of curves, one look for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


@contextmanager
def picture(name: str, **labels: Any) -> Iterator[Any]:
    """Axes of matplotlib, which ``labels`` are set on; written to ``docs/pictures/NAME.png`` at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    yield axes
    axes.set(**labels)
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURES / f"{name}.png", dpi=150)
    plt.close(figure)


def draw_range(axes: Any, x: list[int], values: np.ndarray, label: str, **style: Any) -> None:
    """A line through the means of values (runs, points), over a band from the lowest to the highest."""
    [line] = axes.plot(x, values.mean(0), label=label, linewidth=1.6, **style)
    axes.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
