"""The architecture as a test: which part imports which, and what the package never does.

    configs  <-  envs, policies  <-  agents  <-  train.py, eval.py

Read from the syntax trees, so that a late import inside a function counts like one at the top.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "configs", "envs", "policies")
SCRIPTS = ("train", "eval")

MAY_IMPORT = {
    "configs": {"configs"},
    "envs": {"configs", "envs"},
    "policies": {"configs", "policies"},
    "agents": {"configs", "envs", "policies", "agents"},
    "train": set(FOLDERS),
    "eval": set(FOLDERS),
    "__init__": set(),
}
HEAVY = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium", "minigrid", "envpool"}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
NAMELESS = {"utils", "helpers", "common", "base"}


def package_files() -> list[Path]:
    """Every Python file of the package: the four folders, and the modules at the root."""
    return sorted(
        [
            *ROOT.glob("*.py"),
            *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
        ]
    )


def all_files() -> list[Path]:
    return sorted(
        [*package_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """``agents/ppo.py`` -> ``agents``, ``train.py`` -> ``train``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(tree: ast.AST, package: str) -> set[str]:
    """The absolute names that a module of ``package`` imports: modules, and each name taken from one.

    ``from mirl import envs`` gives ``mirl`` and ``mirl.envs``; ``from .. import envs`` in ``mirl.policies`` the same.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                parents = (
                    package.split(".")[: len(package.split(".")) + 1 - node.level]
                    if node.level
                    else []
                )
                module = ".".join([*parents, *([node.module] if node.module else [])])
                names.add(module)
                names.update(f"{module}.{alias.name}" for alias in node.names)
            case ast.Call(
                func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                names.add(name)
    return names


def imported_by(path: Path) -> set[str]:
    return imported(tree_of(path), ".".join(["mirl", *path.relative_to(ROOT).parent.parts]))


def parts_imported(names: set[str]) -> set[str]:
    """The parts of MIRL among imported names: ``mirl.envs.tasks`` -> ``envs``."""
    split = (name.split(".") for name in names)
    return {words[1] for words in split if words[0] == "mirl" and len(words) > 1} & {
        *FOLDERS,
        *SCRIPTS,
    }


def forbidden_calls(tree: ast.AST) -> Iterator[str]:
    """What can run code out of data: ``eval``, ``exec``, unpickling loads, Hydra's ``_target_`` and ``instantiate``."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("eval" | "exec" as name)):
                yield f"line {node.lineno}: {name}()"
            case ast.Attribute(value=ast.Name("builtins"), attr="eval" | "exec" as name):
                yield f"line {node.lineno}: builtins.{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name("torch"), attr="load")) if not any(
                keyword.arg == "weights_only" for keyword in node.keywords
            ):
                yield f"line {node.lineno}: torch.load() without weights_only=True"
            case ast.keyword(arg="weights_only", value=ast.Constant(False)):
                yield f"line {node.value.lineno}: weights_only=False"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(True)):
                yield f"line {node.value.lineno}: allow_pickle=True"
            case ast.Constant(str(text)) if "_target_" in text and id(node) not in docstrings:
                yield f"line {node.lineno}: {text!r}"
    for name in imported(tree, "mirl"):
        if name.split(".")[0] in UNPICKLERS or name == "hydra.utils.instantiate":
            yield f"imports {name}"


@pytest.mark.parametrize("path", package_files(), ids=name_of)
def test_imports_follow_the_dependency_rule(path: Path) -> None:
    assert part_of(path) in MAY_IMPORT, f"{name_of(path)}: the root holds train.py and eval.py only"
    forbidden = parts_imported(imported_by(path)) - MAY_IMPORT[part_of(path)]
    assert not forbidden, f"{name_of(path)} imports mirl.{', mirl.'.join(sorted(forbidden))}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=name_of)
def test_configs_import_nothing_heavy(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported_by(path)} & HEAVY


@pytest.mark.parametrize("path", all_files(), ids=name_of)
def test_the_package_is_imported_by_its_name(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported_by(path)} & {*FOLDERS, *SCRIPTS}


@pytest.mark.parametrize("path", package_files(), ids=name_of)
def test_no_code_runs_out_of_data(path: Path) -> None:
    assert not list(forbidden_calls(tree_of(path)))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=name_of)
def test_no_preset_names_code(path: Path) -> None:
    assert not re.search(r"^[^#]*_target_", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("path", all_files(), ids=name_of)
def test_files_are_named_after_what_they_hold(path: Path) -> None:
    assert not {*path.relative_to(ROOT).parent.parts, path.stem} & NAMELESS


def test_importing_the_schema_does_not_import_torch() -> None:
    code = f"import sys, mirl.configs.schema; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# The rules above are only as good as their reading of the code: each form that breaks one is seen.


@pytest.mark.parametrize(
    "source",
    [
        "import mirl.envs",
        "import mirl.envs.tasks as tasks",
        "from mirl import envs",
        "from mirl.envs import tasks",
        "from .. import envs",
        "from ..envs import tasks",
        "def late():\n    from mirl.envs.tasks import Task",
        "if TYPE_CHECKING:\n    import mirl.envs",
        "import importlib\nimportlib.import_module('mirl.envs')",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    assert parts_imported(imported(ast.parse(source), "mirl.policies")) == {"envs"}


def test_a_relative_import_stays_within_its_own_part() -> None:
    assert parts_imported(
        imported(ast.parse("from .film import Film\nfrom . import film"), "mirl.policies")
    ) == {"policies"}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "config['_target_'] = 'os.system'",
        "from hydra.utils import instantiate",
    ],
)
def test_every_way_to_run_data_is_seen(source: str) -> None:
    assert list(forbidden_calls(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "policy.eval()",
        "torch.load(path, weights_only=True)",
        "'''No `_target_` here.'''",
        "import mirl.eval",
    ],
)
def test_harmless_code_passes(source: str) -> None:
    assert not list(forbidden_calls(ast.parse(source)))
