"""Tests that the documents agree with the code and with the results."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mirl.agents.runs import metric_names

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
DOCUMENTS = [
    README,
    *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *PAGES,
]
README_LINES = 120
"""Maximum length of the README."""
PYTHON_PATH = re.compile(r"(?<![\w/.:-])(?:[\w-]+/)+\w+\.py\b")
"""A path such as agents/training.py, but not a part of a URL or of a relative link."""


def python_snippets(document: Path) -> list[str]:
    """Return the contents of the ``python`` code blocks of a document."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


RUN_EACH = """
import json, sys

def _run(page, code):
    before = set(globals())
    exec(compile(code, page, "exec"), globals())
    for name in set(globals()) - before:
        del globals()[name]

for _page_and_code in json.load(sys.stdin):
    _run(*_page_and_code)
"""
"""Runs snippets as scripts one after the other, in one process, because torch loads slowly."""


def run_snippets(snippets: list[tuple[str, str]], folder: Path) -> None:
    """Run snippets, given with the names of their pages, in the given folder."""
    result = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps(snippets),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr  # the traceback names the page


TUTORIALS = [
    ROOT / "docs" / "start.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    ROOT / "docs" / "extending" / "fusion.md",
]
"""Pages that are run from top to bottom, in a folder of their own."""


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial_runs(page: Path, tmp_path: Path) -> None:
    """Run all blocks of a page, the commands with tiny budgets.

    The commands before a ``text`` block print what it shows, and fail if that is an error.
    """
    shutil.copy(ROOT / "docs" / "extending" / "template" / "ownparts.py", tmp_path)
    blocks = re.findall(r"```(sh|python|text)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    steps: list[tuple[str, object]] = []
    for kind, block in blocks:
        module = re.match(r"# (\w+\.py)\n", block)
        if module is not None:
            (tmp_path / module[1]).write_text(block, encoding="utf-8")
        elif kind == "sh":
            steps += [(name, words) for name, words in commands(block) if name != "make"]
        else:
            steps.append((kind, block))
    command = [sys.executable, str(ROOT / "tests" / "tutorial_steps.py")]
    result = subprocess.run(
        command,
        input=json.dumps(steps),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the command and the arguments of each command of an ``sh`` block.

    MIRL's commands are ``train``, ``eval`` and ``compare``, whichever way they are written.
    """
    lines = iter(block.replace("\\\n", " ").splitlines())
    for line in lines:
        while line.count("'") % 2:  # a quotation goes on in the next line
            line += " " + next(lines)
        words = shlex.split(line, comments=True)
        if words[:1] == ["python"]:
            del words[0]
        if words:
            name = words[0].removeprefix("mirl-").removesuffix(".py")
            yield name, words[1:]


def test_sb3_page_lists_expected_failures() -> None:
    page = (ROOT / "docs" / "sb3.md").read_text(encoding="utf-8")
    expected = runpy.run_path(str(ROOT / "benchmarks" / "sb3_suite.py"))["EXPECTED"]
    _, _, rows = page.partition("| test | why it may fail |\n|---|---|\n")
    assert rows.splitlines() == [f"| `{test}` | {reason} |" for test, reason in expected.items()]


def test_tables_match_the_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    constants = vars(metric_names).items()
    metrics = [value for name, value in constants if name.isupper() and isinstance(value, str)]
    assert metrics
    assert [metric for metric in metrics if f"`{metric}`" not in page] == []


def test_local_links_exist() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_paths_of_code_exist() -> None:
    """Check the paths of Python files, except those that a page tells the reader to create.

    The changelog is exempt, because it names former files.
    """
    for document in DOCUMENTS:
        if document.name == "CHANGELOG.md":
            continue
        text = document.read_text(encoding="utf-8")
        created = set()
        for line in text.splitlines():
            if "new file" in line:
                created.update(PYTHON_PATH.findall(line))
        for path in set(PYTHON_PATH.findall(text)) - created:
            assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_snippets_run(tmp_path: Path) -> None:
    """Run every snippet of the pages, and that of the README with smaller numbers."""
    [snippet] = python_snippets(README)
    sizes = (("n_envs=64", "n_envs=4"), ("n_steps=128", "n_steps=16"), ("100_000", "64"))
    for long, short in sizes:
        assert long in snippet
        snippet = snippet.replace(long, short)
    snippets = [(README.name, snippet)]
    for page in PAGES:
        if page not in TUTORIALS:
            snippets += [(page.name, each) for each in python_snippets(page)]
    # those that change MiniGrid's tables of codes come last
    snippets.sort(key=lambda entry: "COLOR_TO_IDX" in entry[1])
    run_snippets(snippets, tmp_path)
