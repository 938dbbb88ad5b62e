"""TODO docstring."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

PerStep = Float[Tensor, "n_steps n_envs"]


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
    """Generalized advantage estimation (Schulman et al., 2016), where c_t is 0 if an episode starts at t + 1, else 1:

        δ_t = r_t + γ c_t V_{t+1} − V_t
        A_t = δ_t + γλ c_t A_{t+1}

    A time-out's reward holds γ V of its last observation already: it bootstraps, and a termination does not.
    """
    continues = 1.0 - torch.cat([episode_starts[1:], last_episode_starts[None]])
    deltas = rewards + gamma * torch.cat([values[1:], last_values[None]]) * continues - values
    decay = gamma * gae_lambda * continues
    advantages, advantage = torch.empty_like(deltas), torch.zeros_like(last_values)
    for t in reversed(range(len(deltas))):
        advantage = deltas[t] + decay[t] * advantage
        advantages[t] = advantage
    return advantages


def normalize_per_task(advantages: PerStep, tasks: Int[Tensor, "n_steps n_envs"]) -> PerStep:
    """(A − mean_t) / (deviation_t + 1e-8) over the samples of each task t; what does not vary becomes zero."""
    normalized = torch.empty_like(advantages)
    for task in tasks.unique():
        own = tasks == task
        mine = advantages[
            own
        ].double()  # rounding of a large mean would be a deviation, and be blown up
        centered = mine - mine.mean()
        deviation = centered.square().sum().div(max(len(mine) - 1, 1)).sqrt()
        normalized[own] = (centered / (deviation + 1e-8)).to(advantages.dtype)
    return normalized
