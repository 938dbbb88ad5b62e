"""Weights to start from: those of another run, or of an archive that Stable-Baselines3 saved.

An archive holds pickles. Of the archive nothing is read but the policy's weights; their pickle may name tensors and
what they are stored in, and nothing else; and what PyTorch's restricted unpickler gets is a copy of what was checked.
"""

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirl.agents.runs.atomic_files import check_regular
from mirl.agents.runs.checkpoint import find_checkpoint, load_weights
from mirl.configs.errors import ConfigError

SPARE = 2**20
"""Bytes that an archive may hold beside the weights."""
LONGEST_PICKLE = 2**18
"""Bytes; it holds names and shapes."""
MEMBER = "policy.pth"
"""Where SB3 puts a policy's weights."""
GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch (Float|Double|Long|Bool|Byte)Storage"
)
OPCODES = {
    *(
        "PROTO",
        "MARK",
        "STOP",
        "GLOBAL",
        "BINPERSID",
        "REDUCE",
        "BUILD",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
    ),
    *(
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "BINUNICODE",
        "BININT",
        "BININT1",
        "BININT2",
    ),
    *("NEWTRUE", "NEWFALSE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}
"""What ``torch.save`` writes for a ``state_dict``."""


def warm_start(policy: nn.Module, path: Path) -> None:
    """Give an untrained policy the weights of a run's best checkpoint, or of a .zip that SB3 saved.

    :raises ConfigError: when there are none, or not those of this policy; it is unchanged then.
    """
    if path.suffix.lower() == ".zip":
        load_archive(policy, path)
    else:
        load_weights(find_checkpoint(path / "checkpoints", "best"), policy)


def load_archive(policy: nn.Module, path: Path) -> None:
    """Load the policy's weights, and nothing else, from a file that ``save()`` of an SB3 algorithm wrote.

    :raises ConfigError: when it holds none, or not those of this policy; it is unchanged then.
    """
    check_regular(path)
    expected = policy.state_dict()
    most = sum(tensor.numel() * tensor.element_size() for tensor in expected.values()) + SPARE
    try:
        with zipfile.ZipFile(path) as archive:
            packed = _read(archive, MEMBER, most)
        found = torch.load(_checked_copy(packed, most), map_location="cpu", weights_only=True)
        _check_fits(found, expected)
    except Exception as error:  # whatever is met in a file of a stranger's
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"{path} does not hold the weights of this policy: {said}") from None
    policy.load_state_dict(found)


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # the others unfold all that they have read before they can be stopped
        raise ValueError(f"{name} is packed in a way that SB3 does not use")
    with archive.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name} unfolds to more than {most:,} bytes")
    return data


def _checked_copy(packed: bytes, most: int) -> io.BytesIO:
    """What ``torch.save`` packed, member by member as it was checked: a zip file may say two things to two readers."""
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as given, zipfile.ZipFile(copy, "w") as checked:
        names = given.namelist()
        if len(set(names)) < len(names):
            raise ValueError("it holds a file twice")
        for name in names:
            data = _read(given, name, most)
            most -= len(data)
            if name.endswith("data.pkl"):
                _check_pickle(data)
            checked.writestr(name, data)
    copy.seek(0)
    return copy


def _check_pickle(data: bytes) -> None:
    """Nothing is unpickled here; what comes after may rely on there being nothing but names, tensors and dicts."""
    if len(data) > LONGEST_PICKLE:
        raise ValueError(f"weights only: its pickle is longer than {LONGEST_PICKLE:,} bytes")
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES or (
            opcode.name == "GLOBAL" and not GLOBALS.fullmatch(str(argument))
        ):
            raise ValueError(f"weights only: its pickle has {opcode.name} {argument or ''}".strip())
        # memory would be made for all numbers up to the one that is remembered
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise ValueError(f"weights only: its pickle remembers number {argument}")


def _check_fits(found: Any, expected: dict[str, torch.Tensor]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"expected tensors by name, got {type(found).__name__}")
    for name in (*expected, *found):
        if name not in found:
            raise ValueError(f"it lacks '{name}'")
        if name not in expected:
            raise ValueError(f"it has '{name}', which the policy has not")
        theirs, ours = found[name], expected[name]
        if not isinstance(theirs, torch.Tensor) or (theirs.shape, theirs.dtype) != (
            ours.shape,
            ours.dtype,
        ):
            what = (
                f"{theirs.dtype} {list(theirs.shape)}"
                if isinstance(theirs, torch.Tensor)
                else type(theirs).__name__
            )
            raise ValueError(f"'{name}' should be {ours.dtype} {list(ours.shape)}, got {what}")
        if not theirs.isfinite().all():
            raise ValueError(f"'{name}' has numbers that are not finite")
