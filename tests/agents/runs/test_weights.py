"""Weights are loaded strictly: by name, shape and type, each exactly once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from mirl.agents.runs.migration import SCHEMA_VERSION
from mirl.agents.runs.weights import load_weights


class Shared(nn.Module):
    """A module whose layer has two names, like a shared features extractor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = self.first
        self.read = nn.Linear(1, 1, bias=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.safetensors"


def test_shared_layer_is_saved_once(path: Path) -> None:
    """A layer with two names is in the file once and loads under both."""
    saved = Shared()
    save_model(saved, str(path))
    loaded = Shared()
    load_weights(path, loaded, SCHEMA_VERSION)
    assert torch.equal(loaded.first.weight, saved.first.weight)
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded.read.weight, saved.read.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first.bias": None}, "the weight 'first.bias' is missing"),
        ({"other": torch.zeros(1)}, "the policy has no weight 'other'"),
        ({"first.bias": torch.zeros(4)}, r"'first.bias' should be F32 \[3\], got F32 \[4\]"),
        ({"first.bias": torch.zeros(3).half()}, r"should be F32 \[3\], got F16 \[3\]"),
        ({"second.bias": torch.ones(3)}, "it holds a weight under two of its names"),
    ],
)
def test_unfit_weights_are_rejected(
    path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """Weights that do not fit are rejected and leave the policy unchanged."""
    policy = Shared()
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    weights: dict[str, torch.Tensor | None] = {
        "first.weight": torch.zeros(3, 2),
        "first.bias": torch.zeros(3),
        "read.weight": torch.zeros(1, 1),
    }
    weights |= changes
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=message):
        load_weights(path, policy, SCHEMA_VERSION)
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, before[name])


def test_old_names_are_migrated(path: Path) -> None:
    class Current(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(1, 1)

    save_file({"read.weight": torch.ones(1, 1), "read.bias": torch.ones(1)}, path)
    policy = Current()
    with pytest.raises(ValueError, match=r"the policy has no weight 'read\."):
        load_weights(path, policy, SCHEMA_VERSION)
    load_weights(path, policy, 2)
    assert torch.equal(policy.output.weight, torch.ones(1, 1))
