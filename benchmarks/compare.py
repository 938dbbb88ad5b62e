r"""Train agents over several seeds and compare them in a results file, a table and a figure.

    python benchmarks/compare.py mt5 --seeds 3 --match encoder.features_dim \
        --agent "concat: fusion=concat" --agent "bilinear: fusion=bilinear" \
        task=mt5 total_timesteps=1_000_000

The options of an agent are those common to all and its own. ``--match OPTION`` gives all agents the
same number of parameters: it widens each one by that option until it has as many as the largest.
No agent is tuned.

Each cell of the table is a mean over the seeds with minimum and maximum. The interval of the mean
over several tasks is a bootstrap over the seeds. Training times are not recorded, so ``--jobs`` may
train several agents at a time.

After each run, the results are written to ``benchmarks/results/NAME.json`` and the learning curves
to ``docs/pictures/NAME.png``. An interrupted benchmark can be repeated: unfinished runs in
``--runs`` are resumed, and ``--continue`` skips those that are already among the results.

Where no task reports success, the table and the figure show the return instead. Where only some do,
the others have no cell (–), and the means are over those that do.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from equal_parameters import match_parameters
from machine import RESULTS, ROOT, RSS_UNIT, write_results
from pictures import draw_range, picture
from scipy.stats import trim_mean

from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.agents.statistics import bootstrap_interval

SOLVED = 0.95
"""Success rate whose first timestep the table reports."""
METRICS = {"success_rate": "success", "return_mean": "return", "score": "score"}
"""Names of the metrics in the table."""
PARTS = {"trained": "", "held_out": "held out, "}
"""Prefixes of the columns for trained and held-out episodes."""
MAX_COLUMNS = 8
"""A table with more columns than this is transposed."""

Run = dict[str, Any]


# ------------------------------------------------------------------------------------------- runs


def train_command(runs: Path, name: str, options: list[str]) -> list[str]:
    """Return the command that trains a run.

    Args:
        runs: The folder of the run directories.
        name: The name of the run.
        options: Options of ``train.py``.
    """
    script = str(ROOT / "train.py")
    return [sys.executable, script, f"runs_dir={runs}", f"name={name}", "progress=false", *options]


def train_and_evaluate(options: list[str], runs: Path, name: str, threads: int) -> Run:
    """Train and evaluate a run from the command line, as a user would.

    Args:
        options: Options of ``train.py``.
        runs: The folder of the run directories.
        name: The name of the run.
        threads: Number of threads of the process.

    Returns:
        Options, parameters, timesteps, peak memory, learning curves and results of each task.

    Raises:
        CalledProcessError: If ``train.py`` fails.
    """
    run_dir = runs / name
    command = train_command(runs, name, options)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    was_interrupted = any((run_dir / "eval").glob("step_*.json"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    # wait4 also returns the peak memory of the process, which Popen.wait does not
    _, status, usage = os.wait4(process.pid, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code:
        raise subprocess.CalledProcessError(exit_code, command)

    last = CheckpointDirectory(run_dir / "checkpoints").find("last").name
    [report_path] = (run_dir / "eval").glob(f"{last}-*-seed0-*ep*.json")
    report = json.loads(report_path.read_text(encoding="utf-8"))
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # logged whenever the training starts or resumes, in a row without timesteps
    [parameters] = {row["model/parameters"] for row in rows if row["model/parameters"]}
    peak_rss_bytes = None
    if not was_interrupted:
        peak_rss_bytes = usage.ru_maxrss * RSS_UNIT
    run = {
        "options": options,
        "parameters": int(float(parameters)),
        "timesteps": int(last.removeprefix("step_")),
        "peak_rss_bytes": peak_rss_bytes,
        "curve": column(rows, "eval/success_rate"),
        "held_out_curve": column(rows, "eval/held_out/success_rate"),
        "tasks": report["tasks"],
    }
    returns = column(rows, "eval/return")
    if returns and not run["curve"]:
        run["return_curve"] = returns
    return run


def column(rows: list[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Return the timesteps and the values of a metric, where it was logged.

    Args:
        rows: The rows of ``metrics.csv``.
        name: The name of the metric.
    """
    points = []
    for row in rows:
        if row.get(name):
            points.append((int(row["time/total_timesteps"]), float(row[name])))
    return points


