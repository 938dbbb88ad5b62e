"""Measure throughput and memory against environments, tasks and parameters.

    python benchmarks/scaling.py [--seconds 6]

PPO with bilinear fusion and missions trains in a fresh process per point: with 16 to
4096 environments of GoToLocal and rollouts of at least 8192 timesteps; on 1 to 30 BabyAI tasks at a
time; and with networks of several widths. After each point, the results are written to
``benchmarks/results/scaling.json``; in the end, ``docs/pictures/scaling.png`` is drawn.
"""

import argparse
from typing import Any

from machine import write_results
from measurement import run
from pictures import figure

ENVIRONMENTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
TASKS = (1, 2, 5, 10, 20, 30)
WIDTHS = ((16, 64), (32, 128), (64, 256), (128, 512))
"""Channels and features of the encoder."""
LEVELS = (
    *("GoToLocal", "GoToRedBallGrey", "GoToRedBall", "GoToRedBlueBall", "GoToObj", "GoToObjS4"),
    *("GoToDoor", "GoToLocalS5N2", "GoToLocalS6N2", "GoToLocalS6N3", "GoToLocalS6N4"),
    *("GoToLocalS7N4", "GoToLocalS7N5", "GoToLocalS8N2", "GoToLocalS8N3", "GoToLocalS8N4"),
    *("GoToLocalS8N5", "GoToLocalS8N6", "GoToLocalS8N7", "PickupLoc", "PickupDist"),
    *("PickupDistDebug", "PutNextLocal", "PutNextLocalS5N3", "PutNextLocalS6N4", "OpenRedDoor"),
    *("OpenDoor", "OpenDoorColor", "OpenDoorLoc", "ActionObjDoor"),
)
"""BabyAI levels; a suite of n tasks takes the first n."""

AGENT = ["fusion=bilinear", "encoder.attributes=0", "context.zero_start=false"]
"""Options whose defaults have changed since the first measurements."""

Point = dict[str, Any]


def series() -> dict[str, list[tuple[int, list[str]]]]:
    """Return each series as pairs of the varied value and the options of ``train.py``."""
    environments = []
    for n_envs in ENVIRONMENTS:
        n_steps = max(8, 8192 // n_envs)
        options = ["task=goto_local", f"agent.n_envs={n_envs}", f"agent.n_steps={n_steps}"]
        environments.append((n_envs, [*AGENT, *options, "agent.batch_size=1024"]))
    tasks = []
    for n_tasks in TASKS:
        suite = ", ".join(
            f"{{name: {level}, env_id: BabyAI-{level}-v0}}" for level in LEVELS[:n_tasks]
        )
        options = ["task.name=babyai", f"task.tasks=[{suite}]"]
        options += ["agent.n_envs=240", "agent.n_steps=32", "agent.batch_size=960"]
        tasks.append((n_tasks, [*AGENT, *options]))
    parameters = []
    for channels, features in WIDTHS:
        options = ["task=goto_local", "agent.n_envs=256", "agent.batch_size=1024"]
        options += [f"encoder.channels={channels}", f"encoder.features_dim={features}"]
        parameters.append((channels, [*AGENT, *options]))
    return {"environments": environments, "tasks": tasks, "parameters": parameters}


def table(measurements: dict[str, list[Point]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table, one row per point.

    Args:
        measurements: The points of each series.
    """
    columns = ["varied", "value", "parameters", "steps/s", "peak memory, MiB", "rollout, MiB"]
    rows = []
    for name, points in measurements.items():
        for point in points:
            value = f"{point['value']:,}"
            if name == "parameters":
                value += " channels"
            row = [
                name,
                value,
                f"{point['parameters']:,}",
                f"{point['steps_per_second']:,.0f}",
                f"{point['peak_rss_bytes'] / 2**20:,.0f}",
                f"{point['rollout_bytes'] / 2**20:.1f}",
            ]
            rows.append(row)
    return columns, rows


def draw(measurements: dict[str, list[Point]]) -> None:
    """Draw throughput and memory, one panel per series.

    Args:
        measurements: The points of each series.
    """
    with figure("scaling", len(measurements), size=(13, 3.2)) as panels:
        for axes, (name, points) in zip(panels, measurements.items(), strict=True):
            key = "parameters" if name == "parameters" else "value"
            values = [point[key] for point in points]
            speeds = [point["steps_per_second"] for point in points]
            peaks = [point["peak_rss_bytes"] / 2**20 for point in points]
            axes.plot(values, speeds, marker="o", color="tab:blue")
            axes.set(xscale="log", xlabel=name, ylim=(0, None))
            axes.set_xticks(values, [_tick(value) for value in values], fontsize=7)
            axes.minorticks_off()
            axes.set_ylabel("steps/s", color="tab:blue")
            memory = axes.twinx()
            memory.plot(values, peaks, marker=".", color="tab:orange")
            memory.set(ylim=(0, None))
            memory.set_ylabel("peak memory, MiB", color="tab:orange")


def _tick(value: int) -> str:
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value}"


def main() -> None:
    """Measure every point and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6, help="per point")
    seconds = parser.parse_args().seconds
    measurements: dict[str, list[Point]] = {}
    for name, wanted in series().items():
        measurements[name] = []
        for value, options in wanted:
            point = {"value": value, **run(options, seconds)}
            measurements[name].append(point)
            speed = point["steps_per_second"]
            print(f"{name:<14}{value:>6}{speed:>10,.0f} steps/s", flush=True)  # noqa: T201
            write_results("scaling", *table(measurements), measurements)
    draw(measurements)


if __name__ == "__main__":
    main()
