"""Write the tables of the documents from ``benchmarks/results``: ``python benchmarks/tables.py [--check]``.

A table stands between ``<!-- results: NAME -->`` and ``<!-- end of results -->``; with ``--check`` nothing is written,
and a table that is not what the results say makes the exit code 1.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def success_rows(runs: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and a row per run of ``success.py``."""
    timed = all(run["seconds"] is not None for run in runs)
    columns = ["run", "success on unseen episodes (95 % interval)", "to 95 %", "timesteps", "parameters"]
    rows = []
    for run in runs:
        [task] = run["tasks"]
        low, high = task["success_interval"]
        rows.append(
            [
                " ".join(run["options"]),
                f"{task['success_rate']:.1%} ({low:.1%} – {high:.1%}) of {task['episodes']:,}",
                "not reached" if run["steps_to_95"] is None else f"{run['steps_to_95']:,}",
                f"{run['timesteps']:,}",
                f"{run['parameters']:,}",
                *([f"{run['seconds']} s"] if timed else []),
            ]
        )
    return [*columns, *(["time"] if timed else [])], rows


def table_of(report: dict[str, Any]) -> str:
    """The table, and under it the command and the machine that it comes from."""
    columns, rows = success_rows(report["runs"]) if "runs" in report else (report["columns"], report["rows"])
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    lines = [head, "|" + "---|" * len(columns), *body]
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    how = ", one run each," if "runs" in report else ""
    lines += [
        "",
        f"`python benchmarks/{report['command']}`{how} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['device']}; Python {machine['python']}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def rendered(document: str) -> str:
    """The document with every table as the results say."""

    def table(match: re.Match[str]) -> str:
        report = json.loads((ROOT / "benchmarks" / "results" / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + table_of(report) + match[3]

    return BLOCK.sub(table, document)


def main() -> int:
    """Write or check all documents; the exit code."""
    stale = []
    for path in DOCUMENTS:
        old = path.read_text(encoding="utf-8")
        new = rendered(old)
        if new != old:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"not what benchmarks/results say: {', '.join(stale)}; run python benchmarks/tables.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
