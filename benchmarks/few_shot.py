"""Compare few-shot adaptation of only the context with that of the whole network.

    python benchmarks/few_shot.py few_shot_ode task=ode_circle split=angles --seeds 3

The options are those of ``train.py``; ``split`` must hold out whole tasks. Each seed trains one
run and adapts it to every held-out task in both ways. Finished runs in ``--runs`` are not trained
again. After each seed, the results are written to ``benchmarks/results/NAME.json`` and the curves
to ``docs/pictures/NAME.png``.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, write_results
from pictures import draw_range, picture

from mirl.configs.schema import EvalConfig

BUDGETS = [0, *EvalConfig.model_fields["adapt_episodes"].default]
"""Episodes of adaptation. The rest of the rollout in which a budget ends is added."""
WAYS = {"context": "context z + δ, weights frozen", "network": "all weights"}
"""Values of ``adapt=`` and their labels."""

Curve = dict[str, Any]


def adaptation_curves(options: list[str], runs: Path, name: str, episodes: int) -> list[Curve]:
    """Train a run and adapt it to each held-out task, through the command line as a user would.

    Args:
        options: Options of ``train.py``.
        runs: The folder of the run directories.
        name: The name of the run.
        episodes: Evaluation episodes per point.

    Returns:
        The curve of each task and way of adaptation.
    """
    words = [f"runs_dir={runs}", f"name={name}", "progress=false", *options]
    commands = [[sys.executable, str(ROOT / "train.py"), *words]]
    for way in WAYS:
        command = [sys.executable, str(ROOT / "eval.py"), f"run={runs / name}", "checkpoint=last"]
        commands.append([*command, f"adapt={way}", f"episodes={episodes}"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    files = sorted((runs / name / "eval").glob(f"adapt-*-{episodes}ep.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def success_rates(curves: list[Curve], way: str) -> np.ndarray:
    """Return the success rates of one way of adaptation, of shape (seeds · tasks, budgets).

    Args:
        curves: The curves of all seeds, tasks and ways.
        way: The way of adaptation.

    Raises:
        SystemExit: If a task reports no success.
    """
    rates = []
    for each in curves:
        if each["adapt"] != way:
            continue
        of_curve = [point["success_rate"] for point in each["curve"]]
        if None in of_curve:
            task = each["task"]["name"]
            raise SystemExit(
                f"task '{task}' reports no success, which this benchmark compares; "
                "set 'success=return>=X' for it"
            )
        rates.append(of_curve)
    return np.array(rates)


def table(curves: list[Curve], n_seeds: int) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table, one row per way of adaptation.

    Args:
        curves: The curves of all seeds, tasks and ways.
        n_seeds: Number of seeds of the curves.
    """
    columns = ["adapted", "seeds", *(f"after {budget:,} episodes" for budget in BUDGETS)]
    rows = []
    for way, label in WAYS.items():
        row = [label, str(n_seeds)]
        for at_budget in success_rates(curves, way).T:
            low = at_budget.min()
            high = at_budget.max()
            row.append(f"{at_budget.mean():.1%} ({low:.1%} – {high:.1%})")
        rows.append(row)
    return columns, rows


def draw(curves: list[Curve], name: str) -> None:
    """Draw success against episodes of adaptation: mean and range over seeds and tasks.

    Args:
        curves: The curves of all seeds, tasks and ways.
        name: The name of the figure.
    """
    labels = {
        "xlabel": "episodes of adaptation",
        "ylabel": "success on unseen episodes",
        "ylim": (0, 1.02),
    }
    with picture(name, **labels) as axes:
        for way, label in WAYS.items():
            draw_range(axes, BUDGETS, success_rates(curves, way), label, marker="o", markersize=4)
        axes.set_xscale("symlog", linthresh=16)
        axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])


def main() -> None:
    """Train, adapt and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the results file and the figure")
    parser.add_argument("options", nargs="*", metavar="option=value")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--episodes", type=int, default=200, help="evaluation episodes per point")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="folder of the runs"
    )
    arguments = parser.parse_intermixed_args()
    curves: list[Curve] = []
    for seed in range(arguments.seeds):
        name = f"{arguments.name}-seed{seed}"
        options = [*arguments.options, f"seed={seed}"]
        curves += adaptation_curves(options, arguments.runs, name, arguments.episodes)
        write_results(arguments.name, *table(curves, seed + 1), curves)
        draw(curves, arguments.name)


if __name__ == "__main__":
    main()
