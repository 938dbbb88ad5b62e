"""Rules of the architecture, checked on the source code.

    configs  <-  envs, policies  <-  agents  <-  train.py, eval.py, compare.py, …

The second half checks the rules themselves, on synthetic sources that break or keep them.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from source_rules import (
    FOLDERS,
    SCRIPTS,
    Docstrings,
    Module,
    documented_arguments,
    find_cycle,
    forbidden_calls,
    has_code,
    import_graph,
    imported_names,
    imported_parts,
    load_module,
    misstyled_docstrings,
    string_literals,
)

from mirl.configs.keys import ACHIEVED_GOAL_KEY, ACTION_MASK_KEY, DESIRED_GOAL_KEY

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "configs": {"configs"},
    "envs": {"configs", "envs"},
    "policies": {"configs", "policies"},
    "agents": {"configs", "envs", "policies", "agents"},
    "train": set(FOLDERS),
    "eval": set(FOLDERS),
    "compare": set(FOLDERS),
    "watch": set(FOLDERS),
    "play": set(FOLDERS),
    "card": set(FOLDERS),
    "__init__": set(),
    "__main__": {"configs"},
}
"""Parts of the package that each part may import."""
HEAVY = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium", "minigrid", "envpool"}
"""Packages that ``configs`` must not import, so that errors and --help appear at once."""
VAGUE_NAMES = {"utils", "helpers", "common", "base"}
"""Names that say nothing about the content of a file."""
MAX_MODULES = 16
"""Largest number of modules in a folder, without ``__init__.py``."""
WITHOUT_TEST_FILE = {
    "train.py": "tests/test_command_line.py runs it as a process",
    "eval.py": "tests/test_command_line.py runs it as a process",
    "compare.py": "tests/test_comparison_command.py runs it as a process",
    "card.py": "tests/agents/exports/test_card.py runs it as a process",
    "watch.py": "tests/agents/watch/test_session.py runs it as a process",
    "play.py": "tests/agents/watch/test_keyboard.py runs it as a process",
    "__main__.py": "tests/configs/test_command_line.py runs it as a process",
}
"""Modules with code but without a test file of their own, and the reason."""
KEYS = {ACHIEVED_GOAL_KEY, ACTION_MASK_KEY, DESIRED_GOAL_KEY}
"""Observation keys that the package spells in one place only."""


def package_files() -> list[Path]:
    """Return every Python file of the package: the four folders and the root's modules."""
    files = [*ROOT.glob("*.py")]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    return sorted(files)


def all_files() -> list[Path]:
    """Return the files of the package, the tests and the benchmarks."""
    others = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    return sorted([*package_files(), *others])


