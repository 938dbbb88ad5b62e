"""Advantage estimation and its normalization, as pure functions of (T, N) tensors.

Shapes: T timesteps, N environments.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

PerStep = Float[Tensor, "n_steps n_envs"]
EPSILON = 1e-8
"""Added to the standard deviation, as in SB3's advantage normalization."""


def generalized_advantages(
    rewards: PerStep,
    values: PerStep,
    episode_starts: PerStep,
    last_values: Float[Tensor, " n_envs"],
    last_episode_starts: Float[Tensor, " n_envs"],
    *,
    gamma: float,
    gae_lambda: float,
) -> PerStep:
    """Return the generalized advantage estimates of a rollout.

        δ_t = r_t + γ c_t V_{t+1} − V_t
        A_t = δ_t + γλ c_t A_{t+1}

    where c_t is 0 if an episode starts at t + 1, else 1. The reward of a truncated episode's last
    timestep must already contain γ V of its terminal observation: a truncation bootstraps, a
    termination does not.

    Args:
        rewards: (T, N), r_t.
        values: (T, N), V_t.
        episode_starts: (T, N), 1 where an episode starts, else 0.
        last_values: (N,), V_T of the observations after the last timestep.
        last_episode_starts: (N,), 1 where an episode starts after the last timestep.
        gamma: γ, the discount factor.
        gae_lambda: λ, the trade-off between bias and variance.

    Returns:
        (T, N), A_t.

    References:
        Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
        Estimation", ICLR 2016.
    """
    # Shift by one timestep, so that row t holds the values after timestep t.
    next_starts = torch.cat([episode_starts[1:], last_episode_starts[None]])
    next_values = torch.cat([values[1:], last_values[None]])
    # c_t: an advantage must not depend on the next episode.
    continues = 1.0 - next_starts
    deltas = rewards + gamma * next_values * continues - values
    decay = gamma * gae_lambda * continues
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(last_values)
    # A_t depends on A_{t+1}: go backwards in time, over all environments at once.
    for t in reversed(range(len(deltas))):
        advantage = deltas[t] + decay[t] * advantage
        advantages[t] = advantage
    return advantages


def normalize_per_task(
    advantages: PerStep,
    task_ids: Int[Tensor, "n_steps n_envs"],
    returns: PerStep,
    floor: float = 0.0,
) -> PerStep:
    """Normalize the advantages of each task to mean 0 and standard deviation 1.

        (A − mean_k) / (max(std_k, floor · rms_k) + 1e-8) over the samples of task k

    where rms_k is the root mean square of the task's returns. Advantages that do not vary become
    zero.

    Args:
        advantages: (T, N).
        task_ids: (T, N), the task of each timestep.
        returns: (T, N).
        floor: smallest standard deviation, as a fraction of rms_k.

    Returns:
        (T, N), the normalized advantages.
    """
    normalized = torch.empty_like(advantages)
    for task_id in task_ids.unique():
        is_task = task_ids == task_id
        # In float32, the rounding error of a large mean would look like variation and be scaled up.
        own = advantages[is_task].double()
        centered = own - own.mean()
        # Unbiased as torch.std, but 0 for a single sample, where torch.std is NaN.
        variance = centered.square().sum().div(max(len(own) - 1, 1))
        smallest = floor * root_mean_square(returns[is_task].double())
        std = variance.sqrt().maximum(smallest)
        normalized[is_task] = (centered / (std + EPSILON)).to(advantages.dtype)
    return normalized


def root_mean_square(values: Float[Tensor, "*any"]) -> Tensor:
    """Return √mean(x²) over all elements, a scalar.

    Args:
        values: x, of any shape.
    """
    return values.square().mean().sqrt()