def load_runs(name: str) -> dict[tuple[str, ...], Run]:
    """Return the runs of an existing results file, by their options.

    Args:
        name: The name of the benchmark.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    found = {}
    for runs in report["measurements"].values():
        for run in runs:
            found[tuple(run["options"])] = run
    return found


# ------------------------------------------------------------------------------------------ table


def summary_table(
    agents: dict[str, list[Run]], metrics: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table: a row per agent, or a column if it is wide.

    Args:
        agents: The runs of each agent, one per seed.
        metrics: The metrics to show.
    """
    every_run = [run for runs in agents.values() for run in runs]
    metrics = shown_metrics(every_run, metrics)
    unknown = tasks_without_success(every_run)
    cells = {name: describe(runs, metrics, unknown) for name, runs in agents.items()}
    measures = list(next(iter(cells.values())))
    table = [["agent", *measures]]
    for name, found in cells.items():
        table.append([name, *found.values()])
    if len(measures) > MAX_COLUMNS:
        table = [list(row) for row in zip(*table, strict=True)]
    return table[0], table[1:]


def tasks_without_success(runs: list[Run]) -> set[str]:
    """Return the tasks of which an evaluation does not know the success.

    Args:
        runs: The runs of all agents.
    """
    unknown = set()
    for run in runs:
        for task in run["tasks"]:
            if task["success_rate"] is None:
                unknown.add(task["task"])
    return unknown


def shown_metrics(runs: list[Run], metrics: list[str]) -> list[str]:
    """Return the metrics of the table: the return takes the place of a success that is unknown.

    Args:
        runs: The runs of all agents.
        metrics: The metrics that are asked for.
    """
    tasks = {task["task"] for run in runs for task in run["tasks"]}
    if not tasks or tasks_without_success(runs) != tasks:
        return metrics
    replaced = ["return_mean" if metric == "success_rate" else metric for metric in metrics]
    return list(dict.fromkeys(replaced))


def describe(runs: list[Run], metrics: list[str], unknown: set[str]) -> dict[str, str]:
    """Return the cells of an agent by their column: size, results and peak memory.

    Args:
        runs: The runs of the agent, one per seed.
        metrics: The metrics to show.
        unknown: The tasks whose success is unknown.
    """
    cells = {"parameters": f"{runs[0]['parameters']:,}", "seeds": str(len(runs))}
    for metric in metrics:
        # success needs no name in the columns if it is the only metric
        suffix = ""
        if metrics != ["success_rate"]:
            suffix = f", {METRICS[metric]}"
        without_cell = unknown if metric == "success_rate" else set()
        for part, prefix in PARTS.items():
            scores = task_scores(runs, part, metric)
            for measure, cell in part_cells(scores, metric, without_cell).items():
                cells[prefix + measure + suffix] = cell
    if "success_rate" in metrics and len(runs[0]["tasks"]) == 1:
        cells["timesteps to 95 %"] = timesteps_to(SOLVED, runs)
    # the peak memory of an interrupted run is unknown
    peaks = [run["peak_rss_bytes"] for run in runs if run["peak_rss_bytes"]]
    cells["peak memory, MiB"] = "–"
    if peaks:
        cells["peak memory, MiB"] = f"{max(peaks) / 2**20:,.0f}"
    return cells


def task_scores(runs: list[Run], part: str, metric: str) -> dict[str, list[float]]:
    """Return a metric of each task, one value per run.

    Args:
        runs: The runs of an agent.
        part: ``trained`` or ``held_out``.
        metric: The name of the metric.
    """
    found: dict[str, list[float]] = {}
    for run in runs:
        for task in run["tasks"]:
            if task["subset"] == part:
                found.setdefault(task["task"], []).append(task[metric])
    return found


