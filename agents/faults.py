"""What goes wrong while training: numbers that are none, and memory that is not to be had.

An update that makes weights NaN or infinite is undone, a gradient step that would is not taken; the cause is found and
kept.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from mirl.agents.runs.atomic_files import write_json
from mirl.agents.runs.checkpoint import get_optimizers
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig

EVIDENCE = "evidence.safetensors"
"""File of what an update or a gradient step was made from."""
MAX_GRADIENT_NORM = 1e18
"""Norm of a tensor's. Adam squares gradients, and a square that is infinite in float32 stops its weight for ever."""
INVALID_PARAMETER_MESSAGE = "Expected parameter"
"""How torch's distributions begin to say that their parameters are no numbers."""


class NonFiniteError(RunError):
    """An update was undone, or a gradient step not taken, since it would have made numbers that are none.

    :param evidence: the tensors that it was made from.
    """

    def __init__(self, message: str, evidence: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.evidence = evidence

    def save(self, folder: Path) -> Path:
        """Write the message and the evidence into a new folder; returns it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in self.evidence.items()},
            folder / EVIDENCE,
        )
        write_json(folder / "fault.json", {"message": str(self)})
        return folder


@contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Within it, memory that is not to be had is a ``RunError`` that says what takes it and may be smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(
            error, MemoryError | torch.OutOfMemoryError
        ) and "can't allocate memory" not in str(error):
            raise
        agent = config.agent
        shown = [
            f"agent.{name}={getattr(agent, name):,}"
            for name in ("n_envs", "n_steps", "buffer_size", "batch_size")
            if hasattr(agent, name)
        ]
        networks = [
            "encoder",
            "context.dim",
            "agent.net_arch",
            *([] if config.memory.kind == "none" else ["memory"]),
        ]
        said = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(
            f"out of memory: {said}\nWhat may be smaller: {', '.join(shown)}, the networks ({', '.join(networks)}). "
            "Checkpoints that were written are kept"
        ) from error


@contextmanager
def explain_non_finite(agent: BaseAlgorithm) -> Iterator[None]:
    """Within it, a policy whose weights are finite numbers and whose outputs are not is a ``RunError``."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(INVALID_PARAMETER_MESSAGE):
            raise
        raise RunError(
            f"the policy's outputs after {agent.num_timesteps:,} timesteps are no finite numbers; a smaller "
            "agent.learning_rate may help"
        ) from error


def guard_steps(agent: BaseAlgorithm, *, skip: bool) -> None:
    """Let no optimizer of an algorithm of SB3's take a step along gradients that are no finite numbers.

    :param skip: warn, and go on without that step; else a ``NonFiniteError`` ends the training.
    """
    names = {id(weight): name for name, weight in agent.policy.named_parameters()}

    def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = {
            names.get(id(weight), "ent_coef"): weight
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        }
        if not weights:
            return
        norms = torch.stack(torch._foreach_norm([weight.grad for weight in weights.values()]))
        if bool((norms <= MAX_GRADIENT_NORM).all()):  # NaN is not
            return
        bad = [
            name
            for name, norm in zip(weights, norms.tolist(), strict=True)
            if not norm <= MAX_GRADIENT_NORM
        ]
        gradients = {f"gradient of {name}": weight.grad for name, weight in weights.items()}
        error = NonFiniteError(
            f"a gradient step after {agent.num_timesteps:,} timesteps was not taken: the gradient of '{bad[0]}' "
            f"({len(bad)} of {len(weights)} tensors) has numbers that are not finite, or as good as; a smaller "
            "agent.learning_rate may help",
            gradients | weights,
        )
        if not skip:
            raise error
        for weight in weights.values():
            weight.grad = None  # what has no gradient is left as it is
        warnings.warn(f"{error}; training goes on with the next", stacklevel=2)

    for optimizer in get_optimizers(agent).values():
        optimizer.register_step_pre_hook(check)
