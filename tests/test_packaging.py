"""Contents of the wheel, the list of packages, and the pinned versions."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "configs", "envs", "policies")
ROOT_MODULES = {"__init__.py", "__main__.py", "train.py", "eval.py", "compare.py"}


def modules() -> list[Path]:
    """Return the Python files of the package's folders."""
    files: list[Path] = []
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    return files


def pyproject() -> dict[str, Any]:
    """Return the content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with a wheel and a source distribution.

    They are built from a copy: a build in place leaves a build/ folder that the next build reads.
    """
    source = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, source)
        elif path.name in {*FOLDERS, "tests", "benchmarks", "docs"}:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta as b; b.build_wheel('.'); b.build_sdist('.')"
    result = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return source


@pytest.fixture(scope="module")
def wheel(built: Path) -> set[str]:
    """Return the names of the files in the wheel."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_sdist_has_what_readme_names(built: Path) -> None:
    """Every file and folder that README.md links to or lists is in the source distribution."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(((?!https?:)[^)#]+)", readme))
    named |= set(re.findall(r"^\| `(\w+/)`", readme, re.M)) | {"train.py", "eval.py", "compare.py"}
    named |= {"constraints.txt", "Makefile", "configs/task/goto_door.yaml"}
    assert {name.rstrip("/") for name in named} <= names


def test_wheel_has_exactly_the_modules(wheel: set[str]) -> None:
    expected = {f"mirl/{name}" for name in ROOT_MODULES}
    for path in modules():
        expected.add(f"mirl/{path.relative_to(ROOT).as_posix()}")
    assert {name for name in wheel if name.endswith(".py")} == expected


def test_packages_match_the_folders() -> None:
    """Every folder with modules is listed as a package in pyproject.toml, and no other is."""
    expected = {"mirl"}
    for path in modules():
        expected.add(".".join(["mirl", *path.relative_to(ROOT).parent.parts]))
        assert (path.parent / "__init__.py").exists()
    packages = pyproject()["tool"]["setuptools"]["packages"]
    assert packages == sorted(expected)


def test_wheel_has_every_preset(wheel: set[str]) -> None:
    presets = {
        f"mirl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert any(name.startswith("mirl/configs/task/") for name in presets)
    assert {name for name in wheel if name.endswith(".yaml")} == presets


def test_wheel_has_type_marker_and_license(wheel: set[str]) -> None:
    assert "mirl/py.typed" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_wheel_has_no_tests(wheel: set[str]) -> None:
    assert not [name for name in wheel if {"tests", "benchmarks", "docs"} & set(name.split("/"))]


def canonical(requirement: str) -> str:
    """Return the normalized name: ``stable-baselines3`` for ``Stable_Baselines3>=2``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def pins() -> dict[str, str]:
    """Return the pinned versions of constraints.txt by the normalized name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in requirements)
    return {canonical(line): line.split("==")[1] for line in requirements}


def test_every_requirement_is_pinned() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["fast"], *extras["dev"]]
    required = {canonical(name) for name in requirements}
    assert required - {"mirl"} <= set(pins())


def test_pins_fit_every_torch_build() -> None:
    """No pin is for one build of torch, with or without CUDA."""
    assert not [version for version in pins().values() if "+" in version]
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize(
    ("repository", "package"), [("ruff-pre-commit", "ruff"), ("codespell", "codespell")]
)
def test_hooks_use_pinned_versions(repository: str, package: str) -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (revision,) = [
        repo["rev"] for repo in config["repos"] if repo["repo"].endswith(f"/{repository}")
    ]
    assert revision == f"v{pins()[package]}"
