"""Train a family of runs and evaluate each on unseen episodes: a JSON, a table and a picture.

    python benchmarks/success.py goto_door_seeds seed=0,1,2,3,4
    python benchmarks/success.py goto_door_fusions fusion=concat,bilinear,film agent.n_epochs=4

Every word is an option of train.py; one with commas takes its values in turn. Runs that are already finished in
``--runs`` are not repeated, so a benchmark that was cut off goes on. Results are written after each run, to
``benchmarks/results/NAME.json``, and the curves to ``docs/pictures/NAME.png``. ``--timed`` says that the machine does
nothing else meanwhile; only then the training times are kept.
"""

import argparse
import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine

from mirl.agents.checkpoint import find_checkpoint

ROOT = Path(__file__).parent.parent
SOLVED = 0.95


def combinations(words: list[str]) -> list[list[str]]:
    """Every choice of one value per word: ``fusion=film,gate seed=0`` gives two."""
    choices = []
    for word in words:
        key, _, values = word.partition("=")
        options = [values] if values.startswith("[") else values.split(",")
        choices.append([f"{key}={value}" for value in options])
    return [list(combination) for combination in itertools.product(*choices)]


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curve(rows: list[dict[str, str]]) -> list[tuple[int, float]]:
    """Timesteps and success rate on the validation seeds."""
    return [
        (int(row["time/total_timesteps"]), float(row["eval/success_rate"])) for row in rows if row["eval/success_rate"]
    ]


def train_and_evaluate(words: list[str], runs: Path, name: str) -> dict[str, Any]:
    """One run, from the command line as a user would; what is to be known of it."""
    run_dir = runs / name
    command = [sys.executable, str(ROOT / "train.py"), f"runs_dir={runs}", f"name={name}", "progress=false", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    last = find_checkpoint(run_dir / "checkpoints", "last").name
    [report_path] = (run_dir / "eval").glob(f"{last}-*-seed0-1000ep.json")
    report = json.loads(report_path.read_text())
    rows = read_metrics(run_dir)
    points = curve(rows)
    return {
        "options": words,
        "backend": report["backend"],
        "parameters": next(int(float(row["model/parameters"])) for row in rows if row["model/parameters"]),
        "timesteps": int(last.removeprefix("step_")),
        "seconds": max(int(row["time/time_elapsed"]) for row in rows if row["time/time_elapsed"]),
        "steps_to_95": next((step for step, success in points if success >= SOLVED), None),
        "curve": points,
        "tasks": report["tasks"],
    }


def draw(runs: list[dict[str, Any]], varied: set[str], path: Path) -> None:
    """Success on unseen episodes against timesteps, one line per run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for run in runs:
        label = " ".join(
            word.partition("=")[2] if "=" in word else word
            for word in run["options"]
            if word.partition("=")[0] in varied
        )
        axes.plot(*zip(*run["curve"], strict=True), label=label, linewidth=1.6)
    axes.axhline(SOLVED, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="timesteps", ylabel="success on unseen episodes", xlim=(0, None), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.legend(title=", ".join(sorted(varied)), loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the family that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("words", nargs="*", metavar="option=value[,value…]")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--timed", action="store_true", help="keep training times: the machine does nothing else")
    arguments = parser.parse_args()
    family = combinations(arguments.words)
    varied = {word.partition("=")[0] for word in arguments.words if len(combinations([word])) > 1}
    results: list[dict[str, Any]] = []
    for words in family:
        chosen = [word for word in words if word.partition("=")[0] in varied]
        name = "-".join([arguments.name, *(word.replace("=", "-") for word in chosen)])
        results.append(train_and_evaluate(words, arguments.runs, name))
        if not arguments.timed:
            results[-1]["seconds"] = None
        report = {
            "command": " ".join(["success.py", *sys.argv[1:]]),
            "machine": machine(),
            "runs": results,
        }
        path = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        task = results[-1]["tasks"][0]
        print(  # noqa: T201
            f"{' '.join(chosen):<24} {task['success_rate']:6.1%}  95 % after {results[-1]['steps_to_95']}"
            f"  {results[-1]['seconds']} s  {results[-1]['parameters']:,} parameters",
            flush=True,
        )
    if len(results) > 1:
        draw(results, varied, ROOT / "docs" / "pictures" / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
