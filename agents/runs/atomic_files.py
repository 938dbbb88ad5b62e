"""Files that appear whole or not at all, and folders that tell when they are no longer what was written."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mirl.configs.errors import ConfigError

MANIFEST = "manifest.json"
"""Of a sealed folder: the length and the SHA-256 of each other file."""
MAX_JSON_BYTES = 2**26
"""Bytes; no JSON file of ours comes near, and a larger one is not read."""


def write_json(path: Path, value: Any) -> None:
    """A JSON file, written atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, written atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """A file's content, or a folder's entries, are on the disk when this returns."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush a directory by
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    :raises ConfigError: when the file holds none.
    """
    try:
        check_regular(path)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(
                f"it has {path.stat().st_size:,} bytes, expected at most {MAX_JSON_BYTES:,}"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value


def write_manifest(folder: Path) -> None:
    """Write a folder's manifest, and put all of it on the disk."""
    files = sorted(folder.iterdir())
    described = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    write_json(folder / MANIFEST, {"files": described})
    for path in files:
        flush(path)
    flush(folder)


def verify_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """Check that files of a sealed folder are what was written: these, or all.

    :raises ConfigError: naming the first that is not, and how it differs.
    """
    described = load_json(folder / MANIFEST).get("files")
    if not isinstance(described, dict):
        raise ConfigError(f"{folder / MANIFEST} should list files, got {type(described).__name__}")
    for name in described if names is None else names:
        path, expected = folder / name, described.get(name)
        if not isinstance(expected, dict) or Path(name).name != name:
            raise ConfigError(f"{path} is not among the files of its manifest")
        check_regular(path)
        if path.stat().st_size != expected.get("bytes"):
            raise ConfigError(
                f"{path} has {path.stat().st_size:,} bytes, expected {expected.get('bytes')!r}"
            )
        if _sha256(path) != expected.get("sha256"):
            raise ConfigError(
                f"{path} is not what was written: its SHA-256 differs from its manifest's"
            )


def check_regular(path: Path) -> None:
    """Check that a path is a file and no link, which could lead anywhere.

    :raises ConfigError: when it is missing, or something else.
    """
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; expected a file")
    if not path.is_file():
        raise ConfigError(f"{path} is {'no file' if path.exists() else 'missing'}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
