"""Metrics and weights of a run without clock times, to compare two runs."""

import csv
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLOCK = ("speed/", "time/fps", "time/time_elapsed", "time/iterations")
"""Prefixes of metrics that depend on clock time or on the start of the process."""


def metrics_of(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    records: list[dict[str, str]] = []
    for row in rows:
        records.append({key: value for key, value in row.items() if not key.startswith(CLOCK)})
    return records


def points_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of the TensorBoard events: (timestep, value) by tag."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(CLOCK)]
    curves: dict[str, list[tuple[int, float]]] = {}
    for tag in tags:
        curves[tag] = [(point.step, point.value) for point in events.Scalars(tag)]
    return curves


def tensors_of(run_dir: Path) -> dict[str, np.ndarray]:
    """Return the tensors of all checkpoints by ``<checkpoint>/<file>/<name>``."""
    tensors: dict[str, np.ndarray] = {}
    for path in run_dir.glob("checkpoints/step_*/*.safetensors"):
        for name, values in load_file(path).items():
            tensors[f"{path.parent.name}/{path.name}/{name}"] = values
    return tensors