def part_cells(scores: dict[str, list[float]], metric: str, unknown: set[str]) -> dict[str, str]:
    """Return the cells of an agent for trained or held-out episodes, by their column.

    Args:
        scores: The metric of each task, one value per seed; may be empty.
        metric: The name of the metric.
        unknown: The tasks whose metric is unknown.
    """

    def text(value: float) -> str:
        if metric == "success_rate":
            return f"{value:.1%}"
        return f"{value:.2f}"

    cells = {}
    known = {}
    for task, values in scores.items():
        if task in unknown:
            cells[task] = "–"
            continue
        known[task] = values
        cells[task] = text(np.mean(values))
        if len(values) > 1:
            cells[task] += f" ({text(min(values))} – {text(max(values))})"
    if len(known) < 2:
        return cells

    over = ""
    if len(known) < len(scores):
        over = f" over {len(known)} of {len(scores)} tasks"
    matrix = np.array(list(known.values())).T  # (seeds, tasks)
    mean = text(matrix.mean())
    if len(matrix) > 1:
        low, high = bootstrap_interval(matrix, np.mean, np.random.default_rng(0))
        cells[f"mean{over} (95 % interval)"] = f"{mean} ({text(low)} – {text(high)})"
    else:
        # one seed says nothing about the variation between seeds
        cells[f"mean{over}"] = mean
    cells[f"interquartile mean{over}"] = text(trim_mean(matrix, 0.25, axis=None))
    cells[f"worst task{over}"] = text(matrix.mean(0).min())
    return cells


def timesteps_to(rate: float, runs: list[Run]) -> str:
    """Return the range of timesteps at which the learning curves first reach a success rate.

    Args:
        rate: The success rate.
        runs: The runs of an agent.
    """
    reached = []
    for run in runs:
        steps = [step for step, success in run["curve"] if success >= rate]
        if steps:
            reached.append(steps[0])
    if not reached:
        return "not reached"
    text = f"{min(reached):,}"
    if max(reached) > min(reached):
        text += f" – {max(reached):,}"
    if len(reached) < len(runs):
        text += f"; {len(runs) - len(reached)} of {len(runs)} never"
    return text


def draw(agents: dict[str, list[Run]], name: str) -> None:
    """Draw success on unseen episodes against timesteps: mean and range over the seeds.

    Dashed lines show the held-out episodes. Where no task reports success, the return takes its
    place.

    Args:
        agents: The runs of each agent, one per seed.
        name: The name of the figure.
    """
    styles = (("curve", "", "-"), ("held_out_curve", ", held out", "--"))
    labels: dict[str, Any] = {
        "xlabel": "timesteps",
        "ylabel": "success on unseen episodes",
        "xlim": (0, None),
        "ylim": (0, 1.02),
    }
    # runs without a success curve have one of the return
    if any("return_curve" in run for runs in agents.values() for run in runs):
        styles = (("return_curve", "", "-"),)
        labels["ylabel"] = "return on unseen episodes"
        del labels["ylim"]
    with picture(name, **labels) as axes:
        for number, (agent, runs) in enumerate(agents.items()):
            for key, suffix, linestyle in styles:
                # some older results files have no held-out curves
                curves = [run.get(key, []) for run in runs]
                # the runs may differ in their number of evaluations: take the common ones
                n_points = min(len(curve) for curve in curves)
                if n_points == 0:
                    continue
                steps = [step for step, _ in curves[0][:n_points]]
                # (runs, points, 2) -> (runs, points)
                rates = np.array([curve[:n_points] for curve in curves])[:, :, 1]
                style = {"color": f"C{number}", "linestyle": linestyle}
                draw_range(axes, steps, rates, agent + suffix, **style)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")


# ------------------------------------------------------------------------------------ the command


