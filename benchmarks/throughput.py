"""Time training end to end, alternating: every contender once per round, each in a process of its own.

    python benchmarks/throughput.py tutorial [--rounds 5] [--seconds 8] [--peers cleanrl navix …]

``--against WORKTREE`` compares two source trees instead: this one and, say, a ``git worktree`` of an older commit.
Each round times the last contender of the family once per tree, in turn, and the trees alternate in going first.

    python benchmarks/throughput.py missions --against ../main [--rounds 5] [--seconds 8] [--json FILE]

Within a family all have the same task, hyperparameters and network (``contenders.py``); ratios are those of one round,
given as their median with the smallest and the largest. Peers are optional: ``--peers`` names those to install and run.
Run it while the machine does nothing else. Results are written after each round, to ``benchmarks/results/NAME.json``.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from machine import machine, write_results
from peers import run as run_peer

ROOT = Path(__file__).parent.parent
FAMILIES: dict[str, tuple[str, ...]] = {
    # the last one is what the others are compared with
    "tutorial": (
        "sb3_dummy",
        "sb3_subproc",
        "sb3_envpool",
        "cleanrl",
        "sample-factory",
        "torch-ac",
        "mirl_fp32",
        "mirl",
    ),
    "small": ("navix", "sb3_envpool_small", "mirl_small"),
    "compiled": ("mirl_compiled", "mirl"),
    "a2c": ("sb3_envpool_a2c", "mirl_a2c"),
    "missions": ("goto_local_concat", "goto_local_bilinear_fp32", "goto_local_bilinear_a2c", "goto_local_bilinear"),
    "memory": ("missions_sb3", "missions_mirl"),
    "recurrent": (
        "contrib_lstm_python",
        "contrib_lstm_envpool",
        "mirl_gru",
        "mirl_mi_lstm",
        "mirl_fast_weights",
        "mirl_attention",
        "mirl_lstm",
    ),
    "split": ("mirl_small", "goto_local_bilinear", "mirl_fp32", "mirl"),
}
PEERS = ("cleanrl", "sample-factory", "torch-ac", "navix")


def run(
    contender: list[str],
    seconds: float,
    tree: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Measure a contender once, in a fresh process.

    Args:
        contender: The name of a contender or a peer, or options of ``train.py``.
        seconds: How long to train after the warm-up.
        tree: The source tree whose ``benchmarks/contenders.py`` runs.
        environment: Environment variables of the process; those of this process by default.

    Returns:
        The measurement, as ``Clock.result`` or the driver of the peer reports it.
    """
    if contender[0] in PEERS:
        return run_peer(contender[0], seconds, *contender[1:])
    script = str(tree / "benchmarks" / "contenders.py")
    command = [sys.executable, script, *contender, "--seconds", str(seconds)]
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


@contextmanager
def importable(tree: Path) -> Iterator[dict[str, str]]:
    """Make ``import mirl`` import a source tree.

    The root of a tree is the package itself, whatever the folder is called, so a temporary folder
    with a symbolic link ``mirl`` to the tree goes first on ``PYTHONPATH``.

    Args:
        tree: The root of the source tree.

    Yields:
        The environment variables for processes that import the tree.

    Raises:
        ValueError: If the tree has no ``benchmarks/contenders.py``, or another ``mirl`` is imported.
    """
    tree = tree.resolve()
    if not (tree / "benchmarks" / "contenders.py").is_file():
        raise ValueError(f"expected a source tree with benchmarks/contenders.py, got {tree}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mirl").symlink_to(tree)
        search_path = [folder]
        if "PYTHONPATH" in os.environ:
            search_path.append(os.environ["PYTHONPATH"])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}

        # An installed mirl must not shadow the tree: both trees would run the same code.
        command = [sys.executable, "-c", "import mirl; print(mirl.__path__[0])"]
        finished = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        imported = Path(finished.stdout.strip()).resolve()
        if imported != tree:
            raise ValueError(f"expected mirl to be imported from {tree}, got {imported}")
        yield environment


