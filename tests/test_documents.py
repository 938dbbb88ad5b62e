"""Tests that the documents agree with the code and with the results."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest

from mirl.agents.runs import metric_names
from mirl.configs.commands.words import TYPED_NAMES, option_names, typed_name
from mirl.configs.compose import GROUPS
from mirl.configs.schema import EvalConfig, PlayConfig, TrainConfig, WatchConfig

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
DOCUMENTS = [
    README,
    *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *PAGES,
]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Environment variables of the processes: the tests run side by side, and threads would wait."""
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
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr  # the traceback names the page


TUTORIALS = [
    ROOT / "docs" / "start.md",
    ROOT / "docs" / "errors.md",
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
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the command and the arguments of each command of an ``sh`` block.

    MIRL's commands are those of ``PARSERS``, whichever way they are written.
    """
    waiting = ""
    for line in block.replace("\\\n", " ").splitlines():
        waiting = f"{waiting} {line}"
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        waiting = ""
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


def test_commands_are_valid(tmp_path: Path) -> None:
    """Compose the commands of all pages; the tutorials' are run by ``test_tutorial_runs``."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    template = ROOT / "docs" / "extending" / "template" / "ownparts.py"
    (tmp_path / "my_package" / "layers.py").write_text(
        template.read_text(encoding="utf-8").replace("BoundedFilm", "Mine"), encoding="utf-8"
    )
    shutil.copy(template, tmp_path)
    for group, preset in (("task/mine", "reach_cell"), ("fusion/narrow", "low_rank")):
        path = tmp_path / "my_presets" / f"{group}.yaml"
        path.parent.mkdir(parents=True)
        shutil.copy(ROOT / "configs" / Path(group).parent / f"{preset}.yaml", path)
    found = []
    for page in (README, *PAGES):
        text = page.read_text(encoding="utf-8")
        for block in [] if page in TUTORIALS else re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for name, words in commands(block):
                # presets that a page tells the reader to create
                if name in PARSERS and words not in (["agent=spo"], ["task=number_line"]):
                    found.append([page.name, name, words])
    assert {name for _, name, _ in found} == set(PARSERS)
    command = [sys.executable, "-c", COMPOSE_EACH]
    result = subprocess.run(
        command, input=json.dumps(found), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


PARSERS = ("train", "eval", "compare", "watch", "play", "card")
"""Commands whose arguments are composed."""
COMPOSE_EACH = """
import json, sys
from mirl.configs import compose
from mirl.configs.comparison import parse_comparison
from mirl.configs.compose import compose_train, parse_flat
from mirl.configs.commands.sweep import is_multirun, parse_sweep
from mirl.configs.schema import CardConfig, EvalConfig, PlayConfig, WatchConfig

compose.LOGGER_EXTRAS = ()  # optional packages
parsers = {
    "train": lambda words: (parse_sweep if is_multirun(words) else compose_train)(words),
    "watch": lambda words: parse_flat(WatchConfig, words),
    "play": lambda words: parse_flat(PlayConfig, words),
    "card": lambda words: parse_flat(CardConfig, words),
    "eval": lambda words: parse_flat(EvalConfig, words),
    "compare": parse_comparison,
}
for page, name, words in json.load(sys.stdin):
    print(page, name, words)  # the last line names what failed
    parsers[name](words)
"""


def test_coming_from_names_real_options() -> None:
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    known = {*option_names([TrainConfig, EvalConfig]), *TYPED_NAMES, "seeds", "settings.NAME"}
    cells = [line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| `")]
    names = set(re.findall(r"[` ]([a-z_.]+(?:NAME)?)=", " ".join(cells)))
    assert len(names) > 30
    assert {name for name in names if not name.startswith("task.kwargs.")} <= known


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, which fails at a broken link and at an undocumented parameter."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def pages_of(site: Path, folder: str) -> str:
    """Return the HTML of all pages in a folder of the site."""
    return "".join(path.read_text("utf-8") for path in sorted((site / folder).glob("*.html")))


def test_site_documents_public_names(site: Path) -> None:
    """The reference has every exported name and every one that a page imports."""
    reference = pages_of(site, "api")
    names = set()
    for module in ("mirl.agents", "mirl.envs", "mirl.policies", "mirl.policies.fusions"):
        names |= {f"{module}.{name}" for name in import_module(module).__all__}
    for page in (README, *PAGES):
        for snippet in python_snippets(page):
            for module, imported in re.findall(r"^from (mirl[\w.]*) import (.+)$", snippet, re.M):
                names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    assert len(names) > 50
    assert [name for name in sorted(names) if f'id="{name}"' not in reference] == []


def test_site_lists_every_option(site: Path) -> None:
    options = pages_of(site, "options")
    names = [
        *option_names([TrainConfig]),
        *EvalConfig.model_fields,
        *WatchConfig.model_fields,
        *PlayConfig.model_fields,
    ]
    groups = {*GROUPS, "evaluation"}
    missing = set()
    for name in names:
        shown = typed_name(name) in groups or f"<code>{typed_name(name)}=</code>" in options
        if not shown and not name.endswith(".kind") and name != "task.tasks":
            missing.add(name)
    assert missing == set()


def test_site_links_resolve(site: Path) -> None:
    """Every link leads to a file of the site, and nothing is loaded from elsewhere."""
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 50
    for path, html in pages.items():
        loaded = re.findall(r'<(?:link|script|img)[^>]*? (?:href|src)="?([^" >]+)', html)
        assert [url for url in loaded if url.startswith(("http", "//"))] == []
        if path.name == "404.html":  # its links begin at the root of the server
            continue
        for url in {*loaded, *re.findall(r'<a [^>]*?href="?([^" >]+)', html)}:
            if url.startswith(("http", "mailto:", "data:", "javascript:")):
                continue
            target, _, anchor = unquote(url).partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path.name}: {url}"
            if anchor and file.suffix == ".html" and not anchor.startswith("__"):
                assert f'id="{anchor}"' in pages[file], f"{path.name}: {url}"
