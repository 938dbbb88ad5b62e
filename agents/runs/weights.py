"""Weights of a policy, loaded strictly from a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mirl.agents.runs.migration import FIRST_WITH_CURRENT_NAMES, migrate_weight_names
from mirl.configs.stored import check_regular

_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.uint8: "U8",
}

ValueT = TypeVar("ValueT")


def load_weights(path: Path, policy: nn.Module, version: int) -> None:
    """Load weights into a policy, on its own device.

    Args:
        path: a safetensors file.
        policy: a policy with exactly these weights, by name, shape and type.
        version: schema version of the checkpoint that the file belongs to.

    Raises:
        ValueError: a weight is missing, unknown, or of another shape or type; the policy is
            then unchanged.
        OSError: the file cannot be read.
        SafetensorError: the file is damaged.
    """
    expected = policy.state_dict()
    _check_header(path, expected, version)
    weights = _with_current_names(load_file(path), version)
    _check_complete(weights, expected)
    # not strict, because a tensor with several names is stored under only one of them
    policy.load_state_dict(weights, strict=False)


def _check_header(path: Path, expected: Mapping[str, Tensor], version: int) -> None:
    """Check names, shapes and types in the header of a file, before any weight is loaded.

    ``load_state_dict`` would convert a weight of another type silently.
    """
    check_regular(path)
    with safe_open(path, framework="pt") as file:
        saved_names = {name: name for name in list(file.keys())}
        for name, saved_name in _with_current_names(saved_names, version).items():
            tensor = expected.get(name)
            if tensor is None:
                raise ValueError(f"the policy has no weight '{name}'")
            shape = list(tensor.shape)
            dtype = _SAFETENSORS_DTYPES.get(tensor.dtype)
            found = file.get_slice(saved_name)
            if found.get_shape() != shape or found.get_dtype() != dtype:
                raise ValueError(
                    f"'{name}' should be {dtype} {shape}, "
                    f"got {found.get_dtype()} {found.get_shape()}"
                )


def _with_current_names(weights: dict[str, ValueT], version: int) -> dict[str, ValueT]:
    if version >= FIRST_WITH_CURRENT_NAMES:
        return weights
    return migrate_weight_names(weights)


def _check_complete(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that every weight is present once, under one of its names.

    A features extractor shared by actor and critic appears under several names in a state dict.
    """
    loaded = {_identity(expected[name]) for name in weights}
    if len(loaded) < len(weights):
        raise ValueError("it holds a weight under two of its names")
    for name, tensor in expected.items():
        if name not in weights and _identity(tensor) not in loaded:
            raise ValueError(f"the weight '{name}' is missing")


def _identity(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...], torch.dtype]:
    """Return a key that is equal for two names of the same tensor."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
