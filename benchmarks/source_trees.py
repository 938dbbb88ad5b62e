"""Compare the throughput of two source trees, for ``throughput.py --against``."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from machine import ROOT, write_results
from measurement import run, spread


@contextmanager
def importable(tree: Path) -> Iterator[dict[str, str]]:
    """Make ``import mirl`` import a source tree.

    The root of a source tree is the package itself, whatever its folder is called. So a temporary
    folder with a symbolic link ``mirl`` to the tree is put first on ``PYTHONPATH``.

    Args:
        tree: The root of the source tree.

    Yields:
        The environment variables of processes that import the tree.

    Raises:
        ValueError: If the tree has no ``benchmarks/contenders.py`` or another ``mirl`` is imported.
    """
    tree = tree.resolve()
    if not (tree / "benchmarks" / "contenders.py").is_file():
        raise ValueError(
            f"expected a source tree of MIRL with benchmarks/contenders.py, got {tree}; "
            "name the root folder of a checkout"
        )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mirl").symlink_to(tree)
        search_path = [folder]
        if "PYTHONPATH" in os.environ:
            search_path.append(os.environ["PYTHONPATH"])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}

        # If an installed mirl came first, both trees would run the same code.
        code = "import mirl; print(mirl.__path__[0])"
        finished = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        imported = Path(finished.stdout.strip()).resolve()
        if imported != tree:
            raise ValueError(
                f"expected mirl to be imported from {tree}, got {imported}; "
                "uninstall the mirl that hides it"
            )
        yield environment


def measure_in_turn(
    contender: str, trees: dict[str, Path], rounds: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """Measure one contender of several source trees in turn.

    Every other round runs in reverse order, so that drifts of the machine affect all trees alike.

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
        environments = {}
        for label, tree in trees.items():
            environments[label] = stack.enter_context(importable(tree))
        for number in range(rounds):
            labels = list(trees)
            if number % 2 == 1:
                labels.reverse()
            for label in labels:
                result = run(contender.split(), seconds, trees[label], environments[label])
                results[label].append(result)
                line = f"round {number + 1} {label}{result['steps_per_second']:>10,.0f} steps/s"
                print(line, flush=True)  # noqa: T201
    return results


def commit_of(tree: Path) -> str:
    """Return the commit of a source tree, with ``-dirty`` if tracked files differ from it.

    Args:
        tree: The root of the source tree.
    """
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    return finished.stdout.strip() or "unknown"


def compare_trees(workload: str, contender: str, other: Path, rounds: int, seconds: float) -> None:
    """Measure the speed of this source tree (new) relative to another one (old).

    Args:
        workload: The name of the workload; the results are written to ``against_WORKLOAD.json``.
        contender: The name of a contender that both trees have.
        other: The root of the other source tree.
        rounds: Number of measurements of each tree.
        seconds: How long each measurement trains after the warm-up.

    Raises:
        ValueError: If ``other`` is not a source tree of MIRL.
    """
    trees = {"new": ROOT.resolve(), "old": other.resolve()}
    results = measure_in_turn(contender, trees, rounds, seconds)
    labels = {label: f"{label} ({commit_of(tree)})" for label, tree in trees.items()}
    columns, rows = ratio_table(contender, labels, results)
    for row in rows:
        print("  ".join(row))  # noqa: T201
    write_results(f"against_{workload}", columns, rows, results)


def ratio_table(
    contender: str, labels: dict[str, str], results: dict[str, list[dict[str, Any]]]
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table; the last row is the ratio within a round.

    Args:
        contender: The name of the contender.
        labels: The text for "new" and for "old".
        results: The measurements of each tree, one per round.
    """
    speeds = {}
    rows = []
    for label, measured in results.items():
        speeds[label] = [result["steps_per_second"] for result in measured]
        rows.append([contender, labels[label], spread(speeds[label])])
    ratios = [new / old for new, old in zip(speeds["new"], speeds["old"], strict=True)]
    rows.append([contender, "new / old", spread(ratios, 2)])
    return ["contender", "source tree", "steps/s"], rows
