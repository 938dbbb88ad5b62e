"""What docs/reliability.md promises, tried on real processes: kills, strange configurations, fuzzing, a long run.

    python benchmarks/reliability.py            # under an hour on two cores
    python benchmarks/reliability.py --quick    # the same parts, a few minutes
    python benchmarks/reliability.py soak       # one part again

Each part writes its rows into ``benchmarks/results/reliability.json`` when it is done (``--quick`` writes nothing);
what does not hold makes the exit code 1. The long run needs the machine to itself: beside another process torch's
threads wait for each other, and it trains too little to say anything.
"""

import argparse
import csv
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import RESULTS, write_results
from scipy.stats import theilslopes

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from command_words import TRAIN_WORDS  # noqa: E402
from run_records import metrics_of, points_of, tensors_of  # noqa: E402

from mirl.agents.metrics import CHECKPOINT_SECONDS, SPEED  # noqa: E402
from mirl.configs.compose import compose_train  # noqa: E402
from mirl.configs.errors import ConfigError  # noqa: E402

SMALL = ["agent.n_envs=8", "agent.n_steps=32", "encoder.channels=8", "encoder.features_dim=16", "context.dim=8"]
KILLED_RUNS = [f"agent={agent} backend={backend}" for agent in ("ppo", "a2c") for backend in ("envpool", "gymnasium")]
PAGE = os.sysconf("SC_PAGE_SIZE")
KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_ARENA_MAX": "1",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
}
"""glibc gives tens of megabytes back now and then, mostly when protobuf, in which TensorBoard writes, asks, and
within two minutes they are taken again; which hides a leak, or looks like one. Here all that was ever taken is kept."""


class Scale(NamedTuple):
    """How long each part tries."""

    kills: int
    configurations: int
    fuzz_seconds: int
    soak_seconds: int
    killed_runs: list[str]


FULL = Scale(kills=20, configurations=10_000, fuzz_seconds=600, soak_seconds=1800, killed_runs=KILLED_RUNS)
QUICK = Scale(kills=3, configurations=300, fuzz_seconds=15, soak_seconds=40, killed_runs=KILLED_RUNS[:1])


class Row(NamedTuple):
    """A line of the table."""

    promise: str
    tried: str
    found: str
    holds: bool


# --------------------------------------------------------------------------------------------------------------- kills


