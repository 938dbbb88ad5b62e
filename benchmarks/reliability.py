"""Test the guarantees of ``docs/reliability.md`` on real processes.

    python benchmarks/reliability.py            # under an hour on two cores
    python benchmarks/reliability.py --quick    # the same parts in a few minutes
    python benchmarks/reliability.py soak       # one part alone

The parts are: killed runs, random command lines, fuzzed run directories and a long run. Each part
writes its rows to ``benchmarks/results/reliability.json`` (``--quick`` writes nothing). The exit
code is 1 if a guarantee does not hold. Run the long one on an otherwise idle machine: beside other
processes torch's threads wait for each other, and it trains too little to show anything.
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
from machine import RESULTS, ROOT, write_results
from scipy.stats import theilslopes

sys.path.insert(0, str(ROOT / "tests"))

from command_words import TRAIN_WORDS
from run_records import metrics_of, points_of, tensors_of

from mirl.agents.runs.metric_names import CHECKPOINT_SECONDS, SPEED
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError

SMALL = [
    "agent.n_envs=8",
    "agent.n_steps=32",
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
]
"""Options of a small and fast agent."""
KILLED_RUNS = [
    "agent=ppo backend=envpool",
    "agent=ppo backend=gymnasium",
    "agent=a2c backend=envpool",
    "agent=a2c backend=gymnasium",
]
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_ARENA_MAX": "1",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
}
"""Environment variables that keep glibc from returning freed memory to the operating system.

Otherwise it returns tens of megabytes now and then, mostly when protobuf (which TensorBoard writes)
requests memory, and takes them again within two minutes. That hides a leak or looks like one.
"""


class Scale(NamedTuple):
    """Size of the tests of each part."""

    kills: int
    configurations: int
    fuzz_seconds: int
    soak_seconds: int
    killed_runs: list[str]


FULL = Scale(
    kills=20,
    configurations=10_000,
    fuzz_seconds=600,
    soak_seconds=1800,
    killed_runs=KILLED_RUNS,
)
QUICK = Scale(
    kills=2,
    configurations=100,
    fuzz_seconds=15,
    soak_seconds=40,
    killed_runs=KILLED_RUNS[:1],
)


class Row(NamedTuple):
    """A row of the table."""

    guarantee: str
    test: str
    result: str
    holds: bool


# ------------------------------------------------------------------------------------------ kills


def start(options: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a training process and wait until it trains.

    Args:
        options: Options of ``train.py``.
        **variables: Environment variables to add.

    Raises:
        RuntimeError: If the process does not report that it trains.
    """
    command = [sys.executable, str(ROOT / "train.py"), "progress=false", *options]
    environment = {**os.environ, **variables}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not re.match("Training for|Resuming at", line) and process.poll() != 0:
        raise RuntimeError(f"expected training to start, got {line!r} from: {' '.join(command)}")
    return process


def entry_names(folder: Path) -> list[str]:
    """Return the names of the entries of a folder.

    Args:
        folder: The folder.
    """
    return [path.name for path in folder.iterdir()]


def is_writing(checkpoints: Path) -> bool:
    """Return whether a checkpoint is being written, which has a temporary name until it is whole.

    Args:
        checkpoints: The folder of the checkpoints.
    """
    if not checkpoints.exists():
        return False
    names = entry_names(checkpoints)
    return any(not re.fullmatch(r"step_\d+|index\.json", name) for name in names)


def kill(process: subprocess.Popen[str], checkpoints: Path, rng: random.Random) -> str:
    """Kill a process at a random moment, or in three of ten cases while it writes a checkpoint.

    Args:
        process: The training process.
        checkpoints: The folder of its checkpoints.
        rng: The generator of the moments.

    Returns:
        When it was killed: ``writing``, ``between`` or ``finished before``.
    """
    deadline = time.monotonic() + rng.uniform(0.0, 1.5)
    while_writing = rng.random() < 0.3
    while process.poll() is None:
        if while_writing:
            if is_writing(checkpoints):
                break
            time.sleep(0.0005)
        else:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.01)
    if process.poll() is not None:
        return "finished before"
    process.kill()
    process.wait()
    if is_writing(checkpoints):
        return "writing"
    return "between"


def tensor_bytes(run_dir: Path) -> dict[str, bytes]:
    """Return the bytes of each tensor of a run, so that NaN equals NaN.

    Args:
        run_dir: The run directory.
    """
    return {name: values.tobytes() for name, values in tensors_of(run_dir).items()}


RECORDS: dict[str, Callable[[Path], object]] = {
    "metrics.csv": metrics_of,
    "TensorBoard's points": points_of,
    "all tensors": tensor_bytes,
}
"""Records that two equal runs share, with the functions that load them."""


