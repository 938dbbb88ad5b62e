"""Measure the seconds of training until an agent succeeds, with this source tree and another one.

    python benchmarks/time_to_success.py --against TREE [--seeds 5] [--out FOLDER] [WORD ...]

Each run is a training command with the defaults of its source tree and the given words (default
``task=goto_local``), in its own process, one after another, with the trees in turn. Every 16,384
timesteps there is an evaluation. The run ends with the first in which 95 % of 128 episodes succeed,
or with its budget, which then counts. The seconds are those of rollouts and updates, without
evaluations and checkpoints. After a stop, the same command continues. Needs the machine to itself;
writes ``benchmarks/results/time_to_success.json``.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import ROOT, write_results
from measurement import spread
from source_trees import commit_of, importable

SOLVED = 0.95
EVERY = 16_384
CURVES = (f"evaluation.every={EVERY}", "evaluation.episodes=128", "evaluation.test_episodes=1")
SUCCESS = "eval/success_rate"
SPEED = "speed/steps_per_second"
TIMESTEPS = "time/total_timesteps"
POLL = 1.0
"""Seconds between two checks of the metrics of a run."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics file; the last line may be half-written and is left out.

    Args:
        path: ``metrics.csv`` of a run.
    """
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return list(csv.DictReader(complete.splitlines()))


def first_success(rows: list[dict[str, str]]) -> dict[str, float]:
    """Return timesteps and seconds of training until the first success, or until the last row.

    Args:
        rows: the rows of a metrics file.

    Returns:
        ``timesteps``, ``seconds``, and ``solved``, True if there was a success.
    """
    seconds = 0.0
    reached = 0.0
    speed = 0.0
    for row in rows:
        timesteps = float(row.get(TIMESTEPS) or reached)
        if row.get(SPEED):
            speed = float(row[SPEED])
            seconds += (timesteps - reached) / speed
            reached = timesteps
        if row.get(SUCCESS) and float(row[SUCCESS]) >= SOLVED:
            # the speed of the iteration before an evaluation is logged after it
            seconds += (timesteps - reached) / speed
            return {"timesteps": timesteps, "seconds": seconds, "solved": True}
    return {"timesteps": reached, "seconds": seconds, "solved": False}


def train_to_success(
    words: list[str], environment: dict[str, str], runs_dir: Path
) -> dict[str, float]:
    """Train one agent until it succeeds, or for its whole budget.

    Args:
        words: options of ``train.py``.
        environment: environment variables of the process.
        runs_dir: folder of the run.
    """
    command = [sys.executable, "-m", "mirl.train", *words, f"runs_dir={runs_dir}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            # checked first, so that everything a process wrote before its end is read
            has_ended = process.poll() is not None
            found = None
            for path in runs_dir.glob("*/metrics.csv"):
                found = first_success(read_rows(path))
                if found["solved"]:
                    return found
            if has_ended:
                if process.returncode or found is None:
                    raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
                return found
            time.sleep(POLL)
    finally:
        process.terminate()
        process.wait()


def table_row(label: str, commit: str, runs: list[dict[str, float]]) -> list[str]:
    """Return a row of the table; a run without success counts with its whole budget.

    Args:
        label: "new" or "old".
        commit: the commit of the source tree.
        runs: the results of its seeds.
    """
    n_solved = sum(bool(run["solved"]) for run in runs)
    return [
        f"{label} ({commit})",
        f"{n_solved} of {len(runs)}",
        spread([run["timesteps"] for run in runs]),
        spread([run["seconds"] for run in runs]),
        spread([run["timesteps"] / run["seconds"] for run in runs]),
    ]


def main() -> None:
    """Train the seeds of both trees in turn and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", default=["task=goto_local"], metavar="WORD")
    parser.add_argument("--against", type=Path, required=True, help="root of the other tree")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("comparisons") / "time_to_success")
    arguments = parser.parse_args()
    trees = {"new": ROOT.resolve(), "old": arguments.against.resolve()}
    results: dict[str, list[Any]] = {label: [] for label in trees}
    for seed in range(arguments.seeds):
        for label, tree in trees.items():
            folder = (arguments.out / f"{label}-{commit_of(tree)}-seed{seed}").absolute()
            record = folder / "result.json"
            if not record.exists():
                words = [*arguments.words, *CURVES, f"seed={seed}", "progress=false"]
                with importable(tree) as environment:
                    found = train_to_success(words, environment, folder)
                record.write_text(json.dumps(found), encoding="utf-8")
            results[label].append(json.loads(record.read_text(encoding="utf-8")))
            print(label, seed, results[label][-1], flush=True)  # noqa: T201
        write_table(trees, results)


def write_table(trees: dict[str, Path], results: dict[str, list[Any]]) -> None:
    """Write the results file; its last row is the ratio of the seconds at equal seeds.

    Args:
        trees: the root of each source tree.
        results: the results of each tree, one per seed.
    """
    rows = []
    for label, tree in trees.items():
        rows.append(table_row(label, commit_of(tree), results[label]))
    pairs = zip(results["new"], results["old"], strict=True)
    ratios = [new["seconds"] / old["seconds"] for new, old in pairs]
    rows.append(["new / old at equal seeds", "", "", spread(ratios, 2), ""])
    columns = ["source tree", "succeeded", "timesteps", "seconds", "steps/s"]
    write_results("time_to_success", columns, rows, results)


if __name__ == "__main__":
    main()
