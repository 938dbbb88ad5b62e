"""The tables of a comparison: for the terminal, and as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from string import ascii_uppercase

from rich import table as rich_table

from mirl.agents.comparison.summary import Row
from mirl.agents.runs.atomic_files import write_text

NONE = "–"
"""Cell without a value."""
MINUS = "\u2212"
"""Minus sign of a difference, wider than a hyphen."""
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        MINUS: "$-$",
        ">": "$>$",
    }
)
"""Replacements for characters that LaTeX reads as commands or does not support."""


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Args:
        title: title of the table.
        columns: header.
        rows: cells of each row.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


# ------------------------------------------------------------------------------------------ content


def results_table(rows: Sequence[Row]) -> Table:
    """Return the table with a row per task and setting.

    Args:
        rows: the rows of ``result_rows``.
    """
    metrics = " or ".join(dict.fromkeys(str(row["metric"]) for row in rows))
    columns = ("task", "setting", "parameters", "seeds", f"{metrics} (95 % interval)", "IQM")
    cells = []
    for row in rows:
        show = _formatter(row)
        cells.append(
            [
                str(row["task"]),
                str(row["setting"]),
                _count(row["parameters"]),
                str(row["seeds"]),
                _with_interval(row, show),
                show(row["iqm"]),
                _timesteps(row),
            ]
        )
    return Table("Results", (*columns, "timesteps to 95 %"), cells)


def pairs_table(rows: Sequence[Row]) -> Table:
    """Return the table with a row per task and pair of settings.

    Args:
        rows: the rows of ``pair_rows``.
    """
    columns = (
        "task",
        "pair",
        "seeds",
        "difference (95 % interval)",
        "probability of improvement",
        "verdict",
    )
    cells = []
    for row in rows:
        cells.append(
            [
                str(row["task"]),
                f"{row['setting']} {MINUS} {row['base']}",
                str(row["seeds"]),
                _with_interval(row, _formatter(row, "+")),
                f"{row['probability_of_improvement']:.2f}",
                str(row["verdict"]),
            ]
        )
    return Table("Differences at equal seeds", columns, cells)


def run_pairs_table(rows: Sequence[Row]) -> Table:
    """Return the table of runs that played the same episodes.

    Args:
        rows: the rows of ``compare_episodes``.
    """
    columns = (
        "task",
        "pair",
        "episodes",
        "metric",
        "first",
        "second",
        "difference (95 % interval)",
        "only first",
        "only second",
        "McNemar's p",
    )
    names = dict.fromkeys(str(row[which]) for row in rows for which in ("first", "second"))
    # label runs by letters, because their names are long
    letters = dict(zip(names, _letters(), strict=False))
    cells = []
    for row in rows:
        show = _formatter(row)
        p_value = NONE if row["p_value"] is None else f"{row['p_value']:.3g}"
        cells.append(
            [
                str(row["task"]),
                f"{letters[str(row['first'])]} {MINUS} {letters[str(row['second'])]}",
                _count(row["episodes"]),
                str(row["metric"]),
                show(row["first_mean"]),
                show(row["second_mean"]),
                _with_interval(row, _formatter(row, "+")),
                _count(row["only_first"]),
                _count(row["only_second"]),
                p_value,
            ]
        )
    legend = ", ".join(f"{letter} = {name}" for name, letter in letters.items())
    return Table(f"The same episodes; {legend}", columns, cells)


def _letters() -> Iterator[str]:
    """Yield A to Z, then AA, AB and so on."""
    for length in count(1):
        for combination in product(ascii_uppercase, repeat=length):
            yield "".join(combination)


def _with_interval(row: Row, show: Callable[[object], str]) -> str:
    if row["low"] is None:
        return show(row["mean"])
    return f"{show(row['mean'])} ({show(row['low'])} – {show(row['high'])})"


def _formatter(row: Row, sign: str = "") -> Callable[[object], str]:
    """Return a function that formats values of the metric of a row.

    Args:
        row: a row with the column ``metric``.
        sign: ``+`` for differences, whose sign is always shown.
    """
    form = ".1%" if row["metric"] == "success" else ".3f"
    return lambda value: f"{value:{sign}{form}}".replace("-", MINUS)


def _count(value: object) -> str:
    return NONE if value is None else f"{value:,}"


def _timesteps(row: Row) -> str:
    """Return the median and the range over seeds, and how many never reached the threshold."""
    never = row["never"]
    if never is None:
        return NONE
    if row["first"] is None:
        return f"never in {row['timesteps']:,}"
    middle = f"more than {row['last']:,}"
    if row["steps_to_95"] is not None:
        middle = f"{row['steps_to_95']:,}"
    seen = f"{row['first']:,} – {row['last']:,}"
    if never:
        seen += f"; {never} of {row['seeds']} never"
    if row["first"] == row["last"] and not never:
        return middle
    return f"{middle} ({seen})"


# ------------------------------------------------------------------------------------------- output


def to_markdown(tables: Iterable[Table]) -> str:
    """Return tables as Markdown.

    Args:
        tables: the tables.
    """
    parts = []
    for table in tables:
        parts.append(f"### {table.title}\n\n{markdown_table(table.columns, table.rows)}\n")
    return "\n".join(parts)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown.

    Args:
        columns: header.
        rows: cells of each row.
    """
    lines = [_markdown_row(columns), "|" + "---|" * len(columns)]
    return "\n".join([*lines, *map(_markdown_row, rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def to_latex(tables: Iterable[Table]) -> str:
    """Return tables as LaTeX; they need the package booktabs.

    Args:
        tables: the tables.
    """
    lines = []
    for table in tables:
        lines += [f"% {table.title}", rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"]
        lines += [r"\toprule", _latex_row(table.columns), r"\midrule"]
        lines += [_latex_row(cells) for cells in table.rows]
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with their values as plain numbers.

    Args:
        rows: rows with the same columns; may be empty.
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def to_rich(table: Table) -> rich_table.Table:
    """Return a table for the terminal; if all rows have the same task, the title names it instead.

    Args:
        table: the table.
    """
    tasks = {cells[0] for cells in table.rows}
    title, first = table.title, 0
    if len(tasks) == 1:
        title, first = f"{tasks.pop()}: {title[:1].lower()}{title[1:]}", 1
    shown = rich_table.Table(title=title, title_justify="left")
    for index, column in enumerate(table.columns[first:], first):
        # the first columns are names
        shown.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    previous = None
    for cells in table.rows:
        if previous not in (None, cells[0]):
            shown.add_section()
        shown.add_row(*cells[first:])
        previous = cells[0]
    return shown


def write_tables(folder: Path, tables: Sequence[Table], rows: dict[str, Sequence[Row]]) -> None:
    """Write ``table.md`` and ``table.tex`` with all tables, and a CSV file for each list of rows.

    Args:
        folder: folder of the files.
        tables: the tables.
        rows: rows by the name of their CSV file.
    """
    write_text(folder / "table.md", to_markdown(tables))
    write_text(folder / "table.tex", to_latex(tables))
    for name, of_file in rows.items():
        write_text(folder / f"{name}.csv", to_csv(of_file))
