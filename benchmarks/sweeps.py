"""Kill sweeps, comparisons and a study on each engine, repeat the command, count the results.

    python benchmarks/sweeps.py                   # everything, into results/sweeps.json
    python benchmarks/sweeps.py grid:ray study:local    # some of it, added to the results so far

Each command trains tiny runs. When half of them are finished, all of its processes are killed (for
the study, only one worker); the same command is then repeated to the end. Needs mirl[sweep]; a
local Ray cluster is started and stopped.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from machine import RESULTS, ROOT, write_results

COLUMNS = ("command", "engine", "finished when killed", "finished at the end", "kept", "exit code")
ENGINES = {
    "local": ["engine=local"],
    "slurm": ["engine=slurm", "slurm.cluster=local"],
    "ray": ["engine=ray"],
}
NAMES = {"local": "joblib", "slurm": "submitit, local executor", "ray": "Ray, local cluster"}
TINY = (
    "agent.n_envs=4",
    "agent.n_steps=16",
    "agent.batch_size=32",
    "agent.net_arch=[8]",
    "encoder.features_dim=8",
    "context.dim=4",
    "precision=fp32",
    "evaluation.every=64",
    "evaluation.episodes=4",
    "evaluation.test_episodes=8",
    "evaluation.context_use=false",
    "videos=false",
    "total_timesteps=256",
)
TASKS = "task=corridor_env:ToyCorridor-v0,pole_distractors0"
FUSIONS = "fusion=concat,film,gate"
RANGES = ("agent.learning_rate=tag(log,interval(1e-4,1e-1))", "agent.n_epochs=int(interval(1,4))")
RAY_PORT = 6399


def commands(jobs: int, seeds: int) -> dict[str, list[str]]:
    """Return the command lines, without their engines, by the names of the measurements."""
    listed = ",".join(map(str, range(seeds)))
    train = [str(ROOT / "train.py"), "--multirun"]
    compare = [str(ROOT / "compare.py")]
    both = [TASKS, FUSIONS, *TINY, f"jobs={jobs}"]
    study = ["task=corridor_env:ToyCorridor-v0", *TINY, *RANGES, f"jobs={jobs}", "n_trials=20"]
    return {
        "grid": [*train, *both, f"seed={listed}"],
        "compare": [*compare, *both, f"seeds={seeds}", "out=comparison"],
        "study": [*train, *study],
    }


def environment() -> dict[str, str]:
    """Return the environment variables of the commands."""
    path = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    changes = {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_ADDRESS": f"127.0.0.1:{RAY_PORT}",
        # by default, Ray's processes have a lower priority than all others on the machine
        "RAY_worker_niceness": "0",
    }
    return {**os.environ, **changes}


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Start a Ray cluster on this machine."""
    ray = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        start = [ray, "start", "--head", f"--port={RAY_PORT}", "--num-cpus=2", "--block"]
        options = ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        head = subprocess.Popen(
            [*start, *options],
            env=environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: list(Path(folder).glob("session_latest/sockets/raylet")), head)
            yield
        finally:
            # it has already ended if another cluster uses the port
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGTERM)
            head.wait()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds, or fail if the process ends earlier."""
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.05)


def kill_at_half(command: list[str], folder: Path, half: int) -> dict[Path, int]:
    """Kill a command and its processes when half of the runs are finished; return their records."""
    process = subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True)
    wait_for(lambda: len(list(folder.glob("*/**/records/*.json"))) >= half, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/**/records/*.json")}


def kill_a_worker(command: list[str], folder: Path, half: int) -> int:
    """Kill a worker of a command when half of the trials have ended; return the exit code."""
    process = subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True)
    logs = folder / "sweeps"
    wait_for(lambda: len(list(logs.glob("*/logs/*.txt"))) >= half, process)
    workers: list[int] = []
    while not workers:
        workers = [pid for pid in children(process.pid) if "loky" in arguments(pid)]
        time.sleep(0.05)
    os.kill(workers[-1], signal.SIGKILL)
    return process.wait()


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def arguments(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def measure_kill(name: str, engine: str, jobs: int, seeds: int, folder: Path) -> dict[str, object]:
    """Kill a grid or a comparison halfway, repeat it, and count its runs."""
    command = [sys.executable, *commands(jobs, seeds)[name], *ENGINES[engine]]
    runs = 6 * seeds
    before = kill_at_half(command, folder, half=runs // 2)
    again = subprocess.run(command, cwd=folder, env=environment(), check=False)
    records = list(folder.glob("*/**/records/*.json"))
    kept = [path for path, written in before.items() if path.stat().st_mtime_ns == written]
    return {
        "runs": runs,
        "killed_at": len(before),
        "finished": len(records),
        "kept": len(kept),
        "exit_code": again.returncode,
    }


def measure_study(jobs: int, folder: Path) -> dict[str, object]:
    """Kill a worker of a study, and count the trials at the end of the study."""
    command = [sys.executable, *commands(jobs, seeds=3)["study"]]
    code = kill_a_worker(command, folder, half=10)
    [results] = folder.glob("sweeps/*/results.json")
    trials = json.loads(results.read_text())["runs"]
    states = [trial["state"] for trial in trials]
    return {"trials": len(trials), "states": states, "exit_code": code}


def row(name: str, engine: str, found: dict[str, object]) -> list[str]:
    """Return the cells of a measurement."""
    if name == "study":
        states = found["states"]
        assert isinstance(states, list)
        counts = ", ".join(f"{states.count(each)} {each}" for each in sorted(set(states)))
        ended = f"{found['trials']} of 20 trials: {counts}"
        return ["study", NAMES[engine], "one worker killed", ended, "", str(found["exit_code"])]
    label = {"grid": "train.py --multirun", "compare": "compare.py"}[name]
    cells = [f"{found['killed_at']} of {found['runs']}", f"{found['finished']} of {found['runs']}"]
    kept = f"{found['kept']} of {found['killed_at']}"
    return [label, NAMES[engine], *cells, kept, str(found["exit_code"])]


def main() -> None:
    """Run the requested measurements, and write the results after each of them."""
    everything = [f"{name}:{engine}" for name in ("grid", "compare") for engine in ENGINES]
    everything.append("study:local")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"some of: {' '.join(everything)}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each setting and task")
    options = parser.parse_args()
    unknown = set(options.what) - set(everything)
    if unknown:
        parser.error(f"expected some of {' '.join(everything)}, got {' '.join(sorted(unknown))}")
    path = RESULTS / "sweeps.json"
    found: dict[str, dict[str, object]] = {}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["measurements"]["found"]
    for what in options.what or everything:
        name, _, engine = what.partition(":")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            if name == "study":
                measured = measure_study(options.jobs, Path(folder))
            elif engine == "ray":
                with ray_cluster():
                    measured = measure_kill(name, engine, options.jobs, options.seeds, Path(folder))
            else:
                measured = measure_kill(name, engine, options.jobs, options.seeds, Path(folder))
        found[what] = {**measured, "seconds": round(time.perf_counter() - start)}
        shown = [each for each in everything if each in found]
        rows = [row(*each.split(":"), found[each]) for each in shown]
        versions = {each: version(each) for each in ("joblib", "submitit", "ray", "optuna")}
        write_results("sweeps", COLUMNS, rows, {"found": found, "versions": versions})


if __name__ == "__main__":
    main()
