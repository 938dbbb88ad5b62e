"""Train agents, compare them, where asked at equal parameters, over several seeds: a JSON, a table, a picture.

    python benchmarks/compare.py mt5 --seeds 3 --match encoder.features_dim \\
        --agent "concat: fusion=concat" --agent "bilinear: fusion=bilinear" task=mt5 total_timesteps=1_000_000

Every agent is trained with the words it has in common with the others and with its own. In the table stand the means
over the seeds with their ranges; an interval is of the mean over the tasks, by a bootstrap over the seeds.
``--match OPTION`` sets that option of each agent so that all have as many parameters as the largest: narrower ones are
widened, and none is tuned. Results are written after each run, to ``benchmarks/results/NAME.json``, and the curves to
``docs/pictures/NAME.png``. A benchmark that was cut off goes on: runs in ``--runs`` are resumed, and ``--continue``
does not repeat those of the same words that the results hold already.
``--jobs`` runs several at a time, each on one thread; no time is kept here, so it costs nothing.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from machine import RESULTS, RSS_UNIT, write_results
from pictures import draw_range, picture
from scipy.stats import trim_mean

from mirl.agents.building import build_policy
from mirl.agents.checkpoint import find_checkpoint
from mirl.agents.statistics import bootstrap_interval
from mirl.configs.compose import compose_train
from mirl.envs import SuiteVecEnv
from mirl.policies import count_parameters

ROOT = Path(__file__).parent.parent
SOLVED = 0.95
METRICS = {"success_rate": "success", "return_mean": "return", "score": "score"}
PARTS = {"trained": "", "held_out": "held out, "}


def parameters_of(words: list[str]) -> int:
    """Of the untrained agent that a command line describes."""
    config = compose_train(words)
    env = SuiteVecEnv(config.task, max(len(config.task.tasks), 2), backend=config.backend)
    try:
        return count_parameters(build_policy(config, env.observation_space, env.action_space))
    finally:
        env.close()


def matched(agents: dict[str, list[str]], shared: list[str], option: str | None) -> dict[str, list[str]]:
    """The agents' words, with ``option`` set so that each has as many parameters as the largest, as near as can be."""
    if option is None:
        return agents
    sizes = {name: parameters_of([*shared, *words]) for name, words in agents.items()}
    target = max(sizes.values())
    return {
        name: words
        if sizes[name] == target
        else [*words, f"{option}={width_for(target, partial(parameters_with, [*shared, *words], option))}"]
        for name, words in agents.items()
    }


def parameters_with(words: list[str], option: str, width: int) -> int:
    """As ``parameters_of``, with an option set to a width."""
    return parameters_of([*words, f"{option}={width}"])


def width_for(target: int, parameters: Callable[[int], int]) -> int:
    """The smallest from 2 that gives at least ``target`` parameters, by doubling and bisection: they grow with it."""
    high = 2
    while parameters(high) < target:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < target else (low, middle)
    return high


