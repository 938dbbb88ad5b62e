"""Rollback of an update that made a weight non-finite, and the error that names the cause."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mirl.agents.faults import NonFiniteError
from mirl.agents.on_policy.losses import Metrics
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer
from mirl.agents.on_policy.storage import PackedColumn, PlainColumn


class Snapshot:
    """A copy of the weights, the buffers and the optimizer's state, on their own device.

    Args:
        module: the policy.
        optimizer: its optimizer.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._module = module
        self._optimizer = optimizer
        self._tensors = [tensor.detach().clone() for tensor in self._current_tensors()]
        # A deep copy, because state_dict() returns the optimizer's own tensors.
        self._state = copy.deepcopy(optimizer.state_dict()["state"])

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved values back into the same tensors."""
        for current, saved in zip(self._current_tensors(), self._tensors, strict=True):
            # In place, because the optimizer refers to these tensors.
            current.copy_(saved)
        # The learning rate and other options of the optimizer stay as they are.
        groups = self._optimizer.state_dict()["param_groups"]
        # Another copy, because load_state_dict may keep the tensors that it gets.
        state = copy.deepcopy(self._state)
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _current_tensors(self) -> list[Tensor]:
        return [*self._module.parameters(), *self._module.buffers()]


def are_finite(module: nn.Module) -> Tensor:
    """Check that every weight and every floating-point buffer is finite.

    Args:
        module: the policy.

    Returns:
        A boolean scalar on the device.
    """
    tensors: list[Tensor] = []
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensors.append(tensor.detach())
    # One fused kernel for all tensors; the largest magnitude is non-finite if any number is.
    norms = torch._foreach_norm(tensors, ord=float("inf"))
    return torch.stack(norms).isfinite().all()


def non_finite_error(
    buffer: RolloutBuffer, history: Sequence[Metrics], timesteps: int, task_names: Sequence[str]
) -> NonFiniteError:
    """Build the error of an update that was rolled back, naming the first non-finite tensor.

    With several ranks, each of them must call this.

    Args:
        buffer: the rollout of the update.
        history: the metrics of each gradient step of the update.
        timesteps: timesteps of training so far.
        task_names: the name of each task id; may be empty.

    Returns:
        The error, with the tensors of the rollout as evidence.
    """
    tensors = rollout_tensors(buffer)
    # The rollout first: if it is non-finite, so are the metrics computed from it.
    causes = buffer.ranks.gather_objects(_non_finite_sample(buffer, tensors, task_names))
    cause = _non_finite_metric(history)
    # The same error on every rank, because any of them may be the one that prints it.
    for rank, found in reversed(list(enumerate(causes))):
        if found is not None:
            cause = f"{found} of rank {rank}" if len(causes) > 1 else found
    message = (
        f"the update after {timesteps:,} timesteps gave non-finite weights and was undone: {cause}"
    )
    return NonFiniteError(message, tensors)


def rollout_tensors(buffer: RolloutBuffer) -> dict[str, Tensor]:
    """Return the tensors of a rollout by name, in the order in which they depend on each other.

    Args:
        buffer: the rollout.

    Returns:
        (T, N, ...) each; observations as they are stored, without those grouped by context.
    """
    tensors: dict[str, Tensor] = {}
    for key, column in buffer.columns.items():
        if isinstance(column, PlainColumn | PackedColumn):
            tensors[f"observation '{key}'"] = column.data
    return {
        **tensors,
        "reward": buffer.rewards,
        "action": buffer.stored_actions,
        "value": buffer.values[:, buffer.own],
        "log_prob": buffer.log_probs,
        "advantage": buffer.advantages[:, buffer.own],
    }


def _non_finite_sample(
    buffer: RolloutBuffer, tensors: dict[str, Tensor], task_names: Sequence[str]
) -> str | None:
    """Describe the first non-finite number of the rollout."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue  # integers are always finite
        bad = ~tensor.isfinite()
        if not bad.any():
            continue
        # Every tensor of a rollout is (T, N, ...).
        timestep, env_index = bad.nonzero()[0, :2].tolist()
        value = float(tensor[timestep, env_index][bad[timestep, env_index]].flatten()[0])
        task_id = int(buffer.task_ids[:, buffer.own][timestep, env_index])
        task = f" of task '{task_names[task_id]}'" if task_id < len(task_names) else ""
        return (
            f"{name} is {value}{task}, timestep {timestep} of the rollout, environment {env_index}"
        )
    return None


def _non_finite_metric(history: Sequence[Metrics]) -> str:
    """Describe the first non-finite metric of the update."""
    hint = ", from a finite rollout; a smaller agent.learning_rate may help"
    for step, metrics in enumerate(history):
        for name, value in metrics.items():
            if not value.isfinite():
                return f"{name} in gradient step {step}{hint}"
    return f"a gradient{hint}"