def package_folders() -> list[Path]:
    """Return every folder of the package."""
    return sorted({path.parent for path in package_files()} - {ROOT})


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """Return ``agents`` for ``agents/on_policy/ppo.py`` and ``train`` for ``train.py``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """Return ``mirl.agents.training`` for ``agents/training.py``."""
    words = ["mirl", *path.relative_to(ROOT).with_suffix("").parts]
    if words[-1] == "__init__":
        words.pop()
    return ".".join(words)


def mirrored_test(path: Path) -> Path:
    """Return ``tests/envs/test_make.py`` for ``envs/make.py``."""
    relative = path.relative_to(ROOT)
    return ROOT / "tests" / relative.parent / f"test_{relative.name}"


def imports_of(path: Path) -> set[str]:
    package = ".".join(["mirl", *path.relative_to(ROOT).parent.parts])
    return imported_names(parse(path), package)


def modules_of_package() -> dict[str, Module]:
    modules: dict[str, Module] = {}
    for path in package_files():
        name = module_name(path)
        modules[name] = load_module(name, parse(path), is_package=path.name == "__init__.py")
    return modules


MODULES = modules_of_package()


@pytest.mark.parametrize("path", package_files(), ids=relative_name)
def test_imports_follow_dependency_rule(path: Path) -> None:
    name = relative_name(path)
    assert part_of(path) in MAY_IMPORT, f"{name}: the root holds only the commands"
    forbidden = imported_parts(imports_of(path)) - MAY_IMPORT[part_of(path)]
    assert not forbidden, f"{name} imports mirl.{', mirl.'.join(sorted(forbidden))}"


def test_imports_have_no_circle() -> None:
    trees = {module_name(path): parse(path) for path in package_files()}
    packages = {module_name(path) for path in package_files() if path.name == "__init__.py"}
    cycle = find_cycle(import_graph(trees, packages))
    assert not cycle, " -> ".join(cycle)


@pytest.mark.parametrize("folder", package_folders(), ids=relative_name)
def test_folder_is_not_crowded(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES


@pytest.mark.parametrize("path", package_files(), ids=relative_name)
def test_module_has_its_test_file(path: Path) -> None:
    """Every module with code has a test file at the same place under tests/."""
    name = relative_name(path)
    if path.name == "__init__.py" or not has_code(parse(path)):
        assert name not in WITHOUT_TEST_FILE, f"{name} needs no exception"
    elif name in WITHOUT_TEST_FILE:
        assert not mirrored_test(path).exists(), f"{name} needs no exception"
    else:
        assert mirrored_test(path).exists(), f"{relative_name(mirrored_test(path))} is missing"


def test_exceptions_name_existing_modules() -> None:
    assert set(WITHOUT_TEST_FILE) <= {relative_name(path) for path in package_files()}


@pytest.mark.parametrize("path", package_files(), ids=relative_name)
def test_parameters_are_documented(path: Path) -> None:
    module = MODULES[module_name(path)]
    assert not list(Docstrings(MODULES).undocumented(module))


@pytest.mark.parametrize("path", all_files(), ids=relative_name)
def test_docstrings_follow_the_style(path: Path) -> None:
    """No docstring opens with a noun clause ("What ...") or uses Sphinx fields."""
    assert not list(misstyled_docstrings(parse(path)))


@pytest.mark.parametrize(
    "path",
    [path for path in package_files() if path != ROOT / "configs" / "keys.py"],
    ids=relative_name,
)
def test_observation_keys_are_constants(path: Path) -> None:
    """Observation keys are spelled in configs/keys.py and nowhere else."""
    assert not list(string_literals(parse(path), KEYS))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=relative_name)
def test_configs_import_nothing_heavy(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & HEAVY


@pytest.mark.parametrize("path", all_files(), ids=relative_name)
def test_package_is_imported_by_name(path: Path) -> None:
    """Imports start with ``mirl.``: a folder alone would be imported a second time."""
    assert not {name.split(".")[0] for name in imports_of(path)} & {*FOLDERS, *SCRIPTS}


@pytest.mark.parametrize("path", package_files(), ids=relative_name)
def test_data_runs_no_code(path: Path) -> None:
    assert not list(forbidden_calls(parse(path)))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=relative_name)
def test_presets_name_no_code(path: Path) -> None:
    assert not re.search(r"^[^#]*_target_", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("path", all_files(), ids=relative_name)
def test_file_names_describe_content(path: Path) -> None:
    assert not {*path.relative_to(ROOT).parent.parts, path.stem} & VAGUE_NAMES


def test_importing_configs_skips_torch() -> None:
    names = [module_name(path) for path in sorted((ROOT / "configs").glob("*.py"))]
    code = f"import sys, {', '.join(names)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# ------------------------------------------------------------------------ the rules by themselves


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
def test_rule_sees_every_import(source: str) -> None:
    assert imported_parts(imported_names(ast.parse(source), "mirl.policies")) == {"envs"}


def test_rule_resolves_relative_imports() -> None:
    source = "from .film import Film\nfrom . import film"
    names = imported_names(ast.parse(source), "mirl.policies")
    assert imported_parts(names) == {"policies"}


def graph_of(**sources: str) -> dict[str, set[str]]:
    """Return the import graph of modules ``mirl.<name>``; ``root`` is ``mirl`` itself."""
    trees = {f"mirl.{name}": ast.parse(source) for name, source in sources.items()}
    trees["mirl"] = trees.pop("mirl.root", ast.parse(""))
    return import_graph(trees, {"mirl"})


@pytest.mark.parametrize(
    "back",
    [
        "import mirl.a",
        "from mirl import a",
        "from . import a",
        "from mirl.a import name",
        "if TYPE_CHECKING:\n    from mirl.a import name",
        "def late():\n    from mirl.a import name",
        "__import__('mirl.a')",
    ],
)
def test_rule_sees_import_circle(back: str) -> None:
    cycle = find_cycle(graph_of(a="from mirl.b import name", b="import mirl.c", c=back))
    assert set(cycle) == {"mirl.a", "mirl.b", "mirl.c"}
    assert cycle[0] == cycle[-1]


def test_rule_sees_circle_through_package() -> None:
    """A module that imports a name from its own package imports the package's other modules."""
    graph = graph_of(root="from mirl.a import name", a="from mirl import name")
    assert set(find_cycle(graph)) == {"mirl", "mirl.a"}


