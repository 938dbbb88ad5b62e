"""One throughput measurement in a fresh process, and the summary of several."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import ROOT
from peers import run as run_peer

PEERS = ("cleanrl", "sample-factory", "torch-ac", "navix")
"""Agents of other projects; see ``peers``."""


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
        environment: Environment variables of the process; by default, those of this process.

    Returns:
        The measurement, as printed by ``contenders.py`` or by the driver of the peer.
    """
    if contender[0] in PEERS:
        return run_peer(contender[0], seconds, *contender[1:])
    script = tree / "benchmarks" / "contenders.py"
    command = [sys.executable, str(script), *contender, "--seconds", str(seconds)]
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    # the libraries may print other lines before the result
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def spread(values: list[float], digits: int = 0) -> str:
    """Return the text ``median (min – max)``, or the value if there is only one.

    Args:
        values: The values to summarize.
        digits: Number of decimals.
    """
    low = min(values)
    middle = statistics.median(values)
    high = max(values)
    if len(values) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"
