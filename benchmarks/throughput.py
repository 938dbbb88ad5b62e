"""Time training end to end, alternating: every contender once per round, each in a process of its own.

    python benchmarks/throughput.py tutorial [--rounds 5] [--seconds 8] [--peers cleanrl navix …]

Within a family all have the same task, hyperparameters and network (``contenders.py``); ratios are those of one round,
given as their median with the smallest and the largest. Peers are optional: ``--peers`` names those to install and run.
Run it while the machine does nothing else. Results are written after each round, to ``benchmarks/results/NAME.json``.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine
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
}
PEERS = ("cleanrl", "sample-factory", "torch-ac", "navix")


def run(contender: list[str], seconds: float) -> dict[str, Any]:
    """One measurement in a fresh process: of a contender or a peer by its name, or of options of ``train.py``."""
    if contender[0] in PEERS:
        return run_peer(contender[0], seconds, *contender[1:])
    command = [sys.executable, str(ROOT / "benchmarks" / "contenders.py"), *contender, "--seconds", str(seconds)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def spread(values: list[float], digits: int = 0) -> str:
    """``median (smallest – largest)``."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def row(contender: str, results: list[dict[str, Any]], reference: list[dict[str, Any]]) -> list[str]:
    """A line of the table."""
    ratios = [ours["steps_per_second"] / its["steps_per_second"] for ours, its in zip(reference, results, strict=True)]
    percent = results[-1].get("percent") or {}
    split = " / ".join(f"{share:.0f}" for share in percent.values()) or "–"
    memory = results[-1].get("peak_rss_bytes")
    return [
        contender,
        spread([result["steps_per_second"] for result in results]),
        spread(ratios, 2),
        split,
        f"{results[-1]['rollout_bytes'] / 2**20:.1f}" if "rollout_bytes" in results[-1] else "–",
        f"{memory / 2**20:,.0f}" if memory else "–",
    ]


def main() -> None:
    """Measure a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=())
    arguments = parser.parse_args()
    contenders = [name for name in FAMILIES[arguments.family] if name not in PEERS or name in arguments.peers]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name in contenders:
            results[name].append(run([name], arguments.seconds))
            print(f"{name:<26}{results[name][-1]['steps_per_second']:>10,.0f} steps/s", flush=True)  # noqa: T201
        reference = contenders[-1]
        report = {
            "command": " ".join(["throughput.py", *sys.argv[1:]]),
            "machine": machine(),
            "columns": [
                "contender",
                "steps/s",
                f"{reference} is faster by",
                "environment / forward / update / rest, %",
                "rollout, MiB",
                "peak memory, MiB",
            ],
            "rows": [row(name, results[name], results[reference]) for name in contenders],
            "measurements": results,
        }
        path = ROOT / "benchmarks" / "results" / f"throughput_{arguments.family}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
