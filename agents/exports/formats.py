"""Formats of exported programs: ``torch.export`` (.pt2) and ONNX (.onnx)."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, assert_never, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from mirl.configs.errors import ConfigError

Format = Literal["pt2", "onnx"]
"""Format of a program, which is also its file extension."""
FORMATS: tuple[Format, ...] = get_args(Format)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that an export to ONNX and its check need."""

Arrays = Mapping[str, NDArray[Any]]
"""Inputs or outputs of a program, each with a first axis B."""


class WrittenProgram(NamedTuple):
    """A program as it is stored in its file."""

    data: bytes
    """Content of the file."""
    run: Callable[[Arrays], dict[str, NDArray[Any]]]
    """The program, loaded from ``data``: inputs to outputs."""
    runtime: str
    """Library that ``run`` uses, with its version."""


def check_installed(file_format: Format) -> None:
    """Raise an error if a package that a format needs is missing.

    Args:
        file_format: the format.

    Raises:
        ConfigError: if a package is missing.
    """
    if file_format == "pt2":
        return
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"an export to ONNX needs '{missing[0]}', which is not installed; "
            'pip install "mirl[export]", or export to .pt2'
        )


def write_program(
    module: nn.Module, inputs: dict[str, Tensor], file_format: Format
) -> WrittenProgram:
    """Export a module for batches of any size, and load it back.

    Args:
        module: a module that maps a dictionary of tensors to another.
        inputs: one batch of its inputs, of more than one row.
        file_format: the format.

    Raises:
        ConfigError: if the module cannot be exported; built-in parts can all be exported.
    """
    check_installed(file_format)
    exported = _trace(module, inputs)
    match file_format:
        case "pt2":
            return _to_pt2(exported)
        case "onnx":
            with torch.no_grad():
                output_names = list(module(inputs))
            return _to_onnx(exported, list(inputs), output_names)
        case _:
            assert_never(file_format)


def _trace(module: nn.Module, inputs: dict[str, Tensor]) -> ExportedProgram:
    any_batch_size = {key: {0: torch.export.Dim("batch", min=1)} for key in inputs}
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, (inputs,), dynamic_shapes=(any_batch_size,))
    except ConfigError:
        raise
    except Exception as error:  # torch raises many types, some of them private
        raise _refusal("torch.export", error) from error


def _refusal(tool: str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError(
        f"{tool} cannot export the policy: {reason} (in a part of one's own, len(x) makes the size "
        "of the batch a constant: use x.shape[0]; nothing may depend on numbers in the batch)"
    )


def _to_pt2(exported: ExportedProgram) -> WrittenProgram:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    data = buffer.getvalue()
    # load the written bytes back, so that the file itself is compared
    program = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            outputs = program({key: torch.from_numpy(value) for key, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return WrittenProgram(data, run, f"torch {torch.__version__}")


def _to_onnx(exported: ExportedProgram, inputs: list[str], outputs: list[str]) -> WrittenProgram:
    onnxruntime: Any = import_module("onnxruntime")
    try:
        with _quiet():
            # an exported program knows its arguments; torch.onnx.export(module, (inputs,)) would
            # take the dictionary for keyword arguments
            program: Any = torch.onnx.export(
                exported, input_names=inputs, output_names=outputs, dynamo=True, verbose=False
            )
            data: bytes = program.model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # torch and onnxruntime raise many types, some of them private
        raise _refusal("ONNX", error) from error

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    return WrittenProgram(data, run, f"onnxruntime {onnxruntime.__version__}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of torch's exporters, which are only about torch itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