def check_kills(scale: Scale, folder: Path) -> Iterator[Row]:
    """Check that runs killed again and again end exactly as uninterrupted ones.

    Args:
        scale: Size of the tests.
        folder: A temporary folder.
    """
    for run in scale.killed_runs:
        name = re.sub(r"\W+", "-", run)
        whole = folder / f"{name}-whole"
        cut = folder / f"{name}-cut"
        options = [*run.split(), *SMALL, f"runs_dir={folder}", "total_timesteps=30_720"]
        options += ["device=cpu", "precision=fp32", "checkpoint_every=1_024"]
        options += ["evaluation.every=4_096", "evaluation.episodes=8"]
        if "ppo" in run:
            options += ["agent.batch_size=64", "agent.n_epochs=2"]

        # beside the killed one, on another core
        uninterrupted = start([*options, f"name={whole.name}"], OMP_NUM_THREADS="1")
        rng = random.Random(run)
        moments = []
        for _ in range(scale.kills):
            process = start([*options, f"name={cut.name}"], OMP_NUM_THREADS="1")
            moments.append(kill(process, cut / "checkpoints", rng))
        start([*options, f"name={cut.name}"], OMP_NUM_THREADS="1").communicate()
        output, _ = uninterrupted.communicate()
        assert output

        counts = []
        for moment in dict.fromkeys(moments):
            counts.append(f"{moments.count(moment)} {moment}")
        all_equal = True
        verdicts = []
        for record, load in RECORDS.items():
            is_equal = load(cut) == load(whole)
            verdicts.append(f"{record} {'equal' if is_equal else 'DIFFER'}")
            all_equal = all_equal and is_equal
        yield Row(
            f"exact resume: {run}",
            f"{scale.kills} SIGKILLs ({', '.join(counts)})",
            ", ".join(verdicts),
            all_equal,
        )


# --------------------------------------------------------------------- configurations and fuzzing


def check_configurations(scale: Scale, folder: Path) -> Iterator[Row]:
    """Check that random command lines give a configuration or ``ConfigError``.

    Args:
        scale: Size of the tests.
        folder: Unused.
    """
    n_valid = 0
    n_rejected = 0

    @settings(max_examples=scale.configurations, deadline=None, database=None)
    @given(st.lists(TRAIN_WORDS, max_size=4))
    def compose(options: list[str]) -> None:
        nonlocal n_valid, n_rejected
        try:
            compose_train(options)
            n_valid += 1
        except ConfigError:
            n_rejected += 1

    failure = "no traceback"
    holds = True
    try:
        compose()
    except Exception as error:  # any other error is a failure to report
        failure = f"a traceback; {type(error).__name__}: {error}"
        holds = False
    yield Row(
        "invalid input gives one clear error",
        f"{n_valid + n_rejected:,} generated command lines",
        f"{n_valid:,} valid, {n_rejected:,} rejected, {failure}",
        holds and n_valid + n_rejected >= scale.configurations,
    )


def check_fuzzing(scale: Scale, folder: Path) -> Iterator[Row]:
    """Check that reading damaged run directories succeeds or raises ``ConfigError``.

    Args:
        scale: Size of the tests.
        folder: A temporary folder.
    """
    script = Path(__file__).with_name("fuzz_reader.py")
    run_dir = ROOT / "tests" / "golden" / "schema_1"
    command = [sys.executable, str(script), str(run_dir), f"-max_total_time={scale.fuzz_seconds}"]
    # atheris ends the process without cleaning up: let it write where this process will
    environment = {**os.environ, "TMPDIR": str(folder)}
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    output = finished.stderr
    runs = re.search(r"Done (\d+) runs", output)
    errors = re.findall(r"Uncaught Python exception.*\n.*|ERROR: .*", output)
    test = "fuzzing stopped early"
    if runs:
        test = f"{int(runs[1]):,} inputs in {scale.fuzz_seconds} s, coverage-guided"
    if runs and not errors:
        edges = re.findall(r"cov: (\d+)", output)[-1]
        result = f"no error, {edges} edges reached"
    else:
        result = "; ".join(errors) or output[-300:]
    holds = bool(runs) and not errors and finished.returncode == 0
    yield Row("damaged and hostile files are rejected", test, result, holds)


# ------------------------------------------------------------------------------------------- soak


class Sample(NamedTuple):
    """The memory and the open files of a process at one moment."""

    seconds: float
    rss_bytes: int
    descriptors: int


def sample(process: subprocess.Popen[str], seconds: float) -> list[Sample]:
    """Sample a process every half second.

    Args:
        process: The process.
        seconds: For how long, unless it ends before.
    """
    samples = []
    proc = Path(f"/proc/{process.pid}")
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < seconds and process.poll() is None:
        pages = int((proc / "statm").read_text(encoding="utf-8").split()[1])
        samples.append(Sample(now, pages * PAGE_SIZE, len(entry_names(proc / "fd"))))
        time.sleep(0.5)
    return samples


