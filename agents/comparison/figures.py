"""Figures of a comparison: learning curves over the seeds, as PNG, PDF and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mirl.agents.comparison.statistics import rate_interval, t_interval
from mirl.agents.comparison.worker import Record
from mirl.configs.tasks import file_name

FORMATS = ("png", "pdf", "svg")
"""File formats of every figure."""
COLUMNS = 3
"""Maximum number of panels in a row."""
CurveName = Literal["success_curve", "return_curve", "held_out_curve"]


def draw_figures(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Draw the learning curves: ``curves`` with a panel per task, ``curves-TASK`` for each.

    A line is the mean over the seeds, the band its 95 % interval. Held-out episodes
    are dashed. If a task reports no success, its return is drawn.

    Args:
        folder: folder of the files.
        records: the records of the finished runs, at least one.

    Returns:
        The written files.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    written = _draw(folder / "curves", tasks, records)
    if len(tasks) > 1:
        for task in tasks:
            written += _draw(folder / f"curves-{file_name(task)}", [task], records)
    return written


def _draw(stem: Path, tasks: Sequence[str], records: Sequence[Record]) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")  # draws without a display
    from matplotlib import pyplot as plt

    n_columns = min(len(tasks), COLUMNS)
    n_rows = -(-len(tasks) // n_columns)
    size = (4.2 * n_columns + 1.8, 3.4 * n_rows)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=size, layout="constrained", squeeze=False
    )
    panels = list(grid.flat)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    settings = list(dict.fromkeys(record["setting"] for record in records))
    handles: dict[str, Any] = {}
    for axes, task in zip(panels, tasks, strict=False):
        of_task = [record for record in records if record["task"] == task]
        handles |= _draw_task(axes, of_task, settings)
        axes.set_title(task)
    # next to the panels, so that it does not cover any curve
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    written = []
    for kind in FORMATS:
        path = stem.with_name(f"{stem.name}.{kind}")
        figure.savefig(path, dpi=150)
        written.append(path)
    plt.close(figure)
    return written


def _draw_task(axes: Any, records: Sequence[Record], settings: Sequence[str]) -> dict[str, Any]:
    """Draw the curves of one task; return the lines by their entry in the legend."""
    reports_success = all(record["success_curve"] for record in records)
    main: CurveName = "success_curve" if reports_success else "return_curve"
    handles = {}
    for number, setting in enumerate(settings):
        runs = [record for record in records if record["setting"] == setting]
        style = {"color": f"C{number}", "linewidth": 1.6}
        line = _draw_curve(axes, runs, main, style)
        if line is not None:
            handles[setting] = line
        if reports_success:
            dashed = _draw_curve(axes, runs, "held_out_curve", {**style, "linestyle": "--"})
            if dashed is not None:
                handles[f"{setting}, held out"] = dashed
    axes.set_xlabel("timesteps")
    axes.set_ylabel("success on unseen episodes" if reports_success else "return")
    if reports_success:
        axes.set_ylim(0, 1.02)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _draw_curve(
    axes: Any, runs: Sequence[Record], name: CurveName, style: dict[str, Any]
) -> Any | None:
    """Draw the mean and the interval of some runs; return the line, None if there is no curve."""
    curves = [run[name] for run in runs]
    # the runs may differ in their number of evaluations: use those that all have
    n_points = min((len(curve) for curve in curves), default=0)
    if n_points == 0:
        return None
    steps = [step for step, _ in curves[0][:n_points]]
    # (runs, points, 2) -> (points, runs)
    values = np.array([curve[:n_points] for curve in curves])[:, :, 1].T
    [line] = axes.plot(steps, values.mean(-1), **style)
    if len(runs) > 1:
        interval = t_interval if name == "return_curve" else rate_interval
        low, high = interval([values])
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return line