def test_rule_accepts_imports_without_circle() -> None:
    """A package that re-exports a name, and a module that imports its sibling, are no circle."""
    graph = graph_of(root="from mirl.a import name", a="from mirl import b", b="import os")
    assert graph == {"mirl": {"mirl.a"}, "mirl.a": {"mirl.b"}, "mirl.b": set()}
    assert find_cycle(graph) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def run(): ...", True),
        ("class Run: ...", True),
        ("if True:\n    def run(): ...", True),
        ("NAMES = ('a', 'b')\n'''Names.'''", False),
        ("'''Only a docstring.'''\nfrom mirl.a import name", False),
    ],
)
def test_rule_recognizes_code(source: str, expected: bool) -> None:
    assert has_code(ast.parse(source)) == expected


def test_test_file_mirrors_module() -> None:
    path = ROOT / "agents" / "on_policy" / "ppo.py"
    assert relative_name(mirrored_test(path)) == "tests/agents/on_policy/test_ppo.py"


SIBLING = '''
from torch import nn

class Layer(nn.Module):
    """Layer."""
    def forward(self, x): ...
    def scale(self, x):
        """Scale.

        Args:
            x: features (B, X).
        """
'''
"""Module ``mirl.policies.layers``, from which the sources below inherit."""


def undocumented(source: str) -> list[str]:
    """Return what the rule reports for a module ``mirl.policies.new``."""
    modules = {
        "mirl.policies": load_module(
            "mirl.policies", ast.parse("from mirl.policies.layers import Layer"), is_package=True
        ),
        "mirl.policies.layers": load_module("mirl.policies.layers", ast.parse(SIBLING)),
        "mirl.policies.new": load_module("mirl.policies.new", ast.parse(source)),
    }
    return list(Docstrings(modules).undocumented(modules["mirl.policies.new"]))


@pytest.mark.parametrize(
    ("source", "reported"),
    [
        ("def run(x): ...", "run (x)"),
        ("async def run(x): ...", "run (x)"),
        ("def run(x):\n  '''Run.'''", "run (x)"),
        ("def run(x, *, y=1):\n  '''Run.\n\n  Args:\n    x: one.\n  '''", "run (y)"),
        ("def run(*args, **kwargs):\n  '''Run.'''", "run (args, kwargs)"),
        ("def run(x):\n  '''Run.\n\n  Returns:\n    x: one.\n  '''", "run (x)"),
        ("class Run:\n  '''Run.'''\n  def __init__(self, x): ...", "Run (x)"),
        ("class Run:\n  '''Run.'''\n  def go(self, x): ...", "Run.go (x)"),
        ("class Run:\n  @classmethod\n  def go(cls, x): ...", "Run.go (x)"),
        ("class Run:\n  @staticmethod\n  def go(x): ...", "Run.go (x)"),
        ("class Run(list[int]):\n  def go(self, x): ...", "Run.go (x)"),
        (
            "from mirl.policies.layers import Layer\nclass New(Layer):\n  def other(self, x): ...",
            "New.other (x)",
        ),
    ],
)
def test_rule_sees_undocumented_parameter(source: str, reported: str) -> None:
    (found,) = undocumented(source)
    assert found.endswith(f": {reported}")


