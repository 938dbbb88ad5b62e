"""Files that are written atomically, and folders that are sealed with checksums."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mirl.configs.errors import ConfigError, PlainWarning
from mirl.configs.stored import check_regular

JsonObject = dict[str, Any]
"""A JSON object; its values are checked where they are used."""

MANIFEST = "manifest.json"
"""File with the size and the SHA-256 of every other file of a sealed folder."""
MAX_JSON_BYTES = 2**26
"""Maximum size of a JSON file that is loaded; MIRL's own files are far smaller."""


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically.

    Args:
        path: the file.
        value: its content; anything that ``json.dumps`` takes.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Args:
        path: the file.
        text: its content.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees either the old file or the new one.

    Args:
        path: the file.
        data: its content.

    Raises:
        OSError: it cannot be written, as on a full disk; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    # always a new file, because a link of this name would point to another file
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(data)
        # before the rename, or a crash could leave the new name without its content
        flush(temporary)
        temporary.replace(path)
    except OSError:
        # a new run directory with a partial file would be rejected as a foreign folder
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)  # the rename itself is an entry of the folder


def flush(path: Path) -> None:
    """Force a file's content, or a folder's list of entries, onto the disk.

    Args:
        path: the file or folder.
    """
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush folders
    # folders cannot be opened for writing, but Windows flushes only files that are
    mode = os.O_RDWR
    if path.is_dir():
        mode = os.O_RDONLY
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_json(path: Path) -> JsonObject:
    """Load a JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        ConfigError: the file is missing, is a link, is too large, or does not hold a JSON object.
    """
    try:
        check_regular(path)
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, expected at most {MAX_JSON_BYTES:,}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value


def write_manifest(folder: Path) -> None:
    """Seal a folder: write its manifest and force all of its files onto the disk.

    Args:
        folder: the folder; it must contain only files.
    """
    paths = sorted(folder.iterdir())
    files = {}
    for path in paths:
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_json(folder / MANIFEST, {"files": files})
    # safetensors does not flush the files that it writes
    for path in paths:
        flush(path)
    flush(folder)


def verify_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """Check that files of a sealed folder are unchanged since it was sealed.

    Args:
        folder: the sealed folder.
        names: files to check; None for all that the manifest lists.

    Raises:
        ConfigError: a file is missing, is a link, or differs from the manifest; the error says how.
    """
    files = load_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise ConfigError(f"{folder / MANIFEST} should list files, got {type(files).__name__}")
    if names is None:
        names = files
    for name in names:
        path = folder / name
        expected = files.get(name)
        # a name with a path in it would point outside of the folder
        if not isinstance(expected, dict) or Path(name).name != name:
            raise ConfigError(f"{path} is not among the files of its manifest")
        try:
            check_regular(path)
            size = path.stat().st_size
        except OSError as error:  # for example, a name that is not a valid file name
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        # check the size first, because hashing a large file is slow
        if size != expected.get("bytes"):
            raise ConfigError(f"{path} has {size:,} bytes, expected {expected.get('bytes')!r}")
        if _sha256(path) != expected.get("sha256"):
            raise ConfigError(
                f"{path} was changed or damaged: its SHA-256 differs from the manifest's"
            )


def make_folder(path: Path) -> None:
    """Create a folder inside a run directory if it does not exist.

    Args:
        path: the folder; its parents are created, too.

    Raises:
        ConfigError: it is a link, which could point anywhere.
        OSError: it cannot be created.
    """
    if path.is_symlink():
        raise ConfigError(f"{path} is a link, expected a folder; remove the link")
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def warn_if_unwritable(folder: Path) -> Iterator[None]:
    """Turn an error while results are written into a warning, because they are printed anyway.

    Args:
        folder: folder of the results.
    """
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"the results cannot be written to {folder} ({error.strerror})",
            PlainWarning,
            stacklevel=3,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
