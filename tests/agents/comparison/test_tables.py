"""Tables of a comparison, as texts and files."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from comparison_records import record, summary, two_settings
from rich.console import Console

from mirl.agents.comparison.summary import outcomes_of, pair_rows, result_rows
from mirl.agents.comparison.tables import (
    Table,
    pairs_table,
    results_table,
    to_csv,
    to_latex,
    to_markdown,
    to_rich,
    write_tables,
)

RECORDS = two_settings("goto_door", [0.5, 0.7], [0.96, 1.0])
OUTCOMES = outcomes_of(RECORDS)
RESULTS = result_rows(RECORDS, OUTCOMES)
PAIRS = pair_rows(OUTCOMES)


def test_results_table_shows_intervals() -> None:
    table = results_table(RESULTS)
    assert table.columns[4] == "success (95 % interval)"
    first, second = table.rows
    assert first[:4] == ["goto_door", "concat", "1,234", "2"]
    assert first[4].startswith("60.0% (")
    assert first[6] == "never in 300"
    assert second[6] == "200"


def test_pairs_table_shows_verdict() -> None:
    [row] = pairs_table(PAIRS).rows
    assert row[1] == "film − concat"
    assert row[3].startswith("+38.0% (−")
    assert row[4:] == ["1.00", "ties"]


def test_some_seeds_never_reach() -> None:
    records = two_settings("door", [0.5, 0.97, 0.99], [0.99, 0.1, 0.2])
    rows = results_table(result_rows(records, outcomes_of(records))).rows
    assert rows[0][6] == "200 (200 – 200; 1 of 3 never)"
    assert rows[1][6] == "more than 200 (200 – 200; 2 of 3 never)"


def test_single_seed_shows_no_interval() -> None:
    records = [record("film", "a", 0, summary("a", None, -2.5))]
    [row] = results_table(result_rows(records, outcomes_of(records))).rows
    assert row[4:] == ["−2.500", "−2.500", "–"]


def test_markdown_escapes_bars() -> None:
    table = Table("Title", ["a|b", "c"], [["1", "2"]])
    assert to_markdown([table]) == "### Title\n\n| a\\|b | c |\n|---|---|\n| 1 | 2 |\n"


def test_latex_escapes_commands() -> None:
    table = Table("Title", ["a_b", "c"], [["1 %", "x & \\y"]])
    assert to_latex([table]).splitlines()[1:] == [
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"a\_b & c \\",
        r"\midrule",
        r"1 \% & x \& \textbackslash{}y \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_csv_has_plain_numbers() -> None:
    first, _ = csv.DictReader(to_csv(RESULTS).splitlines())
    assert (first["setting"], float(first["mean"]), first["steps_to_95"]) == ("concat", 0.6, "")
    assert to_csv([]) == ""


def printed(rows: list[Any], width: int = 80) -> str:
    shown = io.StringIO()
    Console(width=width, file=shown, markup=False).print(to_rich(results_table(rows)))
    return shown.getvalue()


def test_single_task_is_the_title() -> None:
    """The name of the only task takes no column, and is whole at 80 columns."""
    name = "my_package.environments:Company/Warehouse-v12"
    records = two_settings(name, [0.5], [0.9])
    text = printed(result_rows(records, outcomes_of(records)))
    assert text.startswith(f"{name}: results")
    assert "task" not in text
    assert re.search(r"│ concat +│ +1,234 │", text)


def test_several_tasks_have_sections() -> None:
    """Each of several tasks has its name in every row and a line before it."""
    records = two_settings("door", [0.5], [0.9]) + two_settings("local", [0.5], [0.9])
    text = printed(result_rows(records, outcomes_of(records)), 160)
    assert text.startswith("Results")
    assert text.count("door") == text.count("local") == 2
    assert text.count("├") == 2  # the last rows are of both


def test_files_are_written(tmp_path: Path) -> None:
    write_tables(tmp_path, [results_table(RESULTS)], {"table": RESULTS, "pairs": PAIRS})
    names = {"table.md", "table.tex", "table.csv", "pairs.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
