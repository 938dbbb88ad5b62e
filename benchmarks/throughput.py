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

from machine import write_results
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
    arguments = parser.parse_args()
    contenders = [name for name in FAMILIES[arguments.family] if name not in PEERS or name in arguments.peers]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name in contenders:
            results[name].append(run([name], arguments.seconds))
            print(f"{name:<26}{results[name][-1]['steps_per_second']:>10,.0f} steps/s", flush=True)  # noqa: T201
        write_results(f"throughput_{arguments.family}", *table(results), results)


if __name__ == "__main__":
    main()
