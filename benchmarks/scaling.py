"""Speed and memory against environments, tasks and parameters: ``python benchmarks/scaling.py [--seconds 6]``.

The default agent (bilinear, PPO, missions) trained end to end, each point in a process of its own: on GoToLocal with 16
to 4096 environments (rollouts of at least 8192 timesteps), on 1 to 30 BabyAI tasks together, and with networks of
several widths. Results are written after each point; the curves are drawn to ``docs/pictures/scaling.png``.
"""

import argparse
from pathlib import Path
from typing import Any

from machine import write_results
from throughput import run

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
TASKS = (1, 2, 5, 10, 20, 30)
WIDTHS = ((16, 64), (32, 128), (64, 256), (128, 512))
LEVELS = (
    *("GoToLocal", "GoToRedBallGrey", "GoToRedBall", "GoToRedBlueBall", "GoToObj", "GoToObjS4", "GoToDoor"),
    *("GoToLocalS5N2", "GoToLocalS6N2", "GoToLocalS6N3", "GoToLocalS6N4", "GoToLocalS7N4", "GoToLocalS7N5"),
    *("GoToLocalS8N2", "GoToLocalS8N3", "GoToLocalS8N4", "GoToLocalS8N5", "GoToLocalS8N6", "GoToLocalS8N7"),
    *("PickupLoc", "PickupDist", "PickupDistDebug", "PutNextLocal", "PutNextLocalS5N3", "PutNextLocalS6N4"),
    *("OpenRedDoor", "OpenDoor", "OpenDoorColor", "OpenDoorLoc", "ActionObjDoor"),
)


def points() -> dict[str, list[tuple[int, str]]]:
    """Per series, the value and the options of ``train.py`` that stand for it."""
    suites = [
        ", ".join(f"{{name: {level}, env_id: BabyAI-{level}-v0}}" for level in LEVELS[:number]) for number in TASKS
    ]
    return {
        "environments": [
            (n, f"task=goto_local agent.n_envs={n} agent.n_steps={max(8, 8192 // n)}") for n in ENVIRONMENTS
        ],
        "tasks": [
            (number, f"task.name=babyai task.tasks=[{suite}] agent.n_envs=240 agent.n_steps=32 agent.batch_size=960")
            for number, suite in zip(TASKS, suites, strict=True)
        ],
        "parameters": [
            (channels, f"task=goto_local encoder.channels={channels} encoder.features_dim={features}")
            for channels, features in WIDTHS
        ],
    }


def words(options: str) -> list[str]:
    """Options apart; a list holds blanks of its own."""
    head, bracket, tail = options.partition("task.tasks=[")
    inside, _, rest = tail.partition("]")
    return [*head.split(), *([bracket + inside + "]"] if bracket else []), *rest.split()]


def draw(measurements: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Steps per second and memory, one panel per series."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(measurements), figsize=(13, 3.2), layout="constrained")
    for axes, (series, found) in zip(panels, measurements.items(), strict=True):
        values = [point["parameters" if series == "parameters" else "value"] for point in found]
        axes.plot(values, [point["steps_per_second"] for point in found], marker="o", color="tab:blue")
        axes.set(xscale="log", xlabel=series, ylim=(0, None))
        axes.set_xticks(
            values, [f"{value / 1000:.0f}k" if value >= 10_000 else f"{value}" for value in values], fontsize=7
        )
        axes.minorticks_off()
        axes.set_ylabel("steps/s", color="tab:blue")
        memory = axes.twinx()
        memory.plot(values, [point["peak_rss_bytes"] / 2**20 for point in found], marker=".", color="tab:orange")
        memory.set(ylim=(0, None))
        memory.set_ylabel("peak memory, MiB", color="tab:orange")
    figure.savefig(path, dpi=150)


def table(measurements: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Columns and a row per point."""
    columns = ["", "", "parameters", "steps/s", "peak memory, MiB", "rollout, MiB"]
    rows = [
        [
            series,
            f"{point['value']:,}" + " channels" * (series == "parameters"),
            f"{point['parameters']:,}",
            f"{point['steps_per_second']:,.0f}",
            f"{point['peak_rss_bytes'] / 2**20:,.0f}",
            f"{point['rollout_bytes'] / 2**20:.1f}",
        ]
        for series, found in measurements.items()
        for point in found
    ]
    return columns, rows


def main() -> None:
    """Measure every point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6)
    arguments = parser.parse_args()
    measurements: dict[str, list[dict[str, Any]]] = {}
    for series, wanted in points().items():
        measurements[series] = []
        for value, options in wanted:
            found = {"value": value, **run(words(options), arguments.seconds)}
            measurements[series].append(found)
            print(f"{series:<14}{value:>6}{found['steps_per_second']:>10,.0f} steps/s", flush=True)  # noqa: T201
            write_results("scaling", *table(measurements), measurements)
    draw(measurements, ROOT / "docs" / "pictures" / "scaling.png")


if __name__ == "__main__":
    main()
