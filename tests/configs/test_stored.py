"""Stored configurations are checked; tests/agents/runs/test_run_directory.py opens whole runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from mirl.configs.errors import ConfigError
from mirl.configs.stored import check_regular, load_stored


def test_only_regular_files_pass(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    check_regular(file)
    link = tmp_path / "link"
    link.symlink_to(file)
    for path, message in (
        (link, "is a link, expected a file"),
        (tmp_path / "no", "is missing"),
        (tmp_path, "is not a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_regular(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &b [1]\nc: *b\n", "it has an alias"),
        ("a: !!int many\n", "line 1 holds no valid int"),
        ("fusion: {kind: 'nowhere:Fusion'}\n", "names code of 'nowhere'"),
    ],
)
def test_invalid_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_stored(tmp_path)


def test_mistakes_are_reported_without_torch(tmp_path: Path) -> None:
    """A wrong run= is reported before what takes seconds to load."""
    code = f"""
import sys
from mirl.configs.errors import ConfigError
from mirl.eval import run
try:
    run(["run={tmp_path}"])
except ConfigError as error:
    print(error, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path} is not a run directory")
    assert done.stdout.endswith("False\n")
