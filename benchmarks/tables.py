"""Copy the tables of ``benchmarks/results`` into the documents.

    python benchmarks/tables.py            # rewrite the tables
    python benchmarks/tables.py --check    # write nothing; exit code 1 if a table is outdated

A table is placed between ``<!-- results: NAME -->`` and ``<!-- end of results -->``. A comparison
is published by copying the ``results.json`` of ``mirl-compare`` to
``benchmarks/results/NAME.json``.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
INSTALLED = ("mirl-compare", "compare.py")
"""Commands that are not scripts in this folder."""
FORMER_OPTION = " --agent "
"""Option that identifies results of the former ``benchmarks/compare.py``."""
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def table_of(report: dict[str, Any]) -> str:
    """Return the table of a results file as Markdown, with its command and machine below.

    Args:
        report: The content of the results file.
    """
    lines = [_row(report["columns"]), "|" + "---|" * len(report["columns"])]
    for cells in report["rows"]:
        lines.append(_row(cells))
    lines += ["", _origin(report)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _origin(report: dict[str, Any]) -> str:
    machine = report["machine"]
    packages = [f"{name} {version}" for name, version in machine["versions"].items()]
    return (
        f"{_command(report['command'])} on "
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}; "
        f"Python {machine['python']}, {', '.join(packages)}."
    )


def _command(command: str) -> str:
    if command.startswith(INSTALLED) and FORMER_OPTION in command:
        return f"`{command}`, the script before `mirl-compare`,"
    if command.startswith(INSTALLED):
        return f"`{command}`"
    return f"`python benchmarks/{command}`"


def render(document: str) -> str:
    """Return a document with every table replaced by that of its results file.

    Args:
        document: The text of the document.

    Raises:
        FileNotFoundError: If a table names a results file that does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        path = ROOT / "benchmarks" / "results" / f"{match[2]}.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        return match[1] + table_of(report) + match[3]

    return BLOCK.sub(replace, document)


def main() -> int:
    """Rewrite or check the tables of all documents.

    Returns:
        The exit code: 1 if ``--check`` found an outdated table, else 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    outdated = []
    for path in DOCUMENTS:
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new == old:
            continue
        outdated.append(path.name)
        if not check:
            path.write_text(new, encoding="utf-8")
    if outdated and check:
        sys.stderr.write(
            f"the tables of {', '.join(outdated)} differ from benchmarks/results; "
            "run python benchmarks/tables.py\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
