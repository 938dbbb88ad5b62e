"""Measure the throughput of training, end to end.

    python benchmarks/throughput.py tutorial [--rounds 5] [--seconds 8] [--peers cleanrl navix …]
    python benchmarks/throughput.py missions --against WORKTREE [--rounds 5]

Every contender of a workload runs once per round, each in a fresh process. Within a workload, task,
hyperparameters and network are the same for all (``contenders.py``). A speedup is the ratio within
one round; the table gives the median with minimum and maximum. Peers are installed and measured
only if ``--peers`` names them. Run it on an otherwise idle machine. After each round, the results
are written to ``benchmarks/results/throughput_WORKLOAD.json``.

With ``--against``, the last contender of the workload is measured in this source tree (new) and in
another one (old), for example a ``git worktree`` of an earlier commit. The two take turns, and
alternate which goes first. The results are written to
``benchmarks/results/against_WORKLOAD.json``.
"""

import argparse
from pathlib import Path
from typing import Any

from machine import write_results
from measurement import PEERS, run, spread
from source_trees import compare_trees

WORKLOADS: dict[str, tuple[str, ...]] = {
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
    "missions": (
        "task=goto_local fusion=concat",
        "task=goto_local fusion=bilinear",
        "task=goto_local precision=fp32",
        "task=goto_local agent=a2c",
        "task=goto_local",
    ),
    "her": (
        "sb3_her",
        "task=fetch_reach fusion=bilinear agent.learning_starts=100",
        "task=fetch_reach fusion=concat agent.learning_starts=100",
        "task=fetch_reach agent.learning_starts=100",
    ),
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
}
"""The contenders of each workload, by name or options; the last one, always MIRL's, is the
reference for speedups."""


def table(results: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table, one row per contender.

    Args:
        results: The measurements of each contender, one per round; the last one is the reference.
    """
    reference_name = list(results)[-1]
    reference = results[reference_name]
    has_shares = any(measured[-1].get("percent") for measured in results.values())
    columns = ["contender", "steps/s", f"speedup of {reference_name}"]
    if has_shares:
        columns.append("environment / forward / update / rest, %")
    columns += ["rollout, MiB", "peak memory, MiB"]

    rows = []
    for name, measured in results.items():
        speeds = [result["steps_per_second"] for result in measured]
        speedups = []
        for speed, result in zip(speeds, reference, strict=True):
            speedups.append(result["steps_per_second"] / speed)
        last = measured[-1]
        row = [name, spread(speeds), spread(speedups, 2)]
        if has_shares:
            row.append(_shares(last))
        row.append(_mebibytes(last.get("rollout_bytes"), digits=1))
        row.append(_mebibytes(last.get("peak_rss_bytes"), digits=0))
        rows.append(row)
    return columns, rows


def _shares(result: dict[str, Any]) -> str:
    # SB3's agents and the peers do not report the shares of an iteration
    if not result.get("percent"):
        return "–"
    return " / ".join(f"{share:.0f}" for share in result["percent"].values())


def _mebibytes(n_bytes: int | None, digits: int) -> str:
    if not n_bytes:
        return "–"
    return f"{n_bytes / 2**20:,.{digits}f}"


def main() -> None:
    """Measure the workload that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="per measurement")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=())
    parser.add_argument(
        "--against", type=Path, metavar="WORKTREE", help="compare this source tree with another"
    )
    arguments = parser.parse_args()

    contenders = []
    for name in WORKLOADS[arguments.workload]:
        if name not in PEERS or name in arguments.peers:
            contenders.append(name)

    if arguments.against is not None:
        compare_trees(
            arguments.workload,
            contenders[-1],
            arguments.against,
            arguments.rounds,
            arguments.seconds,
        )
        return

    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name in contenders:
            result = run(name.split(), arguments.seconds)
            results[name].append(result)
            speed = result["steps_per_second"]
            print(f"{name:<30}{speed:>10,.0f} steps/s", flush=True)  # noqa: T201
        write_results(f"throughput_{arguments.workload}", *table(results), results)


if __name__ == "__main__":
    main()
