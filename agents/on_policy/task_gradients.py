"""The gradient of each task by itself: how much they conflict, and what is left of them without the conflict."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

TaskGradients = Float[Tensor, "tasks parameters"]


def task_gradients(
    losses: Float[Tensor, " batch"],
    tasks: Int[Tensor, " batch"],
    parameters: Sequence[nn.Parameter],
) -> TaskGradients:
    """∇ (1/B) Σ_{i of task t} L_i for each task t of the batch, in the order of their numbers.

    They sum to the gradient of the batch's mean loss. A parameter that no loss depends on has a gradient of zeros. The
    graph is kept, and so are the parameters' own ``grad``.

    :param losses: the loss of each sample.
    """
    shares = [(tasks == task).to(losses.dtype) / len(losses) for task in tasks.unique()]
    return torch.stack([_flat_gradient(losses, share, parameters) for share in shares])


def _flat_gradient(losses: Tensor, share: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    parts = torch.autograd.grad(
        losses,
        list(parameters),
        share,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([part.flatten() for part in parts])


def conflict(gradients: TaskGradients) -> tuple[Tensor, Tensor]:
    """Over all pairs of tasks: the mean cosine between their gradients, and the share of pairs where it is negative.

    A gradient of zero has a cosine of zero with any other. At least two tasks are needed: one makes no pair.
    """
    assert len(gradients) > 1
    unit = nn.functional.normalize(gradients, dim=1)
    row, column = torch.triu_indices(len(gradients), len(gradients), offset=1)
    cosines = (unit @ unit.T)[row, column]
    return cosines.mean(), (cosines < 0).to(cosines.dtype).mean()


def random_orders(n_tasks: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(n_tasks, n_tasks − 1): for each task the others in a random order of its own."""
    orders = generator.permuted(np.tile(np.arange(n_tasks - 1), (n_tasks, 1)), axis=1)
    return orders + (orders >= np.arange(n_tasks)[:, None])  # steps over the task itself


def project_conflicts(
    gradients: TaskGradients, orders: NDArray[np.int64]
) -> Float[Tensor, " parameters"]:
    """PCGrad (Yu et al., 2020): the sum of the tasks' gradients, each without what conflicts with another task's.

    For each task i, and each other task j in the order of ``orders[i]``:

        g_i ← g_i − (g_i · g_j / ‖g_j‖²) g_j    if g_i · g_j < 0, where g_j is the gradient as it was given

    The sum and not the mean: where nothing conflicts, the update is the plain gradient.

    The projected gradients are combinations C G of those given, so everything but the last product is done on the
    small matrix of inner products G Gᵀ.
    """
    n_tasks = len(gradients)
    products = (gradients @ gradients.T).double()
    combination = torch.eye(n_tasks, dtype=torch.float64, device=gradients.device)
    each = torch.arange(n_tasks, device=gradients.device)
    for others in (
        torch.from_numpy(orders).to(gradients.device).T
    ):  # for every task at once its next other
        inner = (combination * products[others]).sum(1)
        combination[each, others] -= torch.where(inner < 0, inner / products[others, others], 0.0)
    return combination.sum(0).to(gradients.dtype) @ gradients


def assign_gradient(
    gradient: Float[Tensor, " parameters"], parameters: Sequence[nn.Parameter]
) -> None:
    """Make each parameter's ``grad`` its part of the gradient, for an optimizer to step along."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
