"""Comparison of the states of networks and optimizers."""

from typing import Any

import torch


def same(first: Any, second: Any) -> bool:
    """Return True if nested dicts and lists with tensors in them are equal."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=True)
        return len(first) == len(second) and all(same(a, b) for a, b in pairs)
    return bool(first == second)
