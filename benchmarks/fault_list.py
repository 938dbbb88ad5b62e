"""Faults that must cause a one-line error and no other damage: a part of ``reliability.py``.

A run is resumed on a full disk, on a read-only file system and in another user's directory, then
again without the fault; Ctrl-C arrives while a run imports its modules; config.yaml contains odd
scalars. The disks are in-memory file systems, which an unprivileged user may mount in a separate
namespace if the system allows it; otherwise the row says why the fault is skipped.
"""

import hashlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from guarantees import SMALL, Row, Scale, start
from machine import ROOT

from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.errors import ConfigError

OPTIONS = [
    *SMALL,
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "backend=gymnasium",
    "device=cpu",
    "videos=false",
    "total_timesteps=8_192",
    "checkpoint_every=1_024",
    "evaluation.every=8_192",
    "evaluation.episodes=8",
    "evaluation.test_episodes=1",
]
"""Options of a run of half a minute, with worker processes."""
LONG = 110
"""Length of a path that is too long for a socket."""
OTHER_USER = 12_345
"""User id without any processes on this machine."""
IN_MEMORY = """
mount -t tmpfs -o size=16m tmpfs {disk} && cp -a {run} {disk}/run && {fault}
"$@"
code=$?
{mend}
cp -a {disk}/run {after}
exit $code
"""
"""Script that runs a command with a run directory on a separate disk, and copies it back."""
DISKS = {
    # a file that fills the remaining space, to the last byte
    "full disk": ("dd if=/dev/zero of={disk}/rest bs=4k 2>/dev/null", "rm {disk}/rest"),
    "read-only file system": ("mount -o remount,ro {disk}", ""),
}
"""Commands that cause and remove a fault; both may fail, as dd does when the disk is full."""
SCALARS = [
    "9" * 5000,
    f"0x{'f' * 5000}",
    "2024-02-30",
    "2024-01-01T99:99:99Z",
    "!!int none",
    "!!bool perhaps",
    "!!float x",
    "!!binary Ä",
    "!!python/name:os.mkdir ''",
    "!own tag",
    "1e999",
    ".nan",
    '"\\e[31m\\a\\0"',
    '"[red]x[/red]"',
    "[[]]",
    "{}",
    "~",
]
"""Values that YAML cannot read, or that no option accepts."""
TICKS = os.sysconf("SC_CLK_TCK")


class SkippedError(Exception):
    """A fault that cannot be simulated here; the message says why."""


def check_faults(scale: Scale, folder: Path) -> Iterator[Row]:
    """Check each fault.

    Args:
        scale: Size of the tests.
        folder: A temporary folder.
    """
    yield check_scalars(scale)
    yield check_interrupts(scale, folder)
    if not scale.faults:
        return
    long = folder / ("x" * (LONG - len(str(folder)) - 1))
    long.mkdir()
    stopped = folder / "stopped"
    problem = stop_early(stopped, TMPDIR=str(long))
    yield row("a long path of temporary files", f"TMPDIR of {len(str(long))} characters", problem)
    for fault in scale.faults:
        test = "resumed with the fault, then without"
        try:
            problem = resume_with(fault, stopped, folder / re.sub(r"\W+", "-", fault))
        except SkippedError as reason:
            yield Row(f"a fault is one line: {fault}", "none", f"skipped: {reason}", True)
            continue
        yield row(f"a fault is one line: {fault}", test, problem)


def row(guarantee: str, test: str, problem: str) -> Row:
    """Return a row whose guarantee holds if there is no problem.

    Args:
        guarantee: What is guaranteed.
        test: How it was tested.
        problem: What went wrong; empty if nothing did.
    """
    return Row(guarantee, test, problem or "one line, nothing lost", not problem)


# --------------------------------------------------------------------------------------- the disk