@pytest.mark.parametrize(
    "source",
    [
        "def run(): ...",
        "def _run(x): ...",
        "def run(_x): ...",
        "def run(x, *args):\n  '''Run.\n\n  Args:\n    x (int): one.\n    *args: others.\n  '''",
        "def run(low, high):\n  '''Run.\n\n  Args:\n    low, high: bounds.\n  '''",
        "def run(x):\n  '''Run.\n\n  Args:\n    x: one,\n      two.\n\n  Raises:\n    E: if.'''",
        "def run():\n  def inner(x): ...",
        "class _Run:\n  def __init__(self, x): ...",
        "class Run:\n  '''Run.\n\n  Args:\n    x: one.\n  '''\n  def __init__(self, x): ...",
        "class Run:\n  def __init__(self, x):\n    '''Set up.\n\n    Args:\n      x: one.\n    '''",
        "class Run:\n  def go(self): ...",
        "class Run:\n  def _go(self, x): ...",
        "class Run:\n  def __call__(self, x): ...",
        "class Run:\n  @property\n  def size(self): ...\n  @size.setter\n  def size(self, x): ...",
        "class Run:\n  @typing.overload\n  def go(self, x): ...",
        "from torch import nn\nclass Net(nn.Module):\n  def forward(self, x): ...",
        "import torch\nclass Net(torch.nn.Module):\n  def forward(self, x): ...",
        "import gymnasium as gym\nclass Env(gym.Env[int, int]):\n  def step(self, action): ...",
        "from mirl.policies.layers import Layer\nclass New(Layer):\n  def scale(self, x): ...",
        "from mirl.policies import Layer\nclass New(Layer):\n  def forward(self, x): ...",
        "import mirl.policies.layers as a\nclass New(a.Layer):\n  def scale(self, x): ...",
        "from .layers import Layer\nclass A(Layer): ...\nclass B(A):\n  def scale(self, x): ...",
    ],
)
def test_rule_accepts_documented_parameter(source: str) -> None:
    assert undocumented(source) == []


def test_arguments_end_at_next_section() -> None:
    arguments = "Args:\n    x: one.\n    y, z: two."
    text = f"Run.\n\n{arguments}\n\nReturns:\n    n: number.\n\nRaises:\n    E: error."
    assert documented_arguments(text) == {"x", "y", "z"}


@pytest.mark.parametrize(
    "source",
    [
        "'''What the buffer holds.'''",
        "def run():\n  '''Whether it runs.'''",
        "class Run:\n  '''How it runs.'''",
        "class Run:\n  x = 1\n  '''\n  Where it runs.'''",
        "SIZE = 1\n'''So many.'''",
        "def run(x):\n  '''Run.\n\n  :param x: one.\n  '''",
        "def run(x):\n  '''Run.\n\n  :raises ValueError: never.\n  '''",
    ],
)
def test_rule_sees_misstyled_docstring(source: str) -> None:
    assert len(list(misstyled_docstrings(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "'''Contents of the buffer.'''",
        "def run():\n  '''Assign the whole.'''",
        "def run():\n  '''Return what is left.\n\n  What follows is free text.\n  '''",
        "TEXT = 'What is this?'",
        "TEXT = ':param x:'",
    ],
)
def test_rule_accepts_plain_docstring(source: str) -> None:
    assert not list(misstyled_docstrings(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["obs['desired_goal']", "KEY = 'action_mask'", "def f(key='achieved_goal'): ..."]
)
def test_rule_sees_key_literal(source: str) -> None:
    assert len(list(string_literals(ast.parse(source), KEYS))) == 1


@pytest.mark.parametrize(
    "source", ["obs[DESIRED_GOAL_KEY]", "desired_goal = 1", "'''A desired_goal in a sentence.'''"]
)
def test_rule_accepts_key_constant(source: str) -> None:
    assert not list(string_literals(ast.parse(source), KEYS))


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from cloudpickle import loads",
        "import joblib",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "config['_target_'] = 'os.system'",
        "from hydra.utils import instantiate",
    ],
)
def test_rule_sees_code_in_data(source: str) -> None:
    """Every way to run code out of data is found."""
    assert list(forbidden_calls(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "policy.eval()",
        "torch.load(path, weights_only=True)",
        "'''No `_target_` here.'''",
        "import mirl.eval",
        "from joblib import Parallel, delayed",
    ],
)
def test_rule_accepts_harmless_code(source: str) -> None:
    assert not list(forbidden_calls(ast.parse(source)))
