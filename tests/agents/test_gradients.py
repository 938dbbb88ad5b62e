"""Each task's gradient is that of its own samples, and what conflicts between them is taken out as the paper says."""

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
    """A small network, the losses of a batch of three tasks (numbers 1, 4 and 5), and a parameter without use."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.parameters = [*self.network.parameters(), self.unused]
        self.tasks = torch.tensor([4, 1, 1, 5, 4, 1, 5])
        self.seen = torch.randn(7, 3, dtype=torch.float64)

    def losses(self) -> Tensor:
        return self.network(self.seen).flatten().square()


def test_a_tasks_gradient_is_that_of_its_share_of_the_mean() -> None:
    problem = Problem()
    gradients = task_gradients(problem.losses(), problem.tasks, problem.parameters)
    assert gradients.shape == (3, 4 * 3 + 4 + 4 + 1 + 2)
    for gradient, task in zip(gradients, (1, 4, 5), strict=True):
        problem.network.zero_grad()
        (problem.losses()[problem.tasks == task].sum() / 7).backward()
        close(gradient[:-2], torch.cat([p.grad.flatten() for p in problem.network.parameters()]))  # type: ignore[union-attr]


def test_the_tasks_gradients_sum_to_the_plain_one_and_the_graph_is_kept() -> None:
    problem = Problem()
    losses = problem.losses()
    gradients = task_gradients(losses, problem.tasks, problem.parameters)
    assert all(parameter.grad is None for parameter in problem.parameters)
    losses.mean().backward()
    plain = torch.cat([p.grad.flatten() for p in problem.network.parameters()])  # type: ignore[union-attr]
    close(gradients.sum(0)[:-2], plain)


def test_what_no_loss_depends_on_has_a_gradient_of_zeros() -> None:
    problem = Problem()
    gradients = task_gradients(problem.losses(), problem.tasks, problem.parameters)
    close(gradients[:, -2:], torch.zeros(3, 2, dtype=torch.float64))


def test_a_gradient_is_assigned_to_the_parameters_it_was_taken_from() -> None:
    problem = Problem()
    losses = problem.losses()
    assign_gradient(
        task_gradients(losses, problem.tasks, problem.parameters).sum(0), problem.parameters
    )
    assigned = [parameter.grad.clone() for parameter in problem.parameters[:-1]]  # type: ignore[union-attr]
    problem.network.zero_grad()
    losses.mean().backward()
    close(assigned, [parameter.grad for parameter in problem.network.parameters()])


def test_conflict_is_that_computed_by_hand() -> None:
    cosine, share = conflict(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, -1.0]]))
    close(cosine, torch.tensor((0 - 0.5**0.5 - 0.5**0.5) / 3))
    close(share, torch.tensor(2 / 3))


def test_a_gradient_of_zero_conflicts_with_none() -> None:
    gradients = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    close(conflict(gradients), (torch.tensor(0.0), torch.tensor(0.0)))
    close(project_conflicts(gradients, np.array([[1], [0]])), gradients.sum(0))


def test_projection_is_that_computed_by_hand() -> None:
    """g₁ · g₂ = −1, so g₁ becomes (1, 0) + ½ (−1, 1) and g₂ becomes (−1, 1) + 1 (1, 0)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    close(project_conflicts(gradients, np.array([[1], [0]])), torch.tensor([0.5 + 0.0, 0.5 + 1.0]))


def naive(gradients: NDArray[np.float64], orders: NDArray[np.int64]) -> NDArray[np.float64]:
    """Algorithm 1 of the paper, line by line."""
    projected = gradients.copy()
    for i, others in enumerate(orders):
        for j in others:
            inner = projected[i] @ gradients[j]
            if inner < 0:
                projected[i] -= inner / (gradients[j] @ gradients[j]) * gradients[j]
    return projected.sum(0)


@given(st.integers(1, 7), st.integers(1, 9), seeds)
def test_projection_is_the_papers_double_loop(n_tasks: int, n_parameters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-3, 4, (n_tasks, 1))
    gradients, orders = (
        rng.normal(size=(n_tasks, n_parameters)) * scales,
        random_orders(n_tasks, rng),
    )
    got, expected = project_conflicts(torch.from_numpy(gradients), orders), naive(gradients, orders)
    close(got, torch.from_numpy(expected), rtol=1e-8, atol=1e-8 * scales.max())


def test_the_order_is_followed() -> None:
    gradients = torch.tensor(
        [[1.0, 0.2, 0.0], [-1.0, 0.4, 0.1], [-0.5, -1.0, 0.3]], dtype=torch.float64
    )
    orders = [np.array([first, [0, 2], [0, 1]]) for first in ([1, 2], [2, 1])]
    results = [project_conflicts(gradients, order) for order in orders]
    for result, order in zip(results, orders, strict=True):
        close(result, torch.from_numpy(naive(gradients.numpy(), order)))
    assert not torch.allclose(*results)


def test_where_nothing_conflicts_the_update_is_the_plain_gradient() -> None:
    gradients = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    orders = random_orders(5, np.random.default_rng(0))
    close(project_conflicts(gradients, orders), gradients.sum(0))


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 6])
def test_an_order_holds_every_other_task_once(n_tasks: int) -> None:
    orders = random_orders(n_tasks, np.random.default_rng(0))
    assert orders.shape == (n_tasks, n_tasks - 1)
    for task, others in enumerate(orders):
        assert sorted([task, *others]) == list(range(n_tasks))


def test_every_order_is_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = {tuple(map(tuple, random_orders(3, rng))) for _ in range(200)}
    assert len(drawn) == 2**3