def train(run_dir: Path, prefix: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Train the run of a directory to its end, or to an error.

    Args:
        run_dir: The run directory.
        prefix: A command that runs another one.
        **variables: Environment variables to add.
    """
    where = [f"runs_dir={run_dir.parent}", f"name={run_dir.name}", "progress=false"]
    command = [*prefix, sys.executable, str(ROOT / "train.py"), *OPTIONS, *where]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def stop_early(run_dir: Path, **variables: str) -> str:
    """Train until the first checkpoint and stop the run; return any problem as text.

    Args:
        run_dir: The new run directory.
        **variables: Environment variables to add.
    """
    options = [*OPTIONS, f"runs_dir={run_dir.parent}", f"name={run_dir.name}"]
    process = start(options, **variables)
    while process.poll() is None and not (run_dir / "checkpoints" / "index.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    if process.returncode != 130:
        return f"exit code {process.returncode} in place of 130"
    return ""


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder.

    Args:
        folder: The folder.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def resume_with(fault: str, stopped: Path, folder: Path) -> str:
    """Resume a copy of a run with a fault and then without; return any problem as text.

    Args:
        fault: The fault.
        stopped: The run directory.
        folder: A folder to create.
    """
    folder.mkdir()
    after = folder / "run"
    if fault in DISKS:
        disk = folder / "disk"
        disk.mkdir()
        failed = train(disk / "run", on_disk(fault, disk, stopped, after))
    else:
        shutil.copytree(stopped, after)
        failed = train_elsewhere(after)
    if failed.returncode != 1 or failed.stderr.count("\n") != 1 or failed.stdout:
        return f"exit code {failed.returncode} and {failed.stdout}{failed.stderr[-300:]}"
    if hashes(after) != hashes(stopped):
        return "files have changed"
    resumed = train(after, [])
    if resumed.returncode != 0 or "Resuming at" not in resumed.stdout:
        return f"the same command did not resume: {resumed.stdout}{resumed.stderr[-300:]}"
    return ""


def on_disk(fault: str, disk: Path, run_dir: Path, after: Path) -> list[str]:
    """Return a command that runs another one with a run directory on a faulty disk.

    Args:
        fault: The fault.
        disk: The folder where the disk is mounted.
        run_dir: The run directory, which is copied onto the disk.
        after: The folder that the run directory is copied to in the end.

    Raises:
        SkippedError: This user may not mount file systems here.
    """
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    try:
        mount = [*namespace, f"mount -t tmpfs tmpfs {shlex.quote(str(disk))}"]
        tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError:
        raise SkippedError("there is no command unshare") from None
    if tried.returncode != 0:
        raise SkippedError(tried.stderr.strip())
    quoted = {"disk": disk, "run": run_dir, "after": after}
    texts = {name: shlex.quote(str(path)) for name, path in quoted.items()}
    make, mend = (text.format_map(texts) for text in DISKS[fault])
    return [*namespace, IN_MEMORY.format(**texts, fault=make, mend=mend), "sh"]


def train_elsewhere(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Train in a directory that another user owns; restore the owner afterwards.

    Root uses a namespace without that user; any other user removes their own write permission.

    Args:
        run_dir: The run directory.

    Raises:
        SkippedError: Root may not create a namespace here.
    """
    paths = [run_dir, *run_dir.rglob("*")]
    user = os.getuid()
    if user == 0:
        if subprocess.run(["unshare", "--map-root-user", "true"], check=False).returncode != 0:
            raise SkippedError("everything is allowed to root")
        for path in paths:
            os.chown(path, OTHER_USER, OTHER_USER)
        finished = train(run_dir, ["unshare", "--map-root-user"])
        for path in paths:
            os.chown(path, 0, 0)
        return finished
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    finished = train(run_dir, [])
    for path, mode in modes.items():
        path.chmod(mode)
    return finished


# ----------------------------------------------------------------------------------------- Ctrl-C


def check_interrupts(scale: Scale, folder: Path) -> Row:
    """Check that Ctrl-C during the imports ends a command in one line.

    Args:
        scale: Size of the tests.
        folder: A temporary folder.
    """
    rng = random.Random(0)
    problems = []
    # the child processes would inherit an ignored SIGINT if a shell runs this in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(scale.interrupts):
        # CPU time, so that the moments are the same on a busy machine; Python has started by then
        moment = rng.uniform(0.1, 2.0)
        options = [f"runs_dir={folder / 'none'}", "progress=false"]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and cpu_seconds(process) < moment:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        if (process.returncode, out, err) != (130, "", "stopped\n"):
            problems.append(f"at {moment:.2f} s: {process.returncode} {out}{err[-300:]}")
    if (folder / "none").exists():
        problems.append("something was written")
    test = f"{scale.interrupts} SIGINTs in the first two seconds"
    return row("Ctrl-C during the imports is one line", test, "; ".join(problems))


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Return the CPU time of a process that has not been waited for.

    Args:
        process: The process.
    """
    # the name of the command is in parentheses and may contain spaces
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / TICKS


# ---------------------------------------------------------------------------------------- scalars


def check_scalars(scale: Scale) -> Row:
    """Check that odd scalars in config.yaml are read or rejected in one line.

    Args:
        scale: Size of the tests.
    """
    source = ROOT / "tests" / "golden" / "schema_1" / "config.yaml"
    lines = source.read_text(encoding="utf-8").splitlines()
    with_values = [number for number, line in enumerate(lines) if re.search(r"(: |- )\S", line)]
    rng = random.Random(0)
    problems = []
    for _ in range(scale.scalars):
        number = rng.choice(with_values)
        scalar = rng.choice(SCALARS)
        before = re.match(r".*?(: |- )(?=\S)", lines[number])
        assert before is not None
        changed = before[0] + scalar
        problem = read_config([*lines[:number], changed, *lines[number + 1 :]])
        if problem:
            problems.append(f"{changed[:80]!r}: {problem}")
    test = f"{scale.scalars:,} values of config.yaml replaced"
    shown = "; ".join(problems[:3])
    return row("an odd scalar is one line", test, shown)


def read_config(lines: list[str]) -> str:
    """Read a run directory that holds a config.yaml; return any problem as text.

    Args:
        lines: The lines of the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(lines)
        (Path(folder) / "config.yaml").write_text(text, encoding="utf-8")
        try:
            RunDirectory.open(Path(folder))
        except ConfigError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                return f"a message of {len(str(error))} characters: {str(error)[:300]}"
        except Exception as error:  # any other error is a failure to report
            return f"a traceback; {type(error).__name__}: {error}"
    return ""
