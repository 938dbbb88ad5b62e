"""Contents of the wheel, the list of packages, and the pinned versions."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "configs", "envs", "policies")
COMMANDS = {"train.py", "eval.py", "compare.py", "watch.py", "play.py", "card.py"}
ROOT_MODULES = {"__init__.py", "__main__.py", *COMMANDS}

TINY = [
    "agent.n_envs=2",
    "agent.n_steps=64",
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "encoder.channels=8",
    "encoder.features_dim=16",
    "context.dim=8",
    "backend=gymnasium",
    "device=cpu",
    "progress=false",
    "videos=false",
    "total_timesteps=128",
    "evaluation.episodes=1",
    "evaluation.test_episodes=1",
]
"""Options of a run of a second."""


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
    configs = {name for name in wheel if name.startswith("mirl/configs/")}
    assert {name for name in configs if name.endswith(".yaml")} == presets


def test_wheel_has_pretrained_agents(wheel: set[str]) -> None:
    folder = ROOT / "agents" / "pretrained"
    files = {f"mirl/{p.relative_to(ROOT).as_posix()}" for p in folder.rglob("*") if p.is_file()}
    assert any(name.endswith("policy.safetensors") for name in files)
    assert {name for name in wheel if name.startswith("mirl/agents/pretrained/")} == files


def test_wheel_has_type_marker_and_license(wheel: set[str]) -> None:
    assert "mirl/py.typed" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_wheel_has_no_tests(wheel: set[str]) -> None:
    assert not [name for name in wheel if {"tests", "benchmarks", "docs"} & set(name.split("/"))]


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the commands of a new environment, where only the wheel and its dependencies are.

    The dependencies are those of this environment. A .pth file names their folder, whose own .pth
    files, such as that of MIRL's editable installation, do not count there.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    here = sysconfig.get_path("purelib")
    there = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(there) / "dependencies.pth").write_text(f"{here}\n", encoding="utf-8")
    (path,) = built.glob("*.whl")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--ignore-installed"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", *options, path]
    subprocess.run(pip, check=True)
    return python.parent


@pytest.mark.skipif(os.name == "nt", reason="environments have other folders there")
def test_installed_wheel_trains_and_evaluates(installed: Path, tmp_path: Path) -> None:
    """The wheel has all that its commands need, away from the clone."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)

    def output(command: str, *words: str) -> str:
        line = [installed / command, *words]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    where = output("python", "-c", "import mirl; print(mirl.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    assert "Train settings over seeds" in output("mirl-compare", "--help")
    assert "Play a task yourself" in output("mirl-play", "--help")
    assert "Watch a trained agent" in output("mirl-watch", "--help")
    assert "After 128 timesteps" in output("mirl-train", *TINY, "name=tiny")
    table = output("mirl-eval", "run=runs/tiny", "episodes=2", "n_envs=1")
    assert "tiny, best checkpoint, on unseen episodes" in table
    table = output("mirl-eval", "run=pretrained:goto_door", "episodes=2", "n_envs=1")
    assert "goto_door, best checkpoint, on unseen episodes" in table
    assert (tmp_path / "runs" / "pretrained-goto_door" / "eval").is_dir()


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
    requirements = [*project["dependencies"], *extras["fast"], *extras["sweep"], *extras["dev"]]
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
