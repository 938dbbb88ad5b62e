"""Test the guarantees of ``docs/reliability.md`` on real processes.

    python benchmarks/reliability.py            # under an hour on two cores
    python benchmarks/reliability.py --quick    # the same parts in a few minutes
    python benchmarks/reliability.py soak       # only one part

The parts are: killed runs, random command lines, fuzzed run directories, faults of the machine
(``fault_list.py``) and a long run (``soak.py``). Each part writes its rows to
``benchmarks/results/reliability.json`` (``--quick`` writes nothing). The exit code is 1 if a
guarantee does not hold. Run the long part on an otherwise idle machine: next to other processes,
torch's threads wait for each other, and it trains too little to show anything.
"""

import argparse
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_list import check_faults
from guarantees import FULL, QUICK, SMALL, Row, Scale, entry_names, start
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import RESULTS, ROOT, write_results
from soak import check_soak

sys.path.insert(0, str(ROOT / "tests"))

from command_words import TRAIN_WORDS
from run_records import metrics_of, points_of, tensors_of

from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError

# ------------------------------------------------------------------------------------------ kills


def is_writing(checkpoints: Path) -> bool:
    """Return True if a checkpoint is being written; it has a temporary name until it is complete.

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
        rng: Random generator for the moments.

    Returns:
        The moment of the kill: ``writing``, ``between`` or ``finished before``.
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
"""Records that are equal in two equal runs, with the functions that load them."""


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

        # at the same time as the killed one, on another core
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
    # atheris ends the process without cleaning up, so let it write where this process cleans up
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


# ------------------------------------------------------------------------------------ the command

PARTS: dict[str, Callable[[Scale, Path], Iterator[Row]]] = {
    "kills": check_kills,
    "configurations": check_configurations,
    "fuzzing": check_fuzzing,
    "faults": check_faults,
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