def train_and_evaluate(words: list[str], runs: Path, name: str, threads: int) -> dict[str, Any]:
    """One run, from the command line as a user would; what is to be known of it."""
    run_dir = runs / name
    command = [sys.executable, str(ROOT / "train.py"), f"runs_dir={runs}", f"name={name}", "progress=false", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    finished_before = any((run_dir / "eval").glob("step_*.json"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    last = find_checkpoint(run_dir / "checkpoints", "last").name
    [report_path] = (run_dir / "eval").glob(f"{last}-*-seed0-*ep*.json")
    report = json.loads(report_path.read_text())
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "options": words,
        "parameters": next(int(float(row["model/parameters"])) for row in rows if row["model/parameters"]),
        "timesteps": int(last.removeprefix("step_")),
        "peak_rss_bytes": None if finished_before else usage.ru_maxrss * RSS_UNIT,
        "curve": curve(rows, "eval/success_rate"),
        "held_out_curve": curve(rows, "eval/held_out/success_rate"),
        "tasks": report["tasks"],
    }


def results_by_words(name: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """The runs that a benchmark's results hold, by the words of their command line."""
    path = RESULTS / f"{name}.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["measurements"].values() if path.exists() else ()
    return {tuple(run["options"]): run for by_seed in runs for run in by_seed}


def curve(rows: list[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Timesteps and values of a column of ``metrics.csv``."""
    return [(int(row["time/total_timesteps"]), float(row[name])) for row in rows if row.get(name)]


def scores(runs: list[dict[str, Any]], part: str, metric: str) -> dict[str, list[float]]:
    """Each task's results over the seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for task in run["tasks"]:
            if task["part"] == part:
                found.setdefault(task["task"], []).append(task[metric])
    return found


def summary_table(agents: dict[str, list[dict[str, Any]]], metrics: list[str]) -> tuple[list[str], list[list[str]]]:
    """A row per agent; of many tasks a column per agent instead."""
    described = {name: description(runs, metrics) for name, runs in agents.items()}
    measures = list(next(iter(described.values())))
    table = [["agent", *measures], *([name, *found.values()] for name, found in described.items())]
    if len(measures) > 8:
        table = [list(row) for row in zip(*table, strict=True)]
    return table[0], table[1:]


def description(runs: list[dict[str, Any]], metrics: list[str]) -> dict[str, str]:
    """What a table says of an agent: each task's mean over the seeds with its range, the tasks' mean, what it cost."""
    cells = {"parameters": f"{runs[0]['parameters']:,}", "seeds": str(len(runs))}
    for metric in metrics:
        suffix = f", {METRICS[metric]}" if len(metrics) > 1 else ""
        for part, prefix in PARTS.items():
            found = scores(runs, part, metric)
            cells |= {prefix + measure + suffix: cell for measure, cell in part_cells(found, metric)} if found else {}
    if "success_rate" in metrics and len(runs[0]["tasks"]) == 1:
        cells["timesteps to 95 %"] = timesteps_to(SOLVED, runs)
    peaks = [run["peak_rss_bytes"] for run in runs if run["peak_rss_bytes"]]  # not of runs that were cut off
    cells["peak memory, MiB"] = f"{max(peaks) / 2**20:,.0f}" if peaks else "–"
    return cells


def part_cells(found: dict[str, list[float]], metric: str) -> Iterator[tuple[str, str]]:
    """Of one agent and part, (measure, cell)."""
    form = "{:.1%}".format if metric == "success_rate" else "{:.2f}".format
    matrix = np.array(list(found.values())).T  # (seeds, tasks)
    for task, values in found.items():
        spread = f" ({form(min(values))} – {form(max(values))})" if len(values) > 1 else ""
        yield task, form(np.mean(values)) + spread
    if len(found) > 1:
        if len(matrix) > 1:
            low, high = bootstrap_interval(matrix, np.mean, np.random.default_rng(0))
            yield "mean (95 % interval)", f"{form(matrix.mean())} ({form(low)} – {form(high)})"
        else:  # of one seed nothing is known of others
            yield "mean", form(matrix.mean())
        yield "interquartile mean", form(trim_mean(matrix, 0.25, axis=None))
        yield "worst task", form(matrix.mean(0).min())


def timesteps_to(rate: float, runs: list[dict[str, Any]]) -> str:
    """When the seeds' curves first reach a rate."""
    first = [next((step for step, success in run["curve"] if success >= rate), None) for run in runs]
    reached = sorted(step for step in first if step is not None)
    if not reached:
        return "not reached"
    range_ = f"{reached[0]:,}" + (f" – {reached[-1]:,}" if reached[-1] > reached[0] else "")
    return range_ if len(reached) == len(first) else f"{range_}; {len(first) - len(reached)} of {len(first)} never"


def draw(agents: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Success on unseen episodes against timesteps: each agent's mean over the seeds, and its range.

    Of what a split withholds too, in broken lines.
    """
    styles = {"curve": ("", "-"), "held_out_curve": (", held out", "--")}
    labels = {"xlabel": "timesteps", "ylabel": "success on unseen episodes", "xlim": (0, None), "ylim": (0, 1.02)}
    with picture(name, **labels) as axes:
        for number, (agent, runs) in enumerate(agents.items()):
            for key, (mark, linestyle) in styles.items():
                length = min(len(run.get(key, ())) for run in runs)
                steps = [step for step, _ in runs[0].get(key, ())[:length]]
                rates = np.array([[rate for _, rate in run.get(key, ())[:length]] for run in runs])
                if steps:
                    draw_range(axes, steps, rates, agent + mark, color=f"C{number}", linestyle=linestyle)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")


def main() -> None:
    """Run the comparison that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("words", nargs="*", metavar="option=value")
    parser.add_argument("--agent", action="append", required=True, metavar="'NAME: option=value …'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--match", metavar="OPTION", help="the option that makes the parameters equal")
    parser.add_argument("--metric", action="append", choices=METRICS, help="what the table has; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--continue", action="store_true", dest="goes_on", help="keep what the results hold already")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args()
    given = dict(agent.split(":", 1) for agent in arguments.agent)
    agents = matched({name: words.split() for name, words in given.items()}, arguments.words, arguments.match)
    metrics = arguments.metric or ["success_rate"]
    known = results_by_words(arguments.name) if arguments.goes_on else {}
    finished: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in agents}
    missing = []
    for seed, name in product(range(arguments.seeds), agents):
        words = [*arguments.words, *agents[name], f"seed={seed}"]
        if tuple(words) in known:
            finished[name][seed] = known[tuple(words)]
        else:
            missing.append((seed, name, words))
    writing = Lock()

    def write() -> None:
        runs = {name: [by_seed[s] for s in sorted(by_seed)] for name, by_seed in finished.items() if by_seed}
        write_results(arguments.name, *summary_table(runs, metrics), runs)
        draw(runs, arguments.name)

    def one(seed: int, name: str, words: list[str]) -> None:
        result = train_and_evaluate(words, arguments.runs, f"{arguments.name}-{name}-seed{seed}", threads)
        with writing:
            finished[name][seed] = result
            write()
            rate = np.mean([task[metrics[0]] for task in result["tasks"] if task["part"] == "trained"])
            print(f"{name} seed {seed}: {rate:.3f}, {result['parameters']:,} parameters", flush=True)  # noqa: T201

    threads = 1 if arguments.jobs > 1 else int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    with ThreadPoolExecutor(arguments.jobs) as jobs:
        try:
            for done in as_completed([jobs.submit(one, *run) for run in missing]):
                done.result()
        except BaseException:
            jobs.shutdown(wait=False, cancel_futures=True)  # told when those that run are over, not when all are
            raise
    if not missing:
        write()


if __name__ == "__main__":
    main()
