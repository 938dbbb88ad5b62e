"""What goes wrong while training: numbers that are none, and memory that is not to be had.

An update that makes weights NaN or infinite is undone, a gradient step that would is not taken; the cause is found and
kept.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from mirl.agents.checkpoint import optimizers_of
from mirl.agents.files import write_json
from mirl.agents.rollouts import Rollouts
from mirl.agents.updates import Metrics
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig

EVIDENCE = "evidence.safetensors"
"""File of what an update or a gradient step was made from."""
LARGEST_GRADIENT = 1e18
"""Norm of a tensor's. Adam squares gradients, and a square that is infinite in float32 stops its weight for ever."""
REFUSED = "Expected parameter"
"""How torch's distributions begin to say that their parameters are no numbers."""


class Snapshot:
    """Weights, buffers and the optimiser's state as they are now, on their own device."""

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
        self._optimizer.load_state_dict({"state": copy.deepcopy(self._state), "param_groups": groups})

    def _live(self) -> list[Tensor]:
        return [*self._module.parameters(), *self._module.buffers()]


def are_finite(module: nn.Module) -> Tensor:
    """A truth value on the device: whether every weight, and every buffer of real numbers, is a finite number."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    return torch.stack(torch._foreach_norm([tensor.detach() for tensor in tensors], ord=float("inf"))).isfinite().all()


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
            {name: tensor.detach().cpu().contiguous() for name, tensor in self.evidence.items()}, folder / EVIDENCE
        )
        write_json(folder / "fault.json", {"message": str(self)})
        return folder


def non_finite_error(
    rollouts: Rollouts, history: Sequence[Metrics], timesteps: int, tasks: Sequence[str]
) -> NonFiniteError:
    """What to say of an update that made numbers that are none: the first tensor that has one, and whose task it is.

    :param history: the metrics of the update's gradient steps.
    :param tasks: the names of the tasks.
    """
    tensors = evidence_of(rollouts)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            step, slot = (int(number) for number in (~finite).nonzero()[0, :2])
            value = float(tensor[step, slot][~finite[step, slot]].flatten()[0])
            task = int(rollouts.task_of_each[step, slot])
            of = f" of task '{tasks[task]}'" if task < len(tasks) else ""
            where = f"{name} is {value}{of}, timestep {step} of the rollout, environment {slot}"
            break
    else:
        found = [
            (number, name) for number, metrics in enumerate(history) for name in metrics if not metrics[name].isfinite()
        ]
        where = f"{found[0][1]} in gradient step {found[0][0]}" if found else "a gradient"
        where += ", from a rollout of finite numbers; a smaller agent.learning_rate may help"
    message = (
        f"the update after {timesteps:,} timesteps made weights that are no finite numbers, and was undone: {where}"
    )
    return NonFiniteError(message, tensors)


def evidence_of(rollouts: Rollouts) -> dict[str, Tensor]:
    """The tensors of a rollout, (timesteps, environments, …), in the order in which they depend on each other."""
    seen: dict[str, Any] = {key: getattr(column, "data", None) for key, column in rollouts.columns.items()}
    tensors = {f"observation '{key}'": data for key, data in seen.items() if isinstance(data, Tensor)}
    tensors |= {"reward": rollouts.rewards, "action": rollouts.actions, "value": rollouts.values}
    return tensors | {"log_prob": rollouts.log_probs, "advantage": rollouts.advantages}


@contextmanager
def memory_told(config: TrainConfig) -> Iterator[None]:
    """Within it, memory that is not to be had is a ``RunError`` that says what takes it and may be smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        agent = config.agent
        shown = [
            f"agent.{name}={getattr(agent, name):,}"
            for name in ("n_envs", "n_steps", "buffer_size", "batch_size")
            if hasattr(agent, name)
        ]
        networks = ["encoder", "context.dim", "agent.net_arch", *([] if config.memory.kind == "none" else ["memory"])]
        said = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(
            f"out of memory: {said}\nWhat may be smaller: {', '.join(shown)}, the networks ({', '.join(networks)}). "
            "Checkpoints that were written are kept"
        ) from error


@contextmanager
def overflow_told(agent: BaseAlgorithm) -> Iterator[None]:
    """Within it, a policy whose weights are finite numbers and whose outputs are not is a ``RunError``."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(REFUSED):
            raise
        raise RunError(
            f"the policy's outputs after {agent.num_timesteps:,} timesteps are no finite numbers; a smaller "
            "agent.learning_rate may help"
        ) from error


def guard_steps(agent: BaseAlgorithm, *, skip: bool) -> None:
    """Let no optimiser of an algorithm of SB3's take a step along gradients that are no finite numbers.

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
        if bool((norms <= LARGEST_GRADIENT).all()):  # NaN is not
            return
        bad = [name for name, norm in zip(weights, norms.tolist(), strict=True) if not norm <= LARGEST_GRADIENT]
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

    for optimizer in optimizers_of(agent).values():
        optimizer.register_step_pre_hook(check)
