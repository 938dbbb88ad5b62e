"""What an installed MIRL holds, and that its pins agree with what it asks for."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "configs", "envs", "policies")
ROOT_MODULES = {"__init__.py", "train.py", "eval.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel, built from a copy: in place it would leave build/ behind, and read it."""
    source = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, source)
        elif path.name in {*FOLDERS, "tests", "benchmarks", "docs"}:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    result = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (built,) = source.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_and_no_other(wheel: set[str]) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in wheel if name.endswith(".py")} == {
        f"mirl/{name}" for name in modules | ROOT_MODULES
    }


def test_the_wheel_holds_every_preset(wheel: set[str]) -> None:
    presets = {
        f"mirl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert any(name.startswith("mirl/configs/task/") for name in presets)
    assert {name for name in wheel if name.endswith(".yaml")} == presets


def test_the_wheel_says_that_it_is_typed_and_how_it_may_be_used(wheel: set[str]) -> None:
    assert "mirl/py.typed" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_the_wheel_holds_no_tests(wheel: set[str]) -> None:
    assert not [name for name in wheel if {"tests", "benchmarks", "docs"} & set(name.split("/"))]


def canonical(requirement: str) -> str:
    """The name of a requirement as package indexes compare it: ``Stable_Baselines3>=2`` -> ``stable-baselines3``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in requirements)
    return {canonical(line): line.split("==")[1] for line in requirements}


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = {
        canonical(name) for name in [*project["dependencies"], *extras["fast"], *extras["dev"]]
    }
    assert required - {"mirl"} <= set(pins())


def test_no_pin_ties_users_to_one_build_of_torch() -> None:
    assert not [version for version in pins().values() if "+" in version]
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


def test_hooks_run_the_pinned_ruff() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (revision,) = [
        repo["rev"] for repo in config["repos"] if repo["repo"].endswith("/ruff-pre-commit")
    ]
    assert revision == f"v{pins()['ruff']}"
