"""``--help`` is complete, and neither it nor a mistake waits for torch."""

import json
import re
import subprocess
import sys

import pytest

from mirl.configs.command_line import console_entry, eval_help, train_help
from mirl.configs.compose import GROUPS, fields_of, presets
from mirl.configs.errors import ConfigError
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
print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "modules": sorted(sys.modules)}))
"""


def options(model: type[TrainConfig] | type[EvalConfig]) -> list[str]:
    return sorted({name for name in fields_of([model]) if not name.endswith(".kind")})


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_and_preset_is_listed(group: str) -> None:
    (line,) = re.findall(rf"^  {group} +(\S.*)$", train_help(), re.MULTILINE)
    assert line.replace("*", "").split() == presets(group)


def test_the_default_presets_are_marked() -> None:
    assert re.findall(r"(\w+)\*  ?|(\w+)\*$", train_help(), re.MULTILINE)
    for preset in ("goto_door*", "bilinear*", "mission*", "grid*", "ppo*"):
        assert f" {preset}" in train_help()


@pytest.mark.parametrize("option", options(TrainConfig))
def test_every_option_of_train_is_listed_and_explained(option: str) -> None:
    assert re.search(rf"^ +{re.escape(option)}(:| \(.*\)) +\S", train_help(), re.MULTILINE)


@pytest.mark.parametrize("option", options(EvalConfig))
def test_every_option_of_eval_is_listed_and_explained(option: str) -> None:
    assert re.search(rf"^ +{option} \(.*\) +\S", eval_help(), re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "argv", "code"),
    [
        ("mirl.train", ["--help"], 0),
        ("mirl.train", ["seed=1", "-h"], 0),
        ("mirl.eval", ["--help"], 0),
        ("mirl.train", ["fusoin=film"], 2),
        ("mirl.train", ["agent.batch_size=1000"], 2),
        ("mirl.eval", ["chekpoint=best"], 2),
    ],
)
def test_help_and_mistakes_never_import_torch(module: str, argv: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module, *argv], capture_output=True, check=True, timeout=60
    )
    said = json.loads(done.stdout)
    assert said["code"] == code
    assert (
        said["out"].startswith(("Train", "Evaluate"))
        if code == 0
        else said["err"].startswith("error: ")
    )
    assert not {*HEAVY} & {*said["modules"]}


def entry(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> int:
    def run(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1"])
    return console_entry(run, train_help)


def test_a_mistake_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(monkeypatch, ConfigError("no such thing")) == 2
    assert capsys.readouterr() == ("", "error: no such thing\n")


def test_ctrl_c_outside_of_training_leaves_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "stopped\n")


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        entry(monkeypatch, ZeroDivisionError())
