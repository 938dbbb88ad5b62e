"""Measure the throughput of one machine's cores: threads, torchrun ranks, and concurrent runs.

    python benchmarks/processes.py [--rounds 3] [--timesteps 200_000] [OPTION ...]

Each setting trains the agent that the options define (default ``task=goto_local``), at its own size
and with four times the environments and minibatches. It is measured by ``speed/steps_per_second``
in its log: the median over its iterations without the first ones. The settings take turns. Needs
the machine to itself; after each round, the results are written to
``benchmarks/results/processes.json``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import ROOT, write_results
from measurement import spread
from time_to_success import SPEED, read_rows

N_CORES = len(os.sched_getaffinity(0))
WARM_UP = 2
"""Number of first iterations that do not count."""
ALL_THREADS = f"one process, {N_CORES} threads"
RANKS = f"{N_CORES} ranks, one thread each"
SETTINGS: dict[str, tuple[int, int, int]] = {
    ALL_THREADS: (1, 1, N_CORES),
    "one process, one thread": (1, 1, 1),
    RANKS: (1, N_CORES, 1),
    f"{N_CORES} runs, one thread each": (N_CORES, 1, 1),
    f"{2 * N_CORES} runs, one thread each": (2 * N_CORES, 1, 1),
}
"""Numbers of concurrent runs, of ranks per run and of threads per rank."""
SIZES: dict[str, list[str]] = {
    "default": [],
    "512 environments, minibatches of 2,048": ["agent.n_envs=512", "agent.batch_size=2048"],
}
"""Options of each size."""


def measure(options: list[str], n_runs: int, n_ranks: int, n_threads: int) -> float:
    """Return the steps per second of all runs together.

    Args:
        options: options of ``train.py``.
        n_runs: number of concurrent runs, with a seed each.
        n_ranks: number of processes that train each of them.
        n_threads: number of threads of each process.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    launcher = [sys.executable]
    if n_ranks > 1:
        launcher += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(n_ranks),
        ]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for seed in range(n_runs):
            words = [*options, f"seed={seed}", f"runs_dir={folder}/{seed}", "progress=false"]
            command = [*launcher, str(ROOT / "train.py"), *words]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        for process in processes:
            if process.wait():
                raise SystemExit(f"{process.args} ended with {process.returncode}")
        total = 0.0
        for seed in range(n_runs):
            [path] = Path(folder, str(seed)).glob("*/metrics.csv")
            speeds = [float(row[SPEED]) for row in read_rows(path) if row.get(SPEED)]
            total += statistics.median(speeds[WARM_UP:])
    return total


def table(results: dict[str, dict[str, list[float]]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table, one row per size and setting.

    Args:
        results: the steps per second of each setting of each size, one per round.
    """
    columns = ["size", "processes", "steps/s of all", f"ratio to {ALL_THREADS}"]
    rows = []
    for size, settings in results.items():
        for name, speeds in settings.items():
            pairs = zip(speeds, settings[ALL_THREADS], strict=True)
            ratios = [speed / other for speed, other in pairs]
            rows.append([size, name, spread(speeds), spread(ratios, 2)])
    return columns, rows


def main() -> None:
    """Measure the settings in turn and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("options", nargs="*", default=["task=goto_local"], metavar="OPTION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timesteps", type=int, default=200_000, help="per run")
    arguments = parser.parse_args()
    options = [
        *arguments.options,
        f"total_timesteps={arguments.timesteps}",
        f"evaluation.every={arguments.timesteps}",
        "evaluation.episodes=1",
        "evaluation.test_episodes=1",
        "videos=false",
    ]
    results: dict[str, dict[str, list[float]]] = {}
    for size in SIZES:
        results[size] = {name: [] for name in SETTINGS}
    for _ in range(arguments.rounds):
        for size, more in SIZES.items():
            for name, (n_runs, n_ranks, n_threads) in SETTINGS.items():
                speed = measure([*options, *more], n_runs, n_ranks, n_threads)
                results[size][name].append(speed)
                print(f"{size}, {name}: {speed:,.0f} steps/s", flush=True)  # noqa: T201
        write_results("processes", *table(results), results)


if __name__ == "__main__":
    main()
