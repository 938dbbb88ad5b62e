"""Training failures: non-finite values and out-of-memory errors.

An update that makes weights non-finite is rolled back; a gradient step that would do so is skipped.
The tensors that caused it are saved.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from mirl.agents.runs.atomic_files import make_folder, write_json
from mirl.agents.runs.checkpoint import get_optimizers
from mirl.configs.errors import RunError
from mirl.configs.networks import NoMemoryConfig
from mirl.configs.schema import TrainConfig

EVIDENCE = "evidence.safetensors"
"""File with the tensors that an update or a gradient step was computed from."""
MAX_GRADIENT_NORM = 1e18
"""Largest norm of one tensor's gradient: Adam squares it, and if the square overflows float32, the
weight never changes again."""
INVALID_PARAMETER_MESSAGE = "Expected parameter"
"""First words of the error of torch's distributions about non-finite parameters."""
SIZES = ("n_envs", "n_steps", "buffer_size", "batch_size")
"""Options of agents that decide how much memory is needed."""


class NonFiniteError(RunError):
    """An update that was rolled back, or a gradient step that was not taken.

    Args:
        message: what happened and what may help.
        evidence: the tensors that caused it, by name.
    """

    def __init__(self, message: str, evidence: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, Tensor]]]:
        """Return the arguments from which pickle rebuilds the error in another process."""
        return type(self), (str(self), self.evidence)

    def save(self, folder: Path) -> Path:
        """Write the message and the evidence into a folder.

        Args:
            folder: the folder, which is created.

        Returns:
            The folder.

        Raises:
            OSError: they cannot be written.
        """
        make_folder(folder.parent)
        make_folder(folder)
        tensors = {}
        for name, tensor in self.evidence.items():
            tensors[name] = tensor.detach().cpu().contiguous()  # as safetensors needs it
        save_file(tensors, folder / EVIDENCE)
        write_json(folder / "fault.json", {"message": str(self)})
        return folder


@contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn out-of-memory errors into a ``RunError`` that names the options to reduce.

    Args:
        config: the configuration of the run.

    Raises:
        RunError: torch or Python ran out of memory inside the context.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        # torch's message has several lines of hints, and a MemoryError often has no text
        reason = str(error).partition("\n")[0] or type(error).__name__
        options = config.agent.model_dump()
        sizes = [f"agent.{name}={options[name]:,}" for name in SIZES if name in options]
        networks = ["encoder", "context.dim", "agent.net_arch"]
        if not isinstance(config.memory, NoMemoryConfig):
            networks.append("memory")
        raise RunError(
            f"out of memory: {reason}\nReduce {', '.join(sizes)}, or the networks "
            f"({', '.join(networks)}). Checkpoints that were saved are kept"
        ) from error


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator on a CPU has no exception of its own
    return "can't allocate memory" in str(error)


@contextmanager
def explain_non_finite(agent: BaseAlgorithm) -> Iterator[None]:
    """Turn torch's error about non-finite distribution parameters into a ``RunError``.

    Args:
        agent: the agent whose policy acts inside the context.

    Raises:
        RunError: the outputs of the policy are non-finite.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(INVALID_PARAMETER_MESSAGE):
            raise
        raise RunError(
            f"the policy's outputs after {agent.num_timesteps:,} timesteps are non-finite; "
            "a smaller agent.learning_rate may help"
        ) from error


def guard_steps(agent: BaseAlgorithm, *, skip: bool) -> None:
    """Keep the optimizers of an SB3 algorithm from taking steps with non-finite gradients.

    Args:
        agent: the algorithm.
        skip: warn and skip such a step, instead of raising ``NonFiniteError``.
    """
    # an optimizer does not know the names of its tensors, and the error should name them
    names = {id(weight): name for name, weight in agent.policy.named_parameters()}

    def check(optimizer: torch.optim.Optimizer, *_: object) -> None:
        weights = _weights_with_gradients(optimizer, names)
        bad = _non_finite_gradients(weights)
        if not bad:
            return
        error = _gradient_error(agent, weights, bad)
        if not skip:
            raise error
        for weight in weights.values():
            weight.grad = None  # an optimizer leaves weights without a gradient unchanged
        warnings.warn(f"{error}; training continues with the next step", stacklevel=2)

    for optimizer in get_optimizers(agent).values():
        # the hook runs after the backward pass and before any weight changes
        optimizer.register_step_pre_hook(check)


def _weights_with_gradients(
    optimizer: torch.optim.Optimizer, names: dict[int, str]
) -> dict[str, Tensor]:
    weights = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                # the learned entropy coefficient is not part of the policy
                weights[names.get(id(weight), "ent_coef")] = weight
    return weights


def _non_finite_gradients(weights: dict[str, Tensor]) -> list[str]:
    """Return the names of the weights whose gradient is non-finite or too large."""
    if not weights:  # torch.stack needs at least one tensor
        return []
    gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    # one synchronization with the device instead of one per tensor; NaN compares as False
    if bool((norms <= MAX_GRADIENT_NORM).all()):
        return []
    bad = []
    for name, norm in zip(weights, norms.tolist(), strict=True):
        if not norm <= MAX_GRADIENT_NORM:  # True also for NaN
            bad.append(name)
    return bad


def _gradient_error(
    agent: BaseAlgorithm, weights: dict[str, Tensor], bad: Sequence[str]
) -> NonFiniteError:
    evidence = dict(weights)
    for name, weight in weights.items():
        assert weight.grad is not None
        evidence[f"gradient of {name}"] = weight.grad
    return NonFiniteError(
        f"a gradient step after {agent.num_timesteps:,} timesteps was not taken: the gradient of "
        f"'{bad[0]}' ({len(bad)} of {len(weights)} tensors) is non-finite or above "
        f"{MAX_GRADIENT_NORM:.0e}; a smaller agent.learning_rate may help",
        evidence,
    )
