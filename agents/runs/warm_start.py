"""Initial weights from another run, or from a .zip file that Stable-Baselines3 saved.

Such a file contains pickles. Only the policy's weights are read from it: their pickle may refer to
tensors and their storages and nothing else, and PyTorch's restricted unpickler loads a copy of
exactly the bytes that were checked.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mirl.agents.runs.checkpoint_directory import CheckpointDirectory
from mirl.agents.runs.migration import current_weight_name
from mirl.configs.errors import ConfigError
from mirl.configs.stored import check_regular

SPARE_BYTES = 2**20
"""Bytes that an archive may hold in addition to the weights."""
MAX_PICKLE_BYTES = 2**18
"""Maximum size of a pickle; it holds only names and shapes."""
MEMBER = "policy.pth"
"""File of the policy's weights in an archive of SB3."""
GLOBALS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_tensor_v2"
    r"|torch (Float|Double|Long|Bool|Byte)Storage"
)
"""Global names that the pickle of a state dict refers to."""
OPCODES = frozenset(
    (
        *("PROTO", "MARK", "STOP", "GLOBAL", "BINPERSID", "REDUCE", "BUILD", "EMPTY_DICT"),
        *("SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("BINUNICODE", "BININT", "BININT1", "BININT2", "NEWTRUE", "NEWFALSE"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    )
)
"""Pickle opcodes that ``torch.save`` writes for a state dict."""


def warm_start(policy: nn.Module, path: Path) -> None:
    """Load initial weights into a policy.

    Args:
        policy: an untrained policy.
        path: a run directory, for its best checkpoint, or a .zip file that SB3 saved.

    Raises:
        ConfigError: the weights are missing or do not fit; the policy is then unchanged.
    """
    if path.suffix.lower() == ".zip":
        load_archive(policy, path)
    else:
        CheckpointDirectory(path / "checkpoints").find("best").load_weights(policy)


def load_archive(policy: nn.Module, path: Path) -> None:
    """Load the policy's weights, and nothing else, from a file that SB3's ``save`` wrote.

    Args:
        policy: an untrained policy.
        path: the .zip file.

    Raises:
        ConfigError: it does not hold weights, or they do not fit; the policy is then unchanged.
    """
    check_regular(path)
    expected = policy.state_dict()
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    # a compressed file could expand to any size
    max_bytes = n_bytes + SPARE_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            packed = _read_member(archive, MEMBER, max_bytes)
        copy = _checked_copy(packed, max_bytes)
        # weights_only is a second safeguard after the check of the pickle
        loaded = torch.load(copy, map_location="cpu", weights_only=True)
        weights = _checked_weights(loaded, expected)
    except Exception as error:  # an untrusted file can cause any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"{path} does not hold the weights of this policy: {reason}") from None
    policy.load_state_dict(weights)


def _read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # other methods cannot be stopped before they have decompressed everything they read
        raise ValueError(f"{name} is compressed by a method that SB3 does not use")
    with archive.open(name) as file:
        # reading one byte more than allowed detects data that is too long
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{name} decompresses to more than {max_bytes:,} bytes")
    return data


def _checked_copy(packed: bytes, max_bytes: int) -> io.BytesIO:
    """Copy the output of ``torch.save`` file by file, after checking each.

    Two readers may find different content in the same zip file, so the original is not loaded.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as given, zipfile.ZipFile(copy, "w") as checked:
        names = given.namelist()
        # readers of archives disagree about which of two equal names they take
        if len(set(names)) < len(names):
            raise ValueError("it holds a file twice")
        for name in names:
            data = _read_member(given, name, max_bytes)
            max_bytes -= len(data)  # the limit applies to all files together
            if name.endswith("data.pkl"):
                _check_pickle(data)
            checked.writestr(name, data)
    copy.seek(0)
    return copy


def _check_pickle(data: bytes) -> None:
    """Check, without unpickling, that a pickle holds only names, tensors and dictionaries."""
    if len(data) > MAX_PICKLE_BYTES:
        raise ValueError(f"weights only: its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
    for opcode, argument, _ in pickletools.genops(data):
        is_known = opcode.name in OPCODES
        if opcode.name == "GLOBAL":
            is_known = GLOBALS.fullmatch(str(argument)) is not None
        if not is_known:
            raise ValueError(f"weights only: its pickle has {opcode.name} {argument or ''}".strip())
        # the unpickler allocates memory for every index up to the stored one
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise ValueError(f"weights only: its pickle stores memo {argument}")


def _checked_weights(loaded: object, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check names, shapes, types and values; return the weights under their current names."""
    if not isinstance(loaded, dict):
        raise ValueError(f"expected tensors by name, got {type(loaded).__name__}")
    # the file does not state the version that wrote it, so only unknown names are migrated
    weights: dict[str, object] = {}
    for name, value in loaded.items():
        current = name
        if name not in expected:
            current = current_weight_name(str(name))
        weights[current] = value
    for name in expected:
        if name not in weights:
            raise ValueError(f"it lacks '{name}'")
    checked = {}
    for name, value in weights.items():
        if name not in expected:
            raise ValueError(f"it has '{name}', which the policy does not have")
        checked[name] = _checked_weight(name, value, expected[name])
    return checked


def _checked_weight(name: str, value: object, expected: Tensor) -> Tensor:
    wanted = f"{expected.dtype} {list(expected.shape)}"
    if not isinstance(value, Tensor):
        raise ValueError(f"'{name}' should be {wanted}, got {type(value).__name__}")
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise ValueError(f"'{name}' should be {wanted}, got {value.dtype} {list(value.shape)}")
    if not value.isfinite().all():
        raise ValueError(f"'{name}' has non-finite values")
    return value
