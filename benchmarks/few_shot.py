"""Few-shot adaptation, by the context alone and by the whole network: a JSON, a table, a picture.

    python benchmarks/few_shot.py few_shot_ode task=ode_circle split=angles --seeds 3

Every word is an option of train.py; the split names tasks to withhold. A run per seed is trained, and practises each
withheld task in both ways. Finished runs in ``--runs`` are not trained again. Results are written after each run, to
``benchmarks/results/NAME.json``, and the curves to ``docs/pictures/NAME.png``.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_results
from pictures import draw_range, picture

from mirl.configs.schema import EvalConfig

ROOT = Path(__file__).parent.parent
BUDGETS = [0, *EvalConfig.model_fields["adapt_episodes"].default]
"""Episodes of practice; what ends in the same rollout comes on top."""
WAYS = {"context": "context z + δ, weights frozen", "network": "all weights"}


def curves(words: list[str], runs: Path, name: str, episodes: int) -> list[dict[str, Any]]:
    """Train a run, then its curve for each withheld task and way, from the command line as a user would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def call(script: str, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, str(ROOT / script), *arguments], check=True, stdout=subprocess.DEVNULL, env=environment
        )

    call("train.py", f"runs_dir={runs}", f"name={name}", "progress=false", *words)
    for way in WAYS:
        call("eval.py", f"run={runs / name}", "checkpoint=last", f"adapt={way}", f"episodes={episodes}")
    files = sorted((runs / name / "eval").glob(f"adapt-*-{episodes}ep.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def success(found: list[dict[str, Any]], way: str) -> tuple[list[int], np.ndarray]:
    """Budgets of episodes (points,), and what was reached, (seeds and tasks, points)."""
    of_way = [each["curve"] for each in found if each["adapt"] == way]
    return BUDGETS, np.array([[point["success_rate"] for point in curve] for curve in of_way])


def draw(found: list[dict[str, Any]], name: str) -> None:
    """Success on unseen episodes against episodes of practice: mean and range over seeds and tasks."""
    with picture(name, xlabel="episodes of practice", ylabel="success on unseen episodes", ylim=(0, 1.02)) as axes:
        for way, label in WAYS.items():
            budgets, rates = success(found, way)
            draw_range(axes, budgets, rates, label, marker="o", markersize=4)
        axes.set_xscale("symlog", linthresh=16)
        axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])


def main() -> None:
    """Train, adapt and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("words", nargs="*", metavar="option=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200, help="unseen episodes behind each point of a curve")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        name = f"{arguments.name}-seed{seed}"
        found += curves([*arguments.words, f"seed={seed}"], arguments.runs, name, arguments.episodes)
        rows = []
        for way, label in WAYS.items():
            budgets, rates = success(found, way)
            cells = zip(rates.mean(0), rates.min(0), rates.max(0), strict=True)
            rows.append([label, str(seed + 1), *(f"{mean:.1%} ({low:.1%} – {high:.1%})" for mean, low, high in cells)])
        columns = ["tuned", "seeds", *(f"after {budget:,} episodes" for budget in budgets)]
        write_results(arguments.name, columns, rows, found)
        draw(found, arguments.name)


if __name__ == "__main__":
    main()
