"""A run directory executes nothing of a module that only its configuration names."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml

import mirl
from mirl import compare as compare_command
from mirl import eval as eval_command
from mirl import train as train_command
from mirl.agents import PPO, load_policy
from mirl.configs import imports
from mirl.configs.errors import ConfigError

ROOT = Path(__file__).parents[1]
WORDS = (
    "agent.n_envs=4",
    "agent.n_steps=16",
    "agent.batch_size=64",
    "agent.n_epochs=1",
    "total_timesteps=64",
    "evaluation.episodes=2",
    "evaluation.test_episodes=2",
    *tiny_runs.NETWORK,
    "progress=false",
    "videos=false",
    "device=cpu",
    "precision=fp32",
    "name=mine",
)
PLANTED = """
from pathlib import Path
Path({marker!r}).write_text("executed")
import gymnasium as gym
from minigrid.envs import EmptyEnv

class Wrap(gym.Wrapper): ...

if "Planted/Grid-v0" not in gym.registry:
    gym.register("Planted/Grid-v0", entry_point=EmptyEnv)
"""
Edit = Callable[[dict[str, Any], str], None]


def name_as_env_id(config: dict[str, Any], module: str) -> None:
    config["task"]["tasks"][0]["env_id"] = f"{module}:Planted/Grid-v0"


def name_as_wrapper(config: dict[str, Any], module: str) -> None:
    config["task"]["tasks"][0]["wrappers"] = [f"{module}:Wrap"]


def name_as_suite_wrapper(config: dict[str, Any], module: str) -> None:
    config["task"]["wrappers"] = [{"wrapper": f"{module}:Wrap", "kwargs": {}}]


def name_as_import(config: dict[str, Any], module: str) -> None:
    config["imports"] = [module]


def name_as_part(config: dict[str, Any], module: str) -> None:
    config["fusion"]["kind"] = f"{module}:Fusion"


EDITS = [name_as_env_id, name_as_wrapper, name_as_suite_wrapper, name_as_import, name_as_part]
COMMANDS: dict[str, Callable[[Path], object]] = {
    "eval.py": lambda run: eval_command.run([f"run={run}", "checkpoint=last", "episodes=2"]),
    "video": lambda run: eval_command.run([f"run={run}", "gif=true", "episodes=2"]),
    "export": lambda run: eval_command.run([f"run={run}", "export=go to the red door"]),
    "few-shot": lambda run: eval_command.run(
        [f"run={run}", "adapt=context", "task=goto_door", "adapt_episodes=1", "episodes=2"]
    ),
    "compare.py": lambda run: compare_command.run([str(run), str(run.parent)]),
    "load_policy": lambda run: load_policy(run, "last", "cpu"),
    "train.py": lambda run: train_command.run([*WORDS, f"runs_dir={run.parent}"]),
    "start_from": lambda run: train_command.run(
        [*WORDS, f"runs_dir={run.parent}", "name=another", f"start_from={run}"]
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run; return its directory."""
    folder = tmp_path_factory.mktemp("runs")
    assert train_command.run([*WORDS, f"runs_dir={folder}"]) == 0
    return folder / "mine"


@pytest.fixture
def modules(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Plant a module in each folder from which one might be imported; return their names.

    The root of the repository is a package, so what lies in its folder runs/ has a name, too.
    """
    monkeypatch.setattr(imports, "_allowed", set())
    monkeypatch.setattr(imports, "_imported", {})
    monkeypatch.chdir(tmp_path)
    on_path = tmp_path / "on_path"
    monkeypatch.syspath_prepend(on_path)
    monkeypatch.setattr(mirl, "__path__", [*mirl.__path__, str(trained.parent)])
    places = {
        "planted_in_run": trained / "planted_in_run.py",
        "mirl.mine.planted_in_package": trained / "planted_in_package.py",
        "planted_in_folder": tmp_path / "planted_in_folder.py",
        "planted_on_path": on_path / "planted_on_path.py",
    }
    for path in places.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text(PLANTED.format(marker=str(tmp_path / "marker")))
    config = (trained / "config.yaml").read_text()
    yield list(places)
    (trained / "config.yaml").write_text(config)
    for name in places:
        sys.modules.pop(name, None)


def edit_config(run: Path, edit: Edit, module: str) -> None:
    """Let the configuration of a run name a module."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    edit(config, module)
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("edit", EDITS)
def test_named_module_is_not_executed(
    trained: Path, tmp_path: Path, modules: list[str], edit: Edit, command: str
) -> None:
    """Everything that opens a run refuses in one line, wherever the module lies."""
    original = (trained / "config.yaml").read_text()
    for module in modules:
        (trained / "config.yaml").write_text(original)
        edit_config(trained, edit, module)
        with pytest.raises(ConfigError, match=f"names code of '{module}'") as caught:
            COMMANDS[command](trained)
        message = str(caught.value)
        # the name of MIRL itself would allow whatever lies in its folder
        word = module if module.startswith("mirl.") else module.partition(".")[0]
        assert f"add import={word} " in message
        assert "\n" not in message
        assert module not in sys.modules
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("edit", [name_as_env_id, name_as_wrapper, name_as_import])
def test_import_follows_the_advice(
    trained: Path, tmp_path: Path, modules: list[str], edit: Edit
) -> None:
    """With import=, the same run directory opens."""
    edit_config(trained, edit, "planted_on_path")
    words = [f"run={trained}", "checkpoint=last", "episodes=2", "import=planted_on_path"]
    assert eval_command.run(words) == 0
    assert (tmp_path / "marker").exists()


def test_imported_module_may_be_named(trained: Path, modules: list[str]) -> None:
    """In Python, a module that was imported is as good as import=."""
    edit_config(trained, name_as_import, "planted_on_path")
    __import__("planted_on_path")
    load_policy(trained, "last", "cpu")


@pytest.mark.parametrize("edit", EDITS)
def test_zip_loader_opens_no_run(
    trained: Path, tmp_path: Path, modules: list[str], edit: Edit
) -> None:
    """SB3's load takes its own .zip files, and nothing of a run directory."""
    for module in modules:
        edit_config(trained, edit, module)
        with pytest.raises((OSError, ValueError)):
            PPO.load(trained, device="cpu")
        assert module not in sys.modules
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("eval.py", "planted_in_folder"),
        ("eval.py", "planted_on_path"),
        ("eval.py", "planted_in_run"),
        ("train.py", "planted_in_folder"),
        ("train.py", "planted_in_run"),
    ],
)
def test_command_is_refused_in_one_line(
    trained: Path, tmp_path: Path, modules: list[str], command: str, module: str
) -> None:
    """The command itself, started in the folder of the module, or with it on PYTHONPATH."""
    edit_config(trained, name_as_env_id, module)
    words = [f"run={trained}", "episodes=2"]
    if command == "train.py":
        words = [*WORDS, f"runs_dir={trained.parent}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / command), *words],
        cwd=trained if module == "planted_in_run" else tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert f"add import={module}" in done.stderr
    assert not (tmp_path / "marker").exists()