class Comparison:
    """The runs so far, rewritten as results and figure after each new one.

    Args:
        name: The name of the benchmark.
        agents: The names of the agents, in the order of the table.
        metrics: The metrics of the table.
    """

    def __init__(self, name: str, agents: list[str], metrics: list[str]) -> None:
        self.name = name
        self.metrics = metrics
        self.runs: dict[str, dict[int, Run]] = {agent: {} for agent in agents}
        self.lock = Lock()

    def add(self, agent: str, seed: int, run: Run) -> None:
        """Add a new run, print its result and rewrite the files. Safe to call from threads.

        Args:
            agent: The name of the agent.
            seed: The seed of the run.
            run: The run, as ``train_and_evaluate`` returns it.
        """
        with self.lock:
            self.runs[agent][seed] = run
            self.write()
            print(f"{agent} seed {seed}: {self.summary(run)}", flush=True)  # noqa: T201

    def summary(self, run: Run) -> str:
        """Return one line about a run: the mean of the first metric, and its size.

        Args:
            run: The run.
        """
        metric = shown_metrics([run], self.metrics)[0]
        trained = [task[metric] for task in run["tasks"] if task["subset"] == "trained"]
        values = [value for value in trained if value is not None]
        mean = f"{METRICS[metric]} –"
        if values:
            mean = f"{METRICS[metric]} {np.mean(values):.3f}"
        if len(values) < len(trained):
            mean += f" over {len(values)} of {len(trained)} tasks"
        if metric != self.metrics[0]:
            mean += " (no task reports success)"
        return f"{mean}, {run['parameters']:,} parameters"

    def write(self) -> None:
        """Write the results file and the figure."""
        agents = {}
        for agent, by_seed in self.runs.items():
            if by_seed:
                agents[agent] = [by_seed[seed] for seed in sorted(by_seed)]
        write_results(self.name, *summary_table(agents, self.metrics), agents)
        draw(agents, self.name)


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the results file and the figure")
    parser.add_argument("options", nargs="*", metavar="option=value", help="common to all agents")
    parser.add_argument("--agent", action="append", required=True, metavar="'NAME: option=value …'")
    parser.add_argument("--config-dir", type=Path, help="folder of presets, as of train.py")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--match", metavar="OPTION", help="the option that makes the number of parameters equal"
    )
    parser.add_argument(
        "--metric", action="append", choices=METRICS, help="in the table; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="reuse_results",
        help="keep the runs of the existing results file",
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="folder of the runs"
    )
    # intermixed: the common options may stand anywhere
    return parser.parse_intermixed_args()


def main() -> None:
    """Run the comparison that the command line names."""
    arguments = parse_arguments()
    agents = {}
    for text in arguments.agent:
        name, _, own = text.partition(":")
        agents[name] = own.split()
    if arguments.config_dir is not None:
        arguments.options.insert(0, f"--config-dir={arguments.config_dir.absolute()}")
    if arguments.match is not None:
        agents = match_parameters(agents, arguments.options, arguments.match)
    metrics = arguments.metric or ["success_rate"]

    known = {}
    if arguments.reuse_results:
        known = load_runs(arguments.name)
    comparison = Comparison(arguments.name, list(agents), metrics)
    missing = []
    for seed, agent in product(range(arguments.seeds), agents):
        options = [*arguments.options, *agents[agent], f"seed={seed}"]
        if tuple(options) in known:
            comparison.runs[agent][seed] = known[tuple(options)]
        else:
            missing.append((agent, seed, options))
    if not missing:
        comparison.write()
        return

    threads = 1
    if arguments.jobs == 1:
        threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))

    def train(agent: str, seed: int, options: list[str]) -> None:
        name = f"{arguments.name}-{agent}-seed{seed}"
        comparison.add(agent, seed, train_and_evaluate(options, arguments.runs, name, threads))

    with ThreadPoolExecutor(arguments.jobs) as jobs:
        try:
            for done in as_completed([jobs.submit(train, *run) for run in missing]):
                done.result()
        except BaseException:
            # start no further runs; the error is raised when those under way have ended
            jobs.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
