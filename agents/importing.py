"""Weights to start from: those of another run, or of an archive that Stable-Baselines3 saved.

An archive holds pickles. Of those nothing is loaded but tensors, by PyTorch's restricted unpickler, and of the archive
nothing but the policy's weights.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirl.agents.checkpoint import find_checkpoint, load_weights
from mirl.agents.files import check_regular
from mirl.configs.errors import ConfigError

SPARE = 2**20
"""Bytes that an archive may hold beside the weights."""
MEMBER = "policy.pth"
"""Where SB3 puts a policy's weights."""


def start_from(policy: nn.Module, path: Path) -> None:
    """Give an untrained policy the weights of a run's best checkpoint, or of a .zip that SB3 saved.

    :raises ConfigError: when there are none, or not those of this policy; it is unchanged then.
    """
    if path.suffix == ".zip":
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
        with zipfile.ZipFile(io.BytesIO(packed)) as weights:
            if sum(member.file_size for member in weights.infolist()) > most:
                raise ValueError(f"{MEMBER} unfolds to more than {most:,} bytes")
        found = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
        _check_fits(found, expected)
    except Exception as error:  # whatever the restricted unpickler meets in a file of a stranger's
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"{path} does not hold the weights of this policy: {said}") from None
    policy.load_state_dict(found)


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name} unfolds to more than {most:,} bytes")
    return data


def _check_fits(found: Any, expected: dict[str, torch.Tensor]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"expected tensors by name, got {type(found).__name__}")
    for name in (*expected, *found):
        if name not in found:
            raise ValueError(f"it lacks '{name}'")
        if name not in expected:
            raise ValueError(f"it has '{name}', which the policy has not")
        theirs, ours = found[name], expected[name]
        if not isinstance(theirs, torch.Tensor) or (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
            what = f"{theirs.dtype} {list(theirs.shape)}" if isinstance(theirs, torch.Tensor) else type(theirs).__name__
            raise ValueError(f"'{name}' should be {ours.dtype} {list(ours.shape)}, got {what}")
