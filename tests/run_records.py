"""What a run left behind, without the times: two runs of one configuration must leave the same."""

import csv
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLOCK = ("speed/", "time/fps", "time/time_elapsed", "time/iterations")
"""Columns that tell the time, or count from where the process began."""


def metrics_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]


def points_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(CLOCK)]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def tensors_of(run_dir: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.parent.name}/{path.name}/{name}": values
        for path in run_dir.glob("checkpoints/step_*/*.safetensors")
        for name, values in load_file(path).items()
    }
