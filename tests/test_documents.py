"""The documents say what the code and the results say."""

import re
import subprocess
import sys
from pathlib import Path

from mirl.agents.runs import metric_names as metrics

ROOT = Path(__file__).parent.parent


def test_every_table_is_what_the_results_files_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_every_metric_has_an_entry_in_the_glossary() -> None:
    glossary = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = [
        value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str)
    ]
    assert names
    assert [name for name in names if f"`{name}`" not in glossary] == []


def test_every_local_link_of_the_documents_leads_somewhere() -> None:
    for document in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("**/*.md"),
    ):
        for target in re.findall(
            r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")
        ):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for long, short in (
        ("n_envs=64", "n_envs=4"),
        ("n_steps=128", "n_steps=16"),
        ("100_000", "64"),
    ):
        assert long in snippet
        snippet = snippet.replace(long, short)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_python_of_the_other_documents_runs(tmp_path: Path) -> None:
    for document in (ROOT / "docs").glob("*.md"):
        for snippet in re.findall(
            r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL
        ):
            command = [sys.executable, "-c", snippet]
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{document.name}: {done.stderr}"
