"""Make the table "When does it help?": concatenation against multiplicative interactions.

    python benchmarks/when_it_helps.py [ROW ...] [--seeds N] [--out FOLDER] [--jobs N]

Every row is a problem, every column a way to fuse what is seen and what is asked, with equal
numbers of parameters within a row. The learning rate of each column is chosen from ``RATES`` by two
seeds that no cell of the table has. The same command goes on after a stop. After each row, its
results are written to ``benchmarks/results/when_ROW.json``, and the table of all rows so far to
``benchmarks/results/when_it_helps.json``.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from machine import RESULTS, write_results

from mirl.agents.comparison.equal_parameters import resolve_words
from mirl.agents.comparison.experiment import compare
from mirl.agents.comparison.statistics import estimate
from mirl.agents.comparison.summary import verdict
from mirl.configs.comparison import ComparisonConfig

FloatArray = npt.NDArray[np.float64]

COLUMNS = {
    "late_concat": ("fusion=concat", "sites=vector"),
    "concat": ("fusion=concat",),
    "film": ("fusion=film",),
    "bilinear": ("fusion=bilinear",),
    "auto": ("fusion=auto",),
}
"""Options of each column; ``late_concat`` is what SB3's own features extractor does. Where
``bilinear`` is what ``auto`` takes, both are the same runs."""
BASELINES = ("late_concat", "concat")
RATES = ("3e-4", "1e-3")
TUNING_SEEDS = (1000, 1001)


class Row(NamedTuple):
    """A problem of the table."""

    label: str
    """Its name in the table."""
    words: tuple[str, ...]
    """Options of ``train.py``, first of all ``task=…``."""
    seeds: int
    """Number of seeds of each column."""
    held_out: bool = False
    """True for a row whose cells are of what was held out."""
    solved: float = 0.95
    """Success rate, or mean return where no success is reported, that counts as solved."""
    tuning: tuple[str, ...] = ()
    """Further options of the runs that choose the learning rates."""


CURVES = ("evaluation.every=16384", "evaluation.episodes=128", "videos=false")
ROWS = {
    "roles4": Row(
        "roles, 4 agents, number one-hot",
        ("task=roles4", "context=one_hot", "total_timesteps=200_000", "videos=false"),
        10,
        solved=0.95 * 16,
    ),
    "roles8": Row(
        "roles, 8 agents, number one-hot",
        ("task=roles8", "context=one_hot", "total_timesteps=400_000", "videos=false"),
        10,
        solved=0.95 * 16,
    ),
    "roles8_encoded": Row(
        "roles, 8 agents, number encoded",
        ("task=roles8", "total_timesteps=400_000", "videos=false"),
        10,
        solved=0.95 * 16,
    ),
    "roles16": Row(
        "roles, 16 agents, number one-hot",
        ("task=roles16", "context=one_hot", "videos=false"),
        10,
        solved=0.95 * 16,
    ),
    "pole_distractors0": Row(
        "pole, no useless numbers",
        ("task=pole_distractors0", "videos=false"),
        10,
        held_out=True,
        solved=475,
    ),
    "pole_distractors20": Row(
        "pole, 20 useless numbers",
        ("task=pole_distractors20", "videos=false"),
        10,
        held_out=True,
        solved=475,
    ),
    "pole_distractors100": Row(
        "pole, 100 useless numbers",
        ("task=pole_distractors100", "videos=false"),
        10,
        held_out=True,
        solved=475,
    ),
    "point_actuators": Row(
        "point, other actuators", ("task=point_actuators", "videos=false"), 5, held_out=True
    ),
    "goto_door": Row("one of four doors", ("task=goto_door", *CURVES), 5),
    "goto_local": Row(
        "missions never asked for",
        ("task=goto_local", "split=objects", "total_timesteps=400_000", *CURVES),
        10,
        held_out=True,
        tuning=("total_timesteps=150_000",),
    ),
    "mt5": Row("five tasks on grids", ("task=mt5", "videos=false"), 5),
    "fetch_reach": Row("reach a position", ("task=fetch_reach", "videos=false"), 5),
}


def columns_of(row: Row) -> dict[str, tuple[str, ...]]:
    """Return the columns of a row that have runs of their own.

    Args:
        row: the problem.
    """
    chosen, _ = resolve_words([*row.words, *COLUMNS["auto"]])
    columns = dict(COLUMNS)
    if chosen.fusion.kind == "bilinear":
        del columns["auto"]
    return columns


def compare_columns(
    row: Row, settings: dict[str, tuple[str, ...]], seeds: tuple[int, ...], out: Path, jobs: int
) -> dict[str, Any]:
    """Train settings, or what is missing of them, and return the content of ``results.json``.

    Args:
        row: the problem.
        settings: options of each column.
        seeds: the seeds.
        out: folder of the comparison.
        jobs: runs at a time.
    """
    task = row.words[0].removeprefix("task=")
    config = ComparisonConfig(
        tasks=(task,),
        settings=settings,
        options=row.words[1:],
        seeds=seeds,
        jobs=jobs,
        out=out,
        match="true",
    )
    result = compare(config, log=lambda line: print(line, flush=True))  # noqa: T201
    if result.missing:
        raise SystemExit(f"{result.missing} runs of {out} are not finished: {result.failures}")
    report: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return report


def means_of_curves(report: dict[str, Any], setting: str) -> FloatArray:
    """Return the mean over training of each seed: its level and its speed in one number.

    Args:
        report: the content of ``results.json``.
        setting: name of the setting.
    """
    means: dict[int, float] = {}
    for run in report["runs"]:
        if run["setting"] == setting:
            curve = run["success_curve"] or run["return_curve"]
            means[run["seed"]] = float(np.mean([value for _, value in curve]))
    return np.array([means[seed] for seed in sorted(means)])


def with_rates(
    columns: dict[str, tuple[str, ...]], rates: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return the options of each column with its learning rate.

    Args:
        columns: options of each column.
        rates: learning rate of each column.
    """
    settings = {}
    for column, words in columns.items():
        settings[column] = (*words, f"agent.learning_rate={rates[column]}")
    return settings