def check_soak(scale: Scale, folder: Path) -> Iterator[Row]:
    """Train for long, kill the run at random for a fifth of the time, then sample it.

    Args:
        scale: Size of the tests.
        folder: A temporary folder.
    """
    begin = time.monotonic()
    per_minute = 20_000
    if scale is FULL:
        per_minute = 200_000
    options = [f"runs_dir={folder}", "name=soak", "total_timesteps=1_000_000_000"]
    options += [f"checkpoint_every={per_minute}"]

    rng = random.Random(0)
    n_kills = 0
    while time.monotonic() - begin < scale.soak_seconds / 5:
        process = start(options)
        time.sleep(rng.uniform(scale.soak_seconds / 120, scale.soak_seconds / 15))
        process.kill()
        process.wait()
        n_kills += 1
    process = start(options, **KEEP_FREED)
    samples = sample(process, scale.soak_seconds - (time.monotonic() - begin))
    process.send_signal(signal.SIGTERM)
    process.communicate()

    # the first third warms up: caches fill, buffers reach their size
    warm = [each for each in samples if each.seconds > samples[-1].seconds / 3]
    watched = f"{warm[-1].seconds - warm[0].seconds:.0f} s after a warm-up"
    yield descriptor_row(warm, watched)

    with (folder / "soak" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    iterations = [row for row in rows if row.get(SPEED)]
    timesteps = [int(row["time/total_timesteps"]) for row in iterations]
    n_wrong = int((np.diff(timesteps) != timesteps[0]).sum())
    yield Row(
        "no timestep is lost or repeated",
        f"{n_kills} kills, {timesteps[-1]:,} timesteps",
        f"{n_wrong} lost or repeated",
        n_wrong == 0,
    )
    # a short run says nothing about the memory and the cost of checkpoints
    if scale is FULL:
        yield memory_row(warm, watched)
        training_seconds = sum(timesteps[0] / float(row[SPEED]) for row in iterations)
        yield checkpoint_row(rows, training_seconds)


def descriptor_row(samples: list[Sample], watched: str) -> Row:
    """Return the row about open files.

    Args:
        samples: The samples after the warm-up.
        watched: Over which time, as text.
    """
    low = min(each.descriptors for each in samples)
    high = max(each.descriptors for each in samples)
    return Row("no file stays open", watched, f"{low} – {high} descriptors", high - low < 4)


def memory_row(samples: list[Sample], watched: str) -> Row:
    """Return the row about memory leaks.

    Args:
        samples: The samples after the warm-up.
        watched: Over which time, as text.
    """
    seconds = np.array([each.seconds for each in samples])
    rss = np.array([each.rss_bytes for each in samples])
    # the median of all pairwise slopes is robust to a few outliers
    growth = theilslopes(rss, seconds).slope * 3600 / rss.mean()
    return Row("no memory leak", watched, f"{growth:+.2%} per hour", bool(growth < 0.01))


def checkpoint_row(rows: list[dict[str, str]], training_seconds: float) -> Row:
    """Return the row about the cost of checkpoints.

    Args:
        rows: The rows of ``metrics.csv``.
        training_seconds: The seconds of all iterations without their checkpoints.
    """
    logged = [row for row in rows if row.get(CHECKPOINT_SECONDS)]
    seconds = sum(float(row[CHECKPOINT_SECONDS]) for row in logged)
    share = seconds / (seconds + training_seconds)
    return Row(
        "checkpoints cost little",
        "one a minute",
        f"{share:.2%} of the time",
        0 < share < 0.01,
    )


# ------------------------------------------------------------------------------------ the command

PARTS: dict[str, Callable[[Scale, Path], Iterator[Row]]] = {
    "kills": check_kills,
    "configurations": check_configurations,
    "fuzzing": check_fuzzing,
    "soak": check_soak,
}


def load_rows() -> dict[str, Row]:
    """Return the rows of the existing results file, by guarantee."""
    path = RESULTS / "reliability.json"
    if not path.exists():
        return {}
    measurements = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    return {row["guarantee"]: Row(**row) for row in measurements}


def write_rows(rows: dict[str, Row]) -> None:
    """Write the results file.

    Args:
        rows: The rows, by guarantee.
    """
    columns = ["guarantee", "test", "result"]
    table = [[row.guarantee, row.test, row.result] for row in rows.values()]
    measurements = [row._asdict() for row in rows.values()]
    write_results("reliability", columns, table, measurements)


def main() -> int:
    """Test all parts, or those that the command line names.

    Returns:
        The exit code: 1 if a guarantee does not hold, else 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument(
        "--quick", action="store_true", help="a few minutes instead of an hour; writes nothing"
    )
    arguments = parser.parse_args()
    scale = FULL
    rows: dict[str, Row] = {}
    if arguments.quick:
        scale = QUICK
    elif arguments.parts:
        rows = load_rows()
    # TensorBoard's reader warns about every restart of a run
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or PARTS:
            for row in PARTS[part](scale, Path(folder)):
                rows[row.guarantee] = row
                verdict = "holds" if row.holds else "FAILS"
                line = f"{verdict}: {row.guarantee}: {row.test}: {row.result}"
                print(line, flush=True)  # noqa: T201
                if not arguments.quick:
                    write_rows(rows)
    if all(row.holds for row in rows.values()):
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
