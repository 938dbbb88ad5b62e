"""Formats of exported programs."""

import pytest
import torch
from torch import Tensor, nn

from mirl.agents.exports import formats
from mirl.agents.exports.formats import FORMATS, Format, check_installed, write_program
from mirl.configs.errors import ConfigError


class Sum(nn.Module):
    """The sum of two inputs, whose names no tool may take for those of arguments."""

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": inputs["self"] + inputs["x.y"].float(), "first": inputs["self"]}


class ConstantBatch(nn.Module):
    """A module that makes the size of the batch a constant."""

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": inputs["x"].reshape(len(inputs["x"]), -1)}


@pytest.mark.parametrize("file_format", FORMATS)
def test_names_and_batch_sizes_are_kept(file_format: Format) -> None:
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    inputs = {"self": torch.ones(3, 2), "x.y": torch.ones(3, 2, dtype=torch.int16)}
    written = write_program(Sum(), inputs, file_format)
    for size in (1, 5):
        arrays = {key: value[:1].repeat(size, 1).numpy() for key, value in inputs.items()}
        outputs = written.run(arrays)
        assert outputs["sum"].tolist() == [[2, 2]] * size
        assert outputs["first"].tolist() == [[1, 1]] * size
    assert len(written.data) > 100
    assert written.runtime.startswith("torch" if file_format == "pt2" else "onnxruntime")


def test_constant_batch_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"torch\.export cannot export .*use x\.shape\[0\]"):
        write_program(ConstantBatch(), {"x": torch.ones(3, 2)}, "pt2")


def test_missing_onnx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"needs 'onnxscript'.*pip install \"mirl\[export\]\""):
        check_installed("onnx")
    check_installed("pt2")
