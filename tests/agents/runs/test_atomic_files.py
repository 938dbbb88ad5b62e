"""Files are written atomically, and a seal detects every change."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mirl.agents.runs import atomic_files
from mirl.agents.runs.atomic_files import (
    MANIFEST,
    load_json,
    verify_manifest,
    warn_if_unwritable,
    write_bytes,
    write_json,
    write_manifest,
)
from mirl.configs.errors import ConfigError, PlainWarning


def test_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2]})
    write_json(path, {"b": "ü"})
    assert load_json(path) == {"b": "ü"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_failed_write_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(_: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(atomic_files, "flush", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "should hold a JSON object, got list"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 10**6, "nested too deeply"),
    ],
)
def test_odd_json_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_json(path)


def test_large_json_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="bytes, expected at most"):
        load_json(path)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """Return a sealed folder with two files."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 100)
    write_manifest(tmp_path)
    return tmp_path


def change(path: Path) -> None:
    path.write_text("c" * 100)


def cut(path: Path) -> None:
    path.write_text("a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(change, "SHA-256 differs"), (cut, "has 1 bytes, expected 100"), (Path.unlink, "is missing")],
)
def test_manifest_detects_damage(
    sealed: Path, damage: Callable[[Path], None], message: str
) -> None:
    verify_manifest(sealed)
    damage(sealed / "a")
    with pytest.raises(ConfigError, match=message):
        verify_manifest(sealed)
    verify_manifest(sealed, ["b"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a", "is not among the files of its manifest"),
        ("a\0", "is missing"),
        ("\ud800", "is missing"),
        ("a" * 300, "cannot be read: File name too long"),
    ],
    ids=["path", "null", "surrogate", "long"],
)
def test_odd_names_are_rejected(sealed: Path, name: str, message: str) -> None:
    """A name in the manifest that leads out of the folder, or that no file can have."""
    manifest = json.loads((sealed / MANIFEST).read_text())
    manifest["files"] = {name: manifest["files"]["a"]}
    (sealed / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=message):
        verify_manifest(sealed)


def test_unwritable_results_warn(tmp_path: Path) -> None:
    (tmp_path / "eval").touch()
    with (
        pytest.warns(PlainWarning, match=r"cannot be written to .*eval \(Not a directory\)"),
        warn_if_unwritable(tmp_path / "eval"),
    ):
        write_json(tmp_path / "eval" / "a.json", {})