def compare_trees(
    contender: str, trees: dict[str, Path], rounds: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """Measure one contender of several source trees in turn.

    The order is reversed in every other round, so that no tree always runs on the warmer machine.

    Args:
        contender: The name of a contender that every tree has.
        trees: The root of each source tree, by its label.
        rounds: Number of measurements of each tree.
        seconds: How long each measurement trains after the warm-up.

    Returns:
        The measurements of each tree, one per round.
    """
    results: dict[str, list[dict[str, Any]]] = {label: [] for label in trees}
    with ExitStack() as stack:
        environments = {
            label: stack.enter_context(importable(tree)) for label, tree in trees.items()
        }
        for number in range(rounds):
            labels = list(trees)
            if number % 2 == 1:
                labels.reverse()
            for label in labels:
                result = run([contender], seconds, trees[label], environments[label])
                results[label].append(result)
                speed = result["steps_per_second"]
                print(f"round {number + 1} {label:<4}{speed:>10,.0f} steps/s", flush=True)  # noqa: T201
    return results


def commit_of(tree: Path) -> str:
    """Return the commit of a source tree, marked ``-dirty`` if files differ from it."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    return finished.stdout.strip() or "unknown"


def report_against(contender: str, other: Path, arguments: argparse.Namespace) -> None:
    """Compare this tree (new) with another one (old), print the ratio and write the JSON file.

    Args:
        contender: The name of the contender to measure.
        other: The root of the other source tree.
        arguments: The command line: ``rounds``, ``seconds`` and ``json``.
    """
    trees = {"new": ROOT.resolve(), "old": other.resolve()}
    results = compare_trees(contender, trees, arguments.rounds, arguments.seconds)
    speeds = {
        label: [result["steps_per_second"] for result in measured]
        for label, measured in results.items()
    }
    ratios = [new / old for new, old in zip(speeds["new"], speeds["old"], strict=True)]
    for label in trees:
        print(f"{label} ({commit_of(trees[label])}): {spread(speeds[label])} steps/s")  # noqa: T201
    print(f"{contender}, new / old: {spread(ratios, 3)}")  # noqa: T201
    if arguments.json is not None:
        report = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": machine(),
            "contender": contender,
            "commits": {label: commit_of(tree) for label, tree in trees.items()},
            "ratio": {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            },
            "ratios": ratios,
            "measurements": results,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def spread(values: list[float], digits: int = 0) -> str:
    """``median (smallest – largest)``."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def table(results: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Columns and a row per contender; the last one is what the others are compared with."""
    name_of_reference, reference = list(results.items())[-1]
    split = any(measured[-1].get("percent") for measured in results.values())
    columns = ["contender", "steps/s", f"{name_of_reference} is faster by"]
    columns += ["environment / forward / update / rest, %"] * split + ["rollout, MiB", "peak memory, MiB"]
    rows = []
    for name, measured in results.items():
        ratios = [
            ours["steps_per_second"] / its["steps_per_second"] for ours, its in zip(reference, measured, strict=True)
        ]
        last = measured[-1]
        shares = " / ".join(f"{share:.0f}" for share in (last.get("percent") or {}).values()) or "–"
        rollout, memory = (last.get(key) for key in ("rollout_bytes", "peak_rss_bytes"))
        rows.append(
            [
                name,
                spread([result["steps_per_second"] for result in measured]),
                spread(ratios, 2),
                *([shares] if split else []),
                f"{rollout / 2**20:.1f}" if rollout else "–",
                f"{memory / 2**20:,.0f}" if memory else "–",
            ]
        )
    return columns, rows


def main() -> None:
    """Measure a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=())
    parser.add_argument(
        "--against", type=Path, metavar="WORKTREE", help="time this source tree against another one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --against: write the results")
    arguments = parser.parse_args()
    if arguments.against is not None:
        report_against(FAMILIES[arguments.family][-1], arguments.against, arguments)
        return
    contenders = [name for name in FAMILIES[arguments.family] if name not in PEERS or name in arguments.peers]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name in contenders:
            results[name].append(run([name], arguments.seconds))
            print(f"{name:<26}{results[name][-1]['steps_per_second']:>10,.0f} steps/s", flush=True)  # noqa: T201
        write_results(f"throughput_{arguments.family}", *table(results), results)


if __name__ == "__main__":
    main()
