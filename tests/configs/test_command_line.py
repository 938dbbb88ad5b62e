"""``--help`` is complete; neither it nor an error message imports torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mirl.configs.command_line import (
    command,
    compare_help,
    console_entry,
    eval_help,
    train_help,
    typed_name,
)
from mirl.configs.comparison import OWN_WORDS
from mirl.configs.compose import GROUPS, option_names, presets
from mirl.configs.errors import ConfigError, RunError
from mirl.configs.schema import EvalConfig, TrainConfig

HEAVY = ("torch", "gymnasium", "stable_baselines3", "minigrid", "envpool", "tensorboard")
PROBE = """
import contextlib, importlib, io, json, sys
module, *argv = sys.argv[1:]
sys.argv[1:] = argv
out, err = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
        importlib.import_module(module).main()
    except SystemExit as exit:
        code = exit.code
print(json.dumps({
    "code": code,
    "out": out.getvalue(),
    "err": err.getvalue(),
    "modules": sorted(sys.modules),
}))
"""
"""Program that runs a command and reports its output and the imported modules."""


def options(model: type[TrainConfig] | type[EvalConfig]) -> list[str]:
    """Return the options of a command that users set."""
    names = {name for name in option_names([model]) if not name.endswith(".kind")}
    return sorted(typed_name(name) for name in names)


@pytest.mark.parametrize("group", GROUPS)
def test_help_lists_groups_and_presets(group: str) -> None:
    (line,) = re.findall(rf"^  {group} +(\S.*)$", train_help(), re.MULTILINE)
    assert line.replace("*", "").split() == presets(group)


def test_help_lists_own_presets(tmp_path: Path) -> None:
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "narrow.yaml").write_text("kind: low_rank\n")
    assert re.search(r"^  fusion .* narrow", train_help(["--config-dir", str(tmp_path)]), re.M)
    assert "narrow" not in train_help(["--config-dir", "nowhere"])


def test_default_presets_are_marked() -> None:
    assert re.findall(r"(\w+)\*  ?|(\w+)\*$", train_help(), re.MULTILINE)
    for preset in ("goto_door*", "auto*", "mission*", "grid*", "ppo*"):
        assert f" {preset}" in train_help()


@pytest.mark.parametrize("option", options(TrainConfig))
def test_train_help_explains_option(option: str) -> None:
    assert re.search(rf"^ +{re.escape(option)}(:| \(.*\)) +\S", train_help(), re.MULTILINE)


@pytest.mark.parametrize("option", options(EvalConfig))
def test_eval_help_explains_option(option: str) -> None:
    assert re.search(rf"^ +{option} \(.*\) +\S", eval_help(), re.MULTILINE)


@pytest.mark.parametrize("option", ["task", "settings.NAME", *OWN_WORDS])
def test_compare_help_explains_option(option: str) -> None:
    assert re.search(rf"^ +{re.escape(option)} \(.*\) +\S", compare_help(), re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "argv", "code"),
    [
        ("mirl.train", ["--help"], 0),
        ("mirl.train", ["seed=1", "-h"], 0),
        ("mirl.eval", ["--help"], 0),
        ("mirl.compare", ["--help"], 0),
        ("mirl.compare", ["fusion=concat,flim"], 2),
        ("mirl.train", ["fusoin=film"], 2),
        ("mirl.train", ["agent.batch_size=1000"], 2),
        ("mirl.eval", ["chekpoint=best"], 2),
    ],
)
def test_help_and_errors_skip_torch(module: str, argv: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module, *argv], capture_output=True, check=True, timeout=60
    )
    report = json.loads(done.stdout)
    assert report["code"] == code
    if code == 0:
        assert report["out"].startswith(("Train", "Evaluate"))
    else:
        assert report["err"].startswith("error: ")
    assert not {*HEAVY} & {*report["modules"]}


def run_entry(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> int:
    """Return the exit code of a command that raises."""

    def run(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1"])
    return console_entry(run, train_help)


def test_config_error_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry(monkeypatch, ConfigError("no such thing")) == 2
    assert capsys.readouterr() == ("", "error: no such thing\n")


def test_run_error_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry(monkeypatch, RunError("disk full")) == 1
    assert capsys.readouterr() == ("", "error: disk full\n")


def test_ctrl_c_exits_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C outside of the training loop ends the command with exit code 130."""
    assert run_entry(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "stopped\n")


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_entry(monkeypatch, ZeroDivisionError())


def test_command_path_is_relative_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command inside the current folder has a relative path, any other an absolute one."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert command("tensorboard") == ".venv/bin/tensorboard"
    monkeypatch.chdir(tmp_path.parent)
    assert command("tensorboard") == f"{tmp_path.name}/.venv/bin/tensorboard"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("tensorboard") == str(tmp_path / ".venv" / "bin" / "tensorboard")
