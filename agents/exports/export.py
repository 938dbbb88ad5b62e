"""Export of a policy: ``python eval.py run=runs/x export=policy.onnx``.

``exports/policy.onnx`` or ``exports/policy.pt2`` holds the policy with its context as an input;
``exports/go-to-the-red-door.onnx`` holds it for one mission. The JSON file beside it describes the
inputs and outputs, the tokenizer, and the check of the file. A .pt2 file is code: load it only from
sources whose programs you would run.
"""

from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mirl.agents.builder import Policy
from mirl.agents.comparison.machine import versions
from mirl.agents.exports.formats import check_installed, write_program
from mirl.agents.exports.round_trip import (
    ProgramAndPolicy,
    RoundTrip,
    check_round_trip,
    random_observations,
)
from mirl.agents.exports.target import Target, find_context, parse_target
from mirl.agents.exports.tokenizer import tokenizer_table
from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.atomic_files import make_folder, write_bytes, write_json
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.configs.schema import EvalConfig, ResolvedConfig
from mirl.envs import choose_backend
from mirl.envs.suite_spaces import suite_spaces
from mirl.envs.texts.codec import suite_codec
from mirl.policies.programs import START_KEY, STATE_KEY, Program, build_program

TRACED_ROWS = 2
"""Rows of the batch that is traced; torch would treat a single row as a constant size."""


class Export(NamedTuple):
    """A program that was written."""

    path: Path
    parameters: int
    """Parameters of the program."""
    policy_parameters: int
    """Parameters of the policy."""
    check: RoundTrip
    """Figures of the comparison with the policy."""


class TensorDescription(TypedDict):
    """Shape and type of a batch, for the JSON file."""

    shape: list[str | int]
    dtype: str


def export_run(run: RunDirectory, checkpoint: Checkpoint, config: EvalConfig) -> Export:
    """Export the policy of a checkpoint as ``config.export`` specifies.

    Args:
        run: the run.
        checkpoint: one of its checkpoints.
        config: options of the export; ``run`` and ``checkpoint`` are not read.

    Returns:
        The program that was written.

    Raises:
        ConfigError: there is no such task, the policy cannot be exported, or the outputs of the
            program differ from those of the policy.
    """
    target = parse_target(config.export)
    check_installed(target.format)
    training = run.config
    fixed = _fixed_context(target, training)
    backend = choose_backend(training.task, config.backend)
    space, _ = suite_spaces(training.task, backend)
    # the program is for the CPU; ``torch.export`` records the device
    policy = restore_policy(training, checkpoint, "cpu")
    program = build_program(policy, fixed or None)
    inputs = _example(program, space)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    written = write_program(program, tensors, target.format)

    # nothing is written before the bytes of the file have passed the check
    path = run.results_dir / "exports" / target.file_name
    replaced = dict(fixed)
    if fixed and TASK_KEY not in fixed:
        # with a value per task (PopArt), use that of the first, unless the context names the task
        replaced[TASK_KEY] = np.int64(0)
    pair = ProgramAndPolicy(written.run, program, policy, replaced)
    try:
        check = check_round_trip(pair, training, space, backend=backend, seed=config.seed)
    except ConfigError:
        _delete_earlier(path)
        raise
    make_folder(path.parent)
    write_bytes(path, written.data)
    description: dict[str, object] = {
        **_describe_target(target, training, policy),
        "run": run.path.name,
        "checkpoint": checkpoint.name,
        "inputs": {name: describe(array) for name, array in inputs.items()},
        "outputs": {name: describe(array) for name, array in written.run(inputs).items()},
    }
    table = tokenizer_table(suite_codec(training.task), space, program.keys)
    if table is not None:
        description["tokenizer"] = table
    result = Export(path, count_all_parameters(program), count_all_parameters(policy), check)
    description |= {
        **_describe_actions(policy.action_space),
        "parameters": result.parameters,
        "check": {"runtime": written.runtime, **check._asdict()},
        "mirl": versions().get("mirl"),
        "torch": torch.__version__,
    }
    write_json(_description_path(path), description)
    return result


def _describe_actions(space: spaces.Space[Any]) -> dict[str, object]:
    """Return the action space as text, and the bounds of a bounded Box as lists."""
    description: dict[str, object] = {"action_space": str(space)}
    if isinstance(space, spaces.Box) and space.is_bounded():
        description |= {"action_low": space.low.tolist(), "action_high": space.high.tolist()}
    return description


def _fixed_context(target: Target, training: ResolvedConfig) -> dict[str, ArrayLike]:
    """Return the fixed context of an export by its key; empty if the context is an input."""
    if target.is_whole_policy:
        return {}
    context = find_context(target.name, training.context, training.task)
    # a mission or a task id has one key
    [key] = training.context.keys
    return {key: context}


def _delete_earlier(path: Path) -> None:
    """Delete an earlier export of the same name, which could be mistaken for this one."""
    if path.parent.is_symlink():  # never change files outside of the run directory
        return
    for stale in (path, _description_path(path)):
        stale.unlink(missing_ok=True)


def _description_path(path: Path) -> Path:
    """Return the path of the JSON file beside a program."""
    return path.with_name(f"{path.name}.json")


def _describe_target(target: Target, training: ResolvedConfig, policy: Policy) -> dict[str, object]:
    """Return the context of an export for the JSON file, and with PopArt the task of the value."""
    keys = training.context.keys
    if target.is_whole_policy:
        return {"context": list(keys)}
    description: dict[str, object] = {keys[0]: target.name}
    if getattr(policy, "popart", False) and keys[0] != TASK_KEY:
        description["value_of_task"] = training.task.tasks[0].name
    return description


def _example(program: Program, space: spaces.Dict) -> dict[str, NDArray[Any]]:
    """Return a small batch of the inputs of a program."""
    observations = random_observations(space, 0)
    example: dict[str, NDArray[Any]] = {}
    for key in program.keys:
        if key == STATE_KEY and program.state_dim:
            example[key] = np.zeros((TRACED_ROWS, program.state_dim), np.float32)
        elif key == START_KEY and program.state_dim:
            example[key] = np.ones(TRACED_ROWS, np.bool_)
        else:
            example[key] = observations[key][:TRACED_ROWS]
    return example


def describe(array: NDArray[Any]) -> TensorDescription:
    """Describe a batch for the JSON file.

    Args:
        array: the batch, (B, ...).

    Returns:
        Its shape and type.
    """
    return {"shape": ["batch", *array.shape[1:]], "dtype": str(array.dtype)}


def count_all_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, frozen ones included.

    Args:
        module: the module.

    Returns:
        The number.
    """
    return sum(parameter.numel() for parameter in module.parameters())
