"""Results files of the benchmarks, with a table, its measurements, the command and the machine."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mirl.agents.comparison.machine import command_line, machine

ROOT = Path(__file__).parent.parent
"""Root folder of the repository."""

RESULTS = ROOT / "benchmarks" / "results"
"""Folder of the results files."""

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of ``ru_maxrss``: macOS reports bytes, Linux kibibytes."""


def write_results(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    measurements: object,
) -> None:
    """Write ``results/NAME.json``; ``tables.py`` copies its table into the documents.

    Args:
        name: The name of the results file.
        columns: The header of the table.
        rows: The cells of the table, one list per row.
        measurements: The raw measurements behind the table, as JSON values.
    """
    report = {
        "command": command_line(),
        "machine": machine(),
        "columns": columns,
        "rows": rows,
        "measurements": measurements,
    }
    text = json.dumps(report, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
