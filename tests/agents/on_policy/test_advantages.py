"""Generalized advantage estimation and normalization per task."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mirl.agents.on_policy.advantages import generalized_advantages, normalize_per_task

close = torch.testing.assert_close


def test_gae_matches_hand_computed_values() -> None:
    """With γ = λ = 1/2: δ_t = r_t + c_t V_{t+1} / 2 − V_t and A_t = δ_t + c_t A_{t+1} / 4."""
    advantages = generalized_advantages(
        # environment 0 terminates at t = 1, and is truncated at t = 2 before a state of value 8
        rewards=torch.tensor([[1.0, 1.0], [3.0, 1.0], [3.0 + 8.0 / 2, 1.0], [4.0, 1.0]]),
        values=torch.tensor([[4.0, 0.0], [2.0, 0.0], [6.0, 0.0], [10.0, 0.0]]),
        episode_starts=torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        last_values=torch.tensor([20.0, 100.0]),
        last_episode_starts=torch.tensor([0.0, 1.0]),  # environment 1 terminates at t = 3
        gamma=0.5,
        gae_lambda=0.5,
    )
    first = [1 + 2 / 2 - 4 + 1 / 4, 3 - 2, 7 - 6, 4 + 20 / 2 - 10]
    second = [1 + (1 + (1 + 1 / 4) / 4) / 4, 1 + (1 + 1 / 4) / 4, 1 + 1 / 4, 1]
    close(advantages, torch.tensor([first, second]).T)


@given(
    arrays(np.float32, (4, 5), elements=st.floats(-100, 100, width=32)),
    arrays(np.int64, (4, 5), elements=st.integers(0, 3)),
)
def test_normalization_per_task(advantages: NDArray[np.float32], tasks: NDArray[np.int64]) -> None:
    """The advantages of each task have mean 0 and standard deviation 1."""
    normalized = normalize_per_task(
        torch.tensor(advantages), torch.tensor(tasks), torch.tensor(advantages)
    ).numpy()
    for task in np.unique(tasks):
        mine, got = advantages[tasks == task].astype(np.float64), normalized[tasks == task]
        deviation = mine.std(ddof=1) if len(mine) > 1 else 0.0
        np.testing.assert_allclose(
            got, (mine - mine.mean()) / (deviation + 1e-8), rtol=1e-4, atol=1e-4
        )


def test_constant_advantages_become_zero() -> None:
    """Advantages that do not vary within a task become zero and are not scaled up."""
    advantages, tasks = torch.tensor([[1000.1, 1000.1, 1000.1, 7.0]]), torch.tensor([[0, 0, 0, 1]])
    close(normalize_per_task(advantages, tasks, advantages), torch.zeros(1, 4), rtol=0, atol=1e-4)


def test_floor_is_relative_per_task() -> None:
    """Advantages below the floor are divided by a share of the size of their task's returns."""
    advantages = torch.tensor([[0.1, -0.1, 10.0, -10.0]])
    tasks = torch.tensor([[0, 0, 1, 1]])
    returns = torch.tensor([[30.0, 40.0, 1.0, 1.0]])
    # task 0: std 0.14 < 0.02 · √((30² + 40²) / 2) = 0.707; task 1: std 14.1 > 0.02
    expected = torch.tensor([[0.1 / 0.70711, -0.1 / 0.70711, 0.70711, -0.70711]])
    close(normalize_per_task(advantages, tasks, returns, 0.02), expected, rtol=1e-4, atol=0)
