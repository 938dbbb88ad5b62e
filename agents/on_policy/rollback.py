"""TODO docstring."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirl.agents.faults import NonFiniteError
from mirl.agents.on_policy.losses import Metrics
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer


class Snapshot:
    """Weights, buffers and the optimizer's state as they are now, on their own device."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._module, self._optimizer = module, optimizer
        self._tensors = [tensor.detach().clone() for tensor in self._live()]
        self._state = copy.deepcopy(optimizer.state_dict()["state"])

    @torch.no_grad()
    def restore(self) -> None:
        """Make them again what they were."""
        for live, kept in zip(self._live(), self._tensors, strict=True):
            live.copy_(kept)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict(
            {"state": copy.deepcopy(self._state), "param_groups": groups}
        )

    def _live(self) -> list[Tensor]:
        return [*self._module.parameters(), *self._module.buffers()]


def are_finite(module: nn.Module) -> Tensor:
    """A truth value on the device: whether every weight, and every buffer of real numbers, is a finite number."""
    tensors = [
        tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()
    ]
    return (
        torch.stack(torch._foreach_norm([tensor.detach() for tensor in tensors], ord=float("inf")))
        .isfinite()
        .all()
    )


def non_finite_error(
    rollouts: RolloutBuffer, history: Sequence[Metrics], timesteps: int, tasks: Sequence[str]
) -> NonFiniteError:
    """What to say of an update that made numbers that are none: the first tensor that has one, and whose task it is.

    :param history: the metrics of the update's gradient steps.
    :param tasks: the names of the tasks.
    """
    tensors = rollout_tensors(rollouts)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            step, slot = (int(number) for number in (~finite).nonzero()[0, :2])
            value = float(tensor[step, slot][~finite[step, slot]].flatten()[0])
            task = int(rollouts.task_ids[step, slot])
            of = f" of task '{tasks[task]}'" if task < len(tasks) else ""
            where = f"{name} is {value}{of}, timestep {step} of the rollout, environment {slot}"
            break
    else:
        found = [
            (number, name)
            for number, metrics in enumerate(history)
            for name in metrics
            if not metrics[name].isfinite()
        ]
        where = f"{found[0][1]} in gradient step {found[0][0]}" if found else "a gradient"
        where += ", from a rollout of finite numbers; a smaller agent.learning_rate may help"
    message = f"the update after {timesteps:,} timesteps made weights that are no finite numbers, and was undone: {where}"
    return NonFiniteError(message, tensors)


def rollout_tensors(rollouts: RolloutBuffer) -> dict[str, Tensor]:
    """The tensors of a rollout, (timesteps, environments, …), in the order in which they depend on each other."""
    seen: dict[str, Any] = {
        key: getattr(column, "data", None) for key, column in rollouts.columns.items()
    }
    tensors = {
        f"observation '{key}'": data for key, data in seen.items() if isinstance(data, Tensor)
    }
    tensors |= {"reward": rollouts.rewards, "action": rollouts.actions, "value": rollouts.values}
    return tensors | {"log_prob": rollouts.log_probs, "advantage": rollouts.advantages}