def start(words: list[str], **variables: str) -> subprocess.Popen[str]:
    """A training process, past its imports and on its way."""
    command = [sys.executable, str(ROOT / "train.py"), "progress=false", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.match("Training for|Resuming at", line) or process.poll() == 0, f"{line!r} of {' '.join(command)}"
    return process


def names_in(folder: Path) -> list[str]:
    """The names of a folder's entries."""
    return [path.name for path in folder.iterdir()]


def is_writing(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written: it has no name of its own yet."""
    return any(not re.fullmatch(r"step_\d+|index\.json", name) for name in names_in(checkpoints))


def kill(process: subprocess.Popen[str], checkpoints: Path, moments: random.Random) -> str:
    """SIGKILL at a random moment, or as soon as a checkpoint is being written; which of the two."""
    patience = time.monotonic() + moments.uniform(0.0, 1.5)
    while_writing = moments.random() < 0.3
    while process.poll() is None and (while_writing or time.monotonic() < patience):
        if while_writing and checkpoints.exists() and is_writing(checkpoints):
            break
        time.sleep(0.0005 if while_writing else 0.01)
    if process.poll() is not None:
        return "finished before"
    process.kill()
    process.wait()
    return "writing" if checkpoints.exists() and is_writing(checkpoints) else "between"


def kills(scale: Scale, folder: Path) -> Iterator[Row]:
    """Runs that are killed again and again end as ones that are not."""
    for run in scale.killed_runs:
        batch = [] if "a2c" in run else ["agent.batch_size=64", "agent.n_epochs=2"]
        shared = [*run.split(), *SMALL, *batch, f"runs_dir={folder}", "total_timesteps=30_720", "device=cpu"]
        words = [*shared, "checkpoint_every=1_024", "evaluation.every=4_096", "evaluation.episodes=8", "precision=fp32"]
        name = re.sub(r"\W+", "-", run)
        assert start([*words, f"name={name}-whole"], OMP_NUM_THREADS="1").communicate()[0]
        cut, moments, when = folder / f"{name}-cut", random.Random(run), []
        for _ in range(scale.kills):
            when.append(kill(start([*words, f"name={cut.name}"], OMP_NUM_THREADS="1"), cut / "checkpoints", moments))
        start([*words, f"name={cut.name}"], OMP_NUM_THREADS="1").communicate()
        same = [
            of(cut) == of(folder / f"{name}-whole")
            for of in (metrics_of, points_of, lambda each: {k: v.tobytes() for k, v in tensors_of(each).items()})
        ]
        happened = ", ".join(f"{when.count(each)} {each}" for each in dict.fromkeys(when))
        yield Row(
            f"exact resume: {run}",
            f"{scale.kills} SIGKILLs ({happened})",
            ", ".join(
                f"{what} {'equal' if equal else 'DIFFER'}"
                for what, equal in zip(("metrics.csv", "TensorBoard's points", "all tensors"), same, strict=True)
            ),
            all(same),
        )


# ------------------------------------------------------------------------------------------ configurations and fuzzing


def configurations(scale: Scale, folder: Path) -> Iterator[Row]:
    """Any words of the command line give a configuration or one documented error."""
    valid = refused = 0

    @settings(max_examples=scale.configurations, deadline=None, database=None)
    @given(st.lists(TRAIN_WORDS, max_size=4))
    def try_words(words: list[str]) -> None:
        nonlocal valid, refused
        try:
            compose_train(words)
            valid += 1
        except ConfigError:
            refused += 1

    failure = ""
    try:
        try_words()
    except Exception as error:  # whatever is not documented
        failure = f"; {type(error).__name__}: {error}"
    yield Row(
        "bad input is one clear error",
        f"{valid + refused:,} generated command lines",
        f"{valid:,} valid, {refused:,} refused, {'a traceback' + failure if failure else 'no traceback'}",
        not failure and valid + refused >= scale.configurations,
    )


def fuzzing(scale: Scale, folder: Path) -> Iterator[Row]:
    """Whatever the files of a run directory hold, reading them is a success or the documented error."""
    script, golden = Path(__file__).with_name("fuzz_reader.py"), ROOT / "tests" / "golden" / "schema_1"
    command = [sys.executable, str(script), str(golden), f"-max_total_time={scale.fuzz_seconds}"]
    environment = {**os.environ, "TMPDIR": str(folder)}  # atheris ends the process before it could clean up
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    runs = re.search(r"Done (\d+) runs", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    found = re.findall(r"Uncaught Python exception.*\n.*|ERROR: .*", done.stderr)
    yield Row(
        "damaged and hostile files are refused",
        f"{int(runs[1]):,} inputs in {scale.fuzz_seconds} s, coverage-guided" if runs else "fuzzing broke off",
        f"nothing, {coverage[-1]} edges reached" if runs and not found else "; ".join(found) or done.stderr[-300:],
        bool(runs) and not found and done.returncode == 0,
    )


# ---------------------------------------------------------------------------------------------------------------- soak


class Sample(NamedTuple):
    """A training process at a moment."""

    seconds: float
    rss_bytes: int
    descriptors: int


def sampled(process: subprocess.Popen[str], seconds: float) -> list[Sample]:
    """Looks at it every half second for so long."""
    samples, begin = [], time.monotonic()
    while (now := time.monotonic() - begin) < seconds and process.poll() is None:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        samples.append(Sample(now, pages * PAGE, len(names_in(Path(f"/proc/{process.pid}/fd")))))
        time.sleep(0.5)
    return samples


def soak(scale: Scale, folder: Path) -> Iterator[Row]:
    """A long run with a checkpoint a minute: killed at random for a fifth of the time, then watched."""
    moments, begin = random.Random(0), time.monotonic()
    per_minute = 200_000 if scale is FULL else 20_000
    words = [f"runs_dir={folder}", "name=soak", f"checkpoint_every={per_minute}", "total_timesteps=1_000_000_000"]
    n_kills = 0
    while time.monotonic() - begin < scale.soak_seconds / 5:
        process = start(words)
        time.sleep(moments.uniform(scale.soak_seconds / 120, scale.soak_seconds / 15))
        process.kill()
        process.wait()
        n_kills += 1
    process = start(words, **KEEP_FREED)
    samples = sampled(process, scale.soak_seconds - (time.monotonic() - begin))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    warm = [sample for sample in samples if sample.seconds > samples[-1].seconds / 3]
    seconds, rss = np.array([[each.seconds, each.rss_bytes] for each in warm]).T
    growth = theilslopes(rss, seconds).slope * 3600 / rss.mean()
    descriptors = {each.descriptors for each in warm}
    with (folder / "soak" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["time/total_timesteps"]) for row in rows if row.get(SPEED)]
    wrong = int((np.diff(steps) != steps[0]).sum())
    spent = sum(float(row[CHECKPOINT_SECONDS]) for row in rows if row.get(CHECKPOINT_SECONDS))
    trained = sum(steps[0] / float(row[SPEED]) for row in rows if row.get(SPEED))
    share = spent / (spent + trained)
    watched = f"{seconds[-1] - seconds[0]:.0f} s after a warm-up"
    open_files = f"{min(descriptors)} – {max(descriptors)} descriptors"
    yield Row("no file is left open", watched, open_files, max(descriptors) - min(descriptors) < 4)
    yield Row("no timestep is lost", f"{n_kills} kills, {steps[-1]:,} timesteps", f"{wrong} lost or doubled", not wrong)
    if scale is FULL:  # less than that says nothing
        yield Row("no memory is lost", watched, f"{growth:+.2%} per hour", bool(growth < 0.01))
        yield Row("checkpoints cost little", "one a minute", f"{share:.2%} of the time", 0 < share < 0.01)


# ---------------------------------------------------------------------------------------------------------------- main

PARTS: dict[str, Callable[[Scale, Path], Iterator[Row]]] = {
    "kills": kills,
    "configurations": configurations,
    "fuzzing": fuzzing,
    "soak": soak,
}


def earlier_results() -> dict[str, Row]:
    """What was found before, by promise."""
    path = RESULTS / "reliability.json"
    found = json.loads(path.read_text(encoding="utf-8"))["measurements"] if path.exists() else []
    return {row["promise"]: Row(**row) for row in found}


def main() -> int:
    """Try all, or what the command line names; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all")
    parser.add_argument("--quick", action="store_true", help="a few minutes instead of an hour; nothing is written")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    rows = earlier_results() if arguments.parts and not arguments.quick else {}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart that it reads about
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or PARTS:
            for row in PARTS[part](scale, Path(folder)):
                rows[row.promise] = row
                print(f"{'holds' if row.holds else 'FAILS'}: {row.promise}: {row.tried}: {row.found}", flush=True)  # noqa: T201
                if not arguments.quick:
                    table = [[each.promise, each.tried, each.found] for each in rows.values()]
                    measurements = [each._asdict() for each in rows.values()]
                    write_results("reliability", ["promise", "tried", "found"], table, measurements)
    return 0 if all(row.holds for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
