"""Tests that the documents agree with the code and with the results."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

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
        snippets += [(page.name, each) for each in python_snippets(page)]
    # those that change MiniGrid's tables of codes come last
    snippets.sort(key=lambda entry: "COLOR_TO_IDX" in entry[1])
    run_snippets(snippets, tmp_path)


def test_own_environment_page_works(tmp_path: Path) -> None:
    """Follow the page on environments: write the module, train on it, evaluate the run."""
    page = ROOT / "docs" / "environments.md"
    # the first snippet is the module, the others show single lines
    snippet = python_snippets(page)[0]
    (tmp_path / "my_package.py").write_text(snippet, encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    train_words = re.search(r"python train.py (task=my_package:MyEnv-v0) ", text)
    eval_words = re.search(r"python eval.py (run=\S+ import=my_package)", text)
    assert train_words is not None
    assert eval_words is not None
    tiny = ("agent.n_envs=4", "agent.n_steps=16", "agent.batch_size=64", "total_timesteps=64")
    few = ("evaluation.episodes=4", "evaluation.test_episodes=4", "progress=false")
    quick = ("precision=fp32", "videos=false")
    for script, words in (
        ("train.py", [train_words[1], "task.kwargs.size=2", *tiny, *few, *quick]),
        ("eval.py", [*eval_words[1].split(), "checkpoint=last", "episodes=4"]),
    ):
        command = [sys.executable, str(ROOT / script), *words]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
