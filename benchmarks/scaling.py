"""Measure how throughput and memory grow with the sizes of a problem.

    python benchmarks/scaling.py [--rounds 3] [--seconds 3]

PPO with the default networks trains in a fresh process per point. Environments, tasks and widths
are varied on BabyAI-GoToLocal; distinct missions, their length and the size of the view on
synthetic environments, whose random observations share no work. After each round, the results are
written to ``benchmarks/results/scaling.json``; at the end, ``docs/pictures/scaling.png`` is drawn.
"""

import argparse
import statistics
from typing import Any

from machine import write_results
from measurement import run, spread
from pictures import figure

ENVIRONMENTS = (16, 64, 256, 1024, 4096)
TASKS = (1, 2, 5, 10, 20, 50)
"""Numbers of tasks, all of them GoToLocal, so that only their number differs."""
MISSIONS = (1, 4, 16, 64, 256, 1024, 4096)
WORDS = (5, 10, 20, 40, 80, 160)
VIEWS = (5, 7, 9, 13, 19)
WIDTHS = ((16, 64), (32, 128), (64, 256), (128, 512))
"""Channels and features of the encoder."""

Point = dict[str, Any]
"""A varied value and the measurements of its rounds."""


def series() -> dict[str, list[tuple[int, list[str]]]]:
    """Return each series as pairs of the varied value and the arguments of ``contenders.py``."""
    environments = []
    for n_envs in ENVIRONMENTS:
        n_steps = max(8, 8192 // n_envs)
        options = ["task=goto_local", f"agent.n_envs={n_envs}", f"agent.n_steps={n_steps}"]
        environments.append((n_envs, [*options, "agent.batch_size=1024"]))
    tasks = []
    for n_tasks in TASKS:
        names = (f"{{name: t{number}, env_id: BabyAI-GoToLocal-v0}}" for number in range(n_tasks))
        options = ["task.name=copies", f"task.tasks=[{', '.join(names)}]"]
        options += ["agent.n_envs=300", "agent.n_steps=32", "agent.batch_size=960"]
        tasks.append((n_tasks, options))
    channels = []
    for width, features in WIDTHS:
        options = ["task=goto_local", "agent.n_envs=256", "agent.batch_size=1024"]
        options += [f"encoder.channels={width}", f"encoder.features_dim={features}"]
        channels.append((width, options))
    missions = []
    for contexts in MISSIONS:
        n_envs = max(MISSIONS)
        missions.append((contexts, ["synthetic", f"n_envs={n_envs}", f"contexts={contexts}"]))
    words = [(length, ["synthetic", f"words={length}"]) for length in WORDS]
    cells = [(view**2, ["synthetic", f"view={view}"]) for view in VIEWS]
    return {
        "environments": environments,
        "tasks": tasks,
        "channels": channels,
        "missions": missions,
        "words": words,
        "cells": cells,
    }


def table(measurements: dict[str, list[Point]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table, one row per point.

    Args:
        measurements: the points of each series, each with its rounds.
    """
    columns = ["varied", "value", "parameters", "steps/s", "peak memory, MiB", "rollout, MiB"]
    rows = []
    for name, points in measurements.items():
        for point in points:
            last = point["rounds"][-1]
            row = [
                name,
                f"{point['value']:,}",
                f"{last['parameters']:,}",
                spread([result["steps_per_second"] for result in point["rounds"]]),
                f"{last['peak_rss_bytes'] / 2**20:,.0f}",
                f"{last['rollout_bytes'] / 2**20:.1f}",
            ]
            rows.append(row)
    return columns, rows


def draw(measurements: dict[str, list[Point]]) -> None:
    """Draw throughput and memory, one panel per series.

    Args:
        measurements: the points of each series, each with its rounds.
    """
    with figure("scaling", len(measurements), size=(10, 5.4), n_rows=2) as panels:
        for axes, (name, points) in zip(panels, measurements.items(), strict=True):
            values = [point["value"] for point in points]
            speeds = []
            peaks = []
            for point in points:
                rounds = point["rounds"]
                speeds.append(statistics.median(result["steps_per_second"] for result in rounds))
                peaks.append(rounds[-1]["peak_rss_bytes"] / 2**20)
            axes.plot(values, speeds, marker="o", color="tab:blue")
            axes.set(xscale="log", xlabel=name, ylim=(0, None))
            axes.set_xticks(values, [_tick(value) for value in values], fontsize=7)
            axes.minorticks_off()
            axes.set_ylabel("steps/s", color="tab:blue")
            memory = axes.twinx()
            memory.plot(values, peaks, marker=".", linestyle="--", color="tab:orange")
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="per measurement")
    arguments = parser.parse_args()
    measurements: dict[str, list[Point]] = {}
    for name, wanted in series().items():
        measurements[name] = [{"value": value, "rounds": []} for value, _ in wanted]
    for _ in range(arguments.rounds):
        for name, wanted in series().items():
            for point, (value, options) in zip(measurements[name], wanted, strict=True):
                result = run(options, arguments.seconds)
                point["rounds"].append(result)
                speed = result["steps_per_second"]
                print(f"{name:<14}{value:>6}{speed:>10,.0f} steps/s", flush=True)  # noqa: T201
        write_results("scaling", *table(measurements), measurements)
    draw(measurements)


if __name__ == "__main__":
    main()