def choose_rates(
    name: str, row: Row, columns: dict[str, tuple[str, ...]], out: Path, jobs: int
) -> dict[str, str]:
    """Return the learning rate with which each column does best on the tuning seeds.

    Args:
        name: name of the row.
        row: the problem.
        columns: options of each column.
        out: folder of all comparisons.
        jobs: runs at a time.
    """
    best: dict[str, str] = {}
    highest = dict.fromkeys(columns, -math.inf)
    shorter = row._replace(words=(*row.words, *row.tuning))
    for rate in RATES:
        settings = with_rates(columns, dict.fromkeys(columns, rate))
        report = compare_columns(shorter, settings, TUNING_SEEDS, out / f"{name}-{rate}", jobs)
        for column in columns:
            mean = float(means_of_curves(report, column).mean())
            if mean > highest[column]:
                highest[column] = mean
                best[column] = rate
    return best


def timesteps_to_solve(report: dict[str, Any], setting: str, solved: float) -> str:
    """Return the median over the seeds of the timesteps to a level, and their range.

    Args:
        report: the content of ``results.json``.
        setting: name of the setting.
        solved: the level.
    """
    firsts = []
    for run in report["runs"]:
        if run["setting"] == setting:
            curve = run["success_curve"] or run["return_curve"]
            firsts.append(next((step for step, value in curve if value >= solved), math.inf))
    shown = [f"{first:,.0f}" if first < math.inf else "never" for first in sorted(firsts)]
    middle = shown[(len(shown) - 1) // 2]
    if shown[0] == shown[-1]:
        return middle
    return f"{middle} ({shown[0]} – {shown[-1]})"


def verdict_at_end(report: dict[str, Any], task: str) -> str:
    """Return how the default does against the better of the baselines.

    Args:
        report: the content of ``results.json``.
        task: the task as the results name it.
    """
    default = name_of_auto(report)
    verdicts: dict[float, str] = {}
    for pair in report["pairs"]:
        if pair["task"] == task and pair["setting"] == default and pair["base"] in BASELINES:
            verdicts[pair["mean"]] = pair["verdict"]
    return verdicts[min(verdicts)]


def verdict_on_curves(report: dict[str, Any]) -> str:
    """Return how the default learns against the better of the baselines, by the means of curves.

    Args:
        report: the content of ``results.json``.
    """
    present = {result["setting"] for result in report["results"]}
    means = [means_of_curves(report, name) for name in BASELINES if name in present]
    best = max(means, key=np.mean)
    return verdict(estimate([means_of_curves(report, name_of_auto(report)) - best]))


def name_of_auto(report: dict[str, Any]) -> str:
    """Return the column that has the runs of the default.

    Args:
        report: the content of ``results.json``.
    """
    settings = {result["setting"] for result in report["results"]}
    return "auto" if "auto" in settings else "bilinear"


def table_row(row: Row, report: dict[str, Any]) -> list[str]:
    """Return a row of the table.

    It has the result of each column, with its interval and the timesteps to the level of the row,
    and how the default does against the better concatenation, at the end and while learning.

    Args:
        row: the problem.
        report: the content of ``results.json``.
    """
    tasks = [result["task"] for result in report["results"]]
    task = next(task for task in tasks if ("(held out)" in task) == row.held_out)
    cells = []
    for column in COLUMNS:
        setting = name_of_auto(report) if column == "auto" else column
        for result in report["results"]:
            if (result["task"], result["setting"]) == (task, setting):
                number = "{:.1%}" if result["metric"] == "success" else "{:.2f}"
                interval = " – ".join(number.format(result[end]) for end in ("low", "high"))
                cell = f"{number.format(result['mean'])} ({interval})"
                cells.append(f"{cell}; {timesteps_to_solve(report, setting, row.solved)}")
    n_seeds = str(report["results"][0]["seeds"])
    return [row.label, n_seeds, *cells, verdict_at_end(report, task), verdict_on_curves(report)]


def short_row(row: Row, report: dict[str, Any]) -> list[str]:
    """Return a row of the short table: the mean of each column and the verdicts.

    Args:
        row: the problem.
        report: the content of ``results.json``.
    """
    label, _, *cells, at_end, while_learning = table_row(row, report)
    return [label, *(cell.split(" (")[0] for cell in cells), f"{at_end}, {while_learning}"]


def write_tables() -> None:
    """Write the table of all rows that have results, and its short form."""
    rows = []
    short_rows = []
    for name, row in ROWS.items():
        path = RESULTS / f"when_{name}.json"
        if path.exists():
            report = json.loads(path.read_text(encoding="utf-8"))
            rows.append(table_row(row, report))
            short_rows.append(short_row(row, report))
    verdicts = ("auto at the end", "auto while learning")
    write_results("when_it_helps", ["problem", "seeds", *COLUMNS, *verdicts], rows, {})
    both = "auto at the end, while learning"
    write_results("when_it_helps_short", ["problem", *COLUMNS, both], short_rows, {})


def main() -> None:
    """Tune and train the rows that the command line names, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # argparse looks for the default among the choices, too
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW", default=[])
    parser.add_argument("--seeds", type=int, help="in place of the number of the row")
    parser.add_argument("--out", type=Path, default=Path("comparisons") / "when")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    for name in arguments.rows or ROWS:
        row = ROWS[name]
        columns = columns_of(row)
        rates = choose_rates(name, row, columns, arguments.out, arguments.jobs)
        settings = with_rates(columns, rates)
        seeds = tuple(range(arguments.seeds or row.seeds))
        compare_columns(row, settings, seeds, arguments.out / name, arguments.jobs)
        shutil.copy(arguments.out / name / "results.json", RESULTS / f"when_{name}.json")
        write_tables()


if __name__ == "__main__":
    main()
