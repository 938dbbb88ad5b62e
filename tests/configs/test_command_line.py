"""``--help``, ``--version`` and errors are plain texts, and none of them imports torch."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mirl.configs.command_line import command, console_entry, print_any_character
from mirl.configs.commands.help import train_help
from mirl.configs.errors import ConfigError, RunError

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


@pytest.mark.parametrize(
    ("module", "argv", "code"),
    [
        ("mirl.train", ["--help"], 0),
        ("mirl.train", ["seed=1", "fusion=flim", "-h"], 0),
        ("mirl.train", ["--help", "agnt"], 2),
        ("mirl.eval", ["--version"], 0),
        ("mirl.__main__", ["eval", "--version"], 0),
        ("mirl.__main__", ["trail"], 2),
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
        assert report["out"].startswith(("Train", "Evaluate", "mirl "))
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


def test_unwritable_file_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry(monkeypatch, PermissionError(13, "Permission denied", "runs/x.pt2")) == 1
    assert capsys.readouterr() == ("", "error: [Errno 13] Permission denied: 'runs/x.pt2'\n")


def test_closed_pipe_ends_quietly() -> None:
    """A reader that ends early, such as head, causes no traceback."""
    program = "import sys; from mirl.train import main; sys.argv[1:] = ['--help']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"")


def test_ctrl_c_exits_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C outside of the training loop ends the command with exit code 130."""
    assert run_entry(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "stopped\n")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8", "cp437", "shift_jis"])
def test_every_encoding_prints_help(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of any encoding gets the text, with other spellings where it needs them."""
    pages = [train_help(words) for words in ([], ["options"], ["agent=ppo"], ["fusion"])]
    text = "".join(pages)
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding))
    print_any_character()
    sys.stdout.write(text)
    sys.stdout.flush()
    printed = data.getvalue().decode(encoding)
    assert ("λ of gen" in printed) or ("lambda of gen" in printed)
    if encoding == "utf-8":
        assert printed == text


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
