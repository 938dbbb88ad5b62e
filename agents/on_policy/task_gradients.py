"""Gradients per task: a measure of their conflict, and their projection by PCGrad.

Shapes: B samples, K tasks of the minibatch, P parameters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

TaskGradients = Float[Tensor, "tasks parameters"]


def task_gradients(
    losses: Float[Tensor, " batch"],
    task_ids: Int[Tensor, " batch"],
    parameters: Sequence[nn.Parameter],
    tasks: Int[Tensor, " tasks"] | None = None,
) -> TaskGradients:
    """Return the gradient of each task's share of the mean loss.

        g_k = ∇ (1/B) Σ_{i of task k} L_i

    The gradients sum to the gradient of the mean loss. The graph and the parameters' ``grad`` are
    left as they are.

    Args:
        losses: (B,), L_i.
        task_ids: (B,), the task of each sample.
        parameters: P numbers in total; a parameter that no loss depends on gets a gradient of
            zeros.
        tasks: (K,), the tasks to return gradients for; None for those of the samples.

    Returns:
        (K, P), in the order of the task ids.
    """
    gradients: list[Tensor] = []
    if tasks is None:
        tasks = task_ids.unique()
    for task_id in tasks:
        # Weights of the losses: 1 / B for the samples of the task, 0 for the others.
        share = (task_ids == task_id).to(losses.dtype) / len(losses)
        parts = torch.autograd.grad(
            losses,
            list(parameters),
            share,
            # Needed for the next task, and for the gradient step after a measurement.
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(gradients)


def conflict(gradients: TaskGradients) -> tuple[Tensor, Tensor]:
    """Measure how much the gradients of at least two tasks conflict, over all pairs of tasks.

    Args:
        gradients: (K, P), with K > 1. A gradient of zero has cosine 0 with any other.

    Returns:
        The mean cosine similarity, and the fraction of pairs whose cosine similarity is negative.
    """
    assert len(gradients) > 1
    unit = nn.functional.normalize(gradients, dim=1)
    # Each pair of tasks once.
    row, column = torch.triu_indices(len(gradients), len(gradients), offset=1)
    cosines = (unit @ unit.T)[row, column]
    return cosines.mean(), (cosines < 0).to(cosines.dtype).mean()


def random_orders(n_tasks: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw, for each task, the order in which PCGrad projects it onto the others.

    Args:
        n_tasks: K.
        generator: random generator for the permutations.

    Returns:
        (K, K − 1), row i holds a random order of all tasks but i.
    """
    orders = generator.permuted(np.tile(np.arange(n_tasks - 1), (n_tasks, 1)), axis=1)
    # 0, ..., K − 2 -> all tasks but i: skip i itself.
    return orders + (orders >= np.arange(n_tasks)[:, None])


def project_conflicts(
    gradients: TaskGradients, orders: NDArray[np.int64]
) -> Float[Tensor, " parameters"]:
    """Return the sum of the projected task gradients (PCGrad).

    For each task i, and each other task j in the order of ``orders[i]``:

        g_i ← g_i − (g_i · g_j / ‖g_j‖²) g_j    if g_i · g_j < 0, where g_j is the original gradient

    The result is the sum and not the mean, so that without conflicts it is the plain gradient.

    Args:
        gradients: (K, P).
        orders: (K, K − 1), from ``random_orders``.

    Returns:
        (P,), the projected gradient.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020.
    """
    # Every projected gradient is a linear combination C G of the original ones. So the recursion
    # runs on the (K, K) matrix of inner products G Gᵀ, and only the last line touches P numbers.
    n_tasks = len(gradients)
    # Float64, because rounding errors add up over the projections.
    products = (gradients @ gradients.T).double()
    combination = torch.eye(n_tasks, dtype=torch.float64, device=gradients.device)
    every_task = torch.arange(n_tasks, device=gradients.device)
    # Step s projects every task onto its s-th other task at once: (K, K − 1) -> K − 1 times (K,).
    for others in torch.from_numpy(orders).to(gradients.device).T:
        inner = (combination * products[others]).sum(1)
        # Dividing by a gradient of zero is harmless: its inner product 0 is not below 0.
        coefficients = torch.where(inner < 0, inner / products[others, others], 0.0)
        combination[every_task, others] -= coefficients
    return combination.sum(0).to(gradients.dtype) @ gradients


def assign_gradient(
    gradient: Float[Tensor, " parameters"], parameters: Sequence[nn.Parameter]
) -> None:
    """Set each parameter's ``grad`` to its part of a flat gradient.

    Args:
        gradient: (P,), in the order of the parameters.
        parameters: the parameters, P numbers in total.
    """
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
