"""Gradients per task, how much they conflict, and their projection by PCGrad."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from mirl.agents.on_policy.task_gradients import (
    assign_gradient,
    conflict,
    project_conflicts,
    random_orders,
    task_gradients,
)

close = torch.testing.assert_close

seeds = st.integers(0, 2**32 - 1)


class Problem:
    """A small network, the losses of 7 samples of tasks 1, 4 and 5, and an unused parameter."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.parameters = [*self.network.parameters(), self.unused]
        self.task_ids = torch.tensor([4, 1, 1, 5, 4, 1, 5])
        self.inputs = torch.randn(7, 3, dtype=torch.float64)

    def losses(self) -> Tensor:
        return self.network(self.inputs).flatten().square()


def test_gradient_of_tasks_share() -> None:
    """A task's gradient is that of its share of the mean loss."""
    problem = Problem()
    gradients = task_gradients(problem.losses(), problem.task_ids, problem.parameters)
    assert gradients.shape == (3, 4 * 3 + 4 + 4 + 1 + 2)
    for gradient, task in zip(gradients, (1, 4, 5), strict=True):
        problem.network.zero_grad()
        (problem.losses()[problem.task_ids == task].sum() / 7).backward()
        close(gradient[:-2], torch.cat([p.grad.flatten() for p in problem.network.parameters()]))  # type: ignore[union-attr]


def test_gradients_sum_to_plain_one() -> None:
    """The tasks' gradients sum to the plain gradient, and the graph is kept."""
    problem = Problem()
    losses = problem.losses()
    gradients = task_gradients(losses, problem.task_ids, problem.parameters)
    assert all(parameter.grad is None for parameter in problem.parameters)
    losses.mean().backward()
    plain = torch.cat([p.grad.flatten() for p in problem.network.parameters()])  # type: ignore[union-attr]
    close(gradients.sum(0)[:-2], plain)


def test_unused_parameter_has_zero_gradient() -> None:
    problem = Problem()
    gradients = task_gradients(problem.losses(), problem.task_ids, problem.parameters)
    close(gradients[:, -2:], torch.zeros(3, 2, dtype=torch.float64))


def test_gradient_is_assigned_to_parameters() -> None:
    """A flat gradient is assigned to the parameters it was taken from."""
    problem = Problem()
    losses = problem.losses()
    assign_gradient(
        task_gradients(losses, problem.task_ids, problem.parameters).sum(0), problem.parameters
    )
    assigned = [parameter.grad.clone() for parameter in problem.parameters[:-1]]  # type: ignore[union-attr]
    problem.network.zero_grad()
    losses.mean().backward()
    close(assigned, [parameter.grad for parameter in problem.network.parameters()])


def test_conflict_matches_hand_computed_values() -> None:
    cosine, share = conflict(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, -1.0]]))
    close(cosine, torch.tensor((0 - 0.5**0.5 - 0.5**0.5) / 3))
    close(share, torch.tensor(2 / 3))


def test_zero_gradient_has_no_conflict() -> None:
    gradients = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    close(conflict(gradients), (torch.tensor(0.0), torch.tensor(0.0)))
    close(project_conflicts(gradients, np.array([[1], [0]])), gradients.sum(0))


def test_projection_matches_hand_computed_values() -> None:
    """With g₁ · g₂ = −1, g₁ becomes (1, 0) + ½ (−1, 1), and g₂ becomes (−1, 1) + 1 (1, 0)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    close(project_conflicts(gradients, np.array([[1], [0]])), torch.tensor([0.5 + 0.0, 0.5 + 1.0]))


def project_by_loops(
    gradients: NDArray[np.float64], orders: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Project as in algorithm 1 of the paper, line by line."""
    projected = gradients.copy()
    for i, others in enumerate(orders):
        for j in others:
            inner = projected[i] @ gradients[j]
            if inner < 0:
                projected[i] -= inner / (gradients[j] @ gradients[j]) * gradients[j]
    return projected.sum(0)


@given(st.integers(1, 7), st.integers(1, 9), seeds)
def test_projection_matches_algorithm_1(n_tasks: int, n_parameters: int, seed: int) -> None:
    """The projection equals the double loop of the paper's algorithm 1."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-3, 4, (n_tasks, 1))
    gradients, orders = (
        rng.normal(size=(n_tasks, n_parameters)) * scales,
        random_orders(n_tasks, rng),
    )
    got, expected = (
        project_conflicts(torch.from_numpy(gradients), orders),
        project_by_loops(gradients, orders),
    )
    close(got, torch.from_numpy(expected), rtol=1e-8, atol=1e-8 * scales.max())


def test_projection_follows_the_order() -> None:
    gradients = torch.tensor(
        [[1.0, 0.2, 0.0], [-1.0, 0.4, 0.1], [-0.5, -1.0, 0.3]], dtype=torch.float64
    )
    orders = [np.array([first, [0, 2], [0, 1]]) for first in ([1, 2], [2, 1])]
    results = [project_conflicts(gradients, order) for order in orders]
    for result, order in zip(results, orders, strict=True):
        close(result, torch.from_numpy(project_by_loops(gradients.numpy(), order)))
    assert not torch.allclose(*results)


def test_no_conflict_gives_plain_gradient() -> None:
    """Without conflicts the result is the sum of the gradients."""
    gradients = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    orders = random_orders(5, np.random.default_rng(0))
    close(project_conflicts(gradients, orders), gradients.sum(0))


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 6])
def test_order_holds_other_tasks_once(n_tasks: int) -> None:
    orders = random_orders(n_tasks, np.random.default_rng(0))
    assert orders.shape == (n_tasks, n_tasks - 1)
    for task, others in enumerate(orders):
        assert sorted([task, *others]) == list(range(n_tasks))


def test_every_order_is_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = {tuple(map(tuple, random_orders(3, rng))) for _ in range(200)}
    assert len(drawn) == 2**3
