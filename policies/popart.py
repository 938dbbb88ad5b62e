"""PopArt: a value head per task, whose targets keep mean 0 and deviation 1 whatever the scale of a task's rewards."""

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.errors import ConfigError
from mirl.configs.keys import TASK_KEY
from mirl.policies.features import Features
from mirl.policies.fusions import Fusion

MIN_STD = 1e-4
"""σ does not fall below this, so that returns that never vary are not divided by zero."""


def get_n_tasks(observation_space: spaces.Space[Any]) -> int:
    """How many tasks the observations tell apart.

    :raises ConfigError: when they do not say which task each is of.
    """
    task = (
        observation_space.spaces.get(TASK_KEY)
        if isinstance(observation_space, spaces.Dict)
        else None
    )
    if not isinstance(task, spaces.Discrete):
        given = "none" if task is None else str(task)
        raise ConfigError(
            f"popart has_running_norm per task and needs a Discrete space under '{TASK_KEY}', got {given}"
        )
    return int(task.n)


class PopArtHead(nn.Module):
    """A value head that preserves its outputs precisely, while adaptively rescaling its targets.

        V_t(h) = σ_t n_t(h) + μ_t,  n_t(h) = w_t · h + b_t

    Source: van Hasselt et al., "Learning values across many orders of magnitude", 2016; with statistics for each task
    t, Hessel et al., "Multi-task deep reinforcement learning with PopArt", 2019. Its outputs are plain values: whoever
    never calls ``update`` has an ordinary head per task. All rows start equal: the first value ignores the task.

    :param hidden_dim: the size of h.
    :param fusion: gives h = relu(fusion(x, z)); without one, h is the vector x itself.
    :param rate: how far one ``update`` moves the statistics, from those of all before to those of its own returns.
    :param gain: the length of each row at the start.
    """

    mean: Float[Tensor, " tasks"]
    """μ; the statistics are float64, in which ν − μ² keeps its digits."""
    mean_of_squares: Float[Tensor, " tasks"]
    """ν"""
    n_updates: Int[Tensor, " tasks"]

    def __init__(
        self,
        n_tasks: int,
        hidden_dim: int,
        fusion: Fusion | None = None,
        *,
        rate: float = 0.05,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.n_tasks, self.fusion, self.rate = n_tasks, fusion, rate
        row = nn.init.orthogonal_(torch.empty(1, hidden_dim), gain)
        self.weight = nn.Parameter(row.repeat(n_tasks, 1))
        self.bias = nn.Parameter(torch.zeros(n_tasks))
        self.register_buffer("mean", torch.zeros(n_tasks, dtype=torch.float64))
        self.register_buffer("mean_of_squares", torch.ones(n_tasks, dtype=torch.float64))
        self.register_buffer("n_updates", torch.zeros(n_tasks, dtype=torch.int64))

    @property
    def deviation(self) -> Float[Tensor, " tasks"]:
        """σ = √(ν − μ²), at least ``MIN_STD``."""
        return (self.mean_of_squares - self.mean.square()).clamp(min=MIN_STD**2).sqrt()

    def scale(self, tasks: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """σ of each row's task, the unit of its values."""
        return self.deviation.to(self.weight.dtype).index_select(0, tasks)

    def forward(self, features: Features) -> Float[Tensor, "batch 1"]:
        assert features.task is not None
        hidden = (
            features.vector
            if self.fusion is None
            else F.relu(self.fusion(features.vector, *features.context))
        )
        normalized = F.linear(hidden, self.weight, self.bias)  # (B, tasks)
        values = self.deviation.to(hidden.dtype) * normalized + self.mean.to(hidden.dtype)
        return values.gather(1, features.task.unsqueeze(1))

    @torch.no_grad()
    def update(self, returns: Float[Tensor, " batch"], tasks: Int[Tensor, " batch"]) -> None:
        """Move the statistics of the tasks that are present towards their returns R, and let no value change:

        μ_t ← μ_t + β_t (mean R − μ_t),  ν_t ← ν_t + β_t (mean R² − ν_t),  β_t = rate / (1 − (1 − rate)^k)
        w_t ← w_t σ_t / σ′_t,            b_t ← (σ_t b_t + μ_t − μ′_t) / σ′_t

        at the k-th update of task t, which makes the first one forget the start. What an optimizer remembers of w and b
        stays as it is.
        """
        rows = returns.double()
        own = F.one_hot(tasks, self.n_tasks).double()
        counts, sums, sums_of_squares = (
            own.T @ torch.stack([torch.ones_like(rows), rows, rows.square()], 1)
        ).unbind(1)
        present = counts > 0
        mean, deviation = self.mean.clone(), self.deviation

        self.n_updates += present
        step = torch.where(
            present, self.rate / (1 - (1 - self.rate) ** self.n_updates.double()), 0.0
        )
        self.mean += step * (sums / counts.clamp(min=1) - self.mean)
        self.mean_of_squares += step * (
            sums_of_squares / counts.clamp(min=1) - self.mean_of_squares
        )

        weight = self.weight.double() * (deviation / self.deviation).unsqueeze(1)
        bias = (deviation * self.bias.double() + mean - self.mean) / self.deviation
        self.weight.copy_(torch.where(present.unsqueeze(1), weight, self.weight))
        self.bias.copy_(torch.where(present, bias, self.bias))
