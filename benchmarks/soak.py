"""Train for a long time and watch memory and open files: a part of ``reliability.py``."""

import csv
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from guarantees import FULL, Row, Scale, entry_names, start
from scipy.stats import theilslopes

from mirl.agents.runs.metric_names import CHECKPOINT_SECONDS, SPEED

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_ARENA_MAX": "1",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
}
"""Environment variables that keep glibc from returning freed memory to the operating system.

Otherwise it sometimes returns tens of megabytes, mostly when protobuf (used by TensorBoard)
requests memory, and takes them back within two minutes. That hides a leak or looks like one.
"""


class Sample(NamedTuple):
    """The memory and the open files of a process at one moment."""

    seconds: float
    rss_bytes: int
    descriptors: int


def sample(process: subprocess.Popen[str], seconds: float) -> list[Sample]:
    """Sample a process every half second.

    Args:
        process: The process.
        seconds: Duration, unless the process ends earlier.
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
    """Train for a long time, kill the run at random for a fifth of the time, then sample it.

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
    # a short run is not informative about the memory and the cost of checkpoints
    if scale is FULL:
        yield memory_row(warm, watched)
        training_seconds = sum(timesteps[0] / float(row[SPEED]) for row in iterations)
        yield checkpoint_row(rows, training_seconds)


def descriptor_row(samples: list[Sample], watched: str) -> Row:
    """Return the row about open files.

    Args:
        samples: The samples after the warm-up.
        watched: The time that the samples cover, as text.
    """
    low = min(each.descriptors for each in samples)
    high = max(each.descriptors for each in samples)
    return Row("no file stays open", watched, f"{low} – {high} descriptors", high - low < 4)


def memory_row(samples: list[Sample], watched: str) -> Row:
    """Return the row about memory leaks.

    Args:
        samples: The samples after the warm-up.
        watched: The time that the samples cover, as text.
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
