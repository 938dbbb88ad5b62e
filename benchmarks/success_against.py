"""Compare the success of two source trees' agents after equal numbers of timesteps.

    python benchmarks/success_against.py --against TREE [--seeds 10] [--jobs N] [--out FOLDER]

Each run is a training command of ``TASKS`` with the defaults of its source tree, in a process of
its own with one thread. The success rate is that of 500 validation episodes after the last update.
After a stop, the same command continues. Writes ``benchmarks/results/success_against.json``.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np
from machine import ROOT, write_results
from source_trees import commit_of, importable
from time_to_success import SUCCESS, read_rows

from mirl.agents.comparison.statistics import estimate

TASKS = {"goto_door": 100_000, "goto_local": 150_000, "MiniGrid-DoorKey-5x5-v0": 150_000}
"""Timesteps of each task."""
EPISODES = 500


def success_rate(task: str, seed: int, environment: dict[str, str], runs_dir: Path) -> float:
    """Train an agent and return its success rate.

    Args:
        task: name of the task's preset, or its registered id.
        seed: seed of the run.
        environment: environment variables of the process.
        runs_dir: folder of the run.
    """
    timesteps = TASKS[task]
    words = [f"task={task}", f"seed={seed}", f"total_timesteps={timesteps}", "progress=false"]
    words += [f"evaluation.every={timesteps}", f"evaluation.episodes={EPISODES}"]
    words += ["evaluation.test_episodes=1", f"runs_dir={runs_dir}"]
    command = [sys.executable, "-m", "mirl.train", *words]
    threads = {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment | threads, stdout=subprocess.DEVNULL, check=True)
    [metrics] = runs_dir.glob("*/metrics.csv")
    rates = [float(row[SUCCESS]) for row in read_rows(metrics) if row.get(SUCCESS)]
    return rates[-1]


def table_row(task: str, rates: dict[str, list[float]]) -> list[str]:
    """Return a row of the table: the rates of both trees and their difference at equal seeds.

    Args:
        task: name of the task.
        rates: success rates of "new" and "old", one per seed.
    """
    cells = []
    for values in (rates["new"], rates["old"]):
        cells.append(f"{np.mean(values):.1%} ({min(values):.1%} – {max(values):.1%})")
    difference = estimate([np.subtract(rates["new"], rates["old"])])
    cells.append(f"{difference.mean:+.1%}")
    if difference.low is not None:
        cells[-1] += f" ({difference.low:+.1%} – {difference.high:+.1%})"
    return [task, f"{TASKS[task]:,}", *cells]


def main() -> None:
    """Train every task and seed with both trees, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, required=True, help="root of the other tree")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("comparisons") / "success_against")
    arguments = parser.parse_args()
    trees = {"new": ROOT.resolve(), "old": arguments.against.resolve()}
    commits = {label: commit_of(tree) for label, tree in trees.items()}
    with ExitStack() as stack, ThreadPoolExecutor(arguments.jobs) as threads:
        environments = {}
        for label, tree in trees.items():
            environments[label] = stack.enter_context(importable(tree))

        def measure(run: tuple[int, str, str]) -> float:
            seed, task, label = run
            folder = (arguments.out / f"{task}-{commits[label]}-seed{seed}").absolute()
            record = folder / "result.json"
            if not record.exists():
                rate = success_rate(task, seed, environments[label], folder)
                record.write_text(json.dumps(rate), encoding="utf-8")
            return float(json.loads(record.read_text(encoding="utf-8")))

        runs = list(product(range(arguments.seeds), TASKS, trees))
        rates: dict[str, dict[str, list[float]]] = {
            task: {label: [] for label in trees} for task in TASKS
        }
        for (seed, task, label), rate in zip(runs, threads.map(measure, runs), strict=True):
            rates[task][label].append(rate)
            print(f"{task} seed {seed} {label} {rate:.1%}", flush=True)  # noqa: T201
    columns = ["task", "timesteps"]
    columns += [f"{label} ({commit})" for label, commit in commits.items()]
    columns.append("new - old at equal seeds (95 % interval)")
    rows = [table_row(task, rates[task]) for task in TASKS]
    write_results("success_against", columns, rows, rates)


if __name__ == "__main__":
    main()
