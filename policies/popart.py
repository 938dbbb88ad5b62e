"""Value heads for rewards of any scale: one unit for all tasks, or one per task (PopArt)."""

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
"""Lower bound of σ, so that constant returns are not divided by zero."""
RATE = 0.05
"""Step size of the statistics in each update, between 0 and 1."""


def get_n_tasks(observation_space: spaces.Space[object]) -> int:
    """Return the number of tasks that the observations distinguish.

    Args:
        observation_space: a Dict space with a Discrete ``task``.

    Raises:
        ConfigError: if the observations do not contain the index of the task.
    """
    task = None
    if isinstance(observation_space, spaces.Dict):
        task = observation_space.spaces.get(TASK_KEY)
    if not isinstance(task, spaces.Discrete):
        given = "none"
        if task is not None:
            given = str(task)
        raise ConfigError(
            f"popart normalizes per task and needs a Discrete space under '{TASK_KEY}', got "
            f"{given}; ContractObservation(env, task_key=True) adds it"
        )
    return int(task.n)


def _corrected_step(rate: float, n_updates: Int[Tensor, "*tasks"]) -> Float[Tensor, "*tasks"]:
    """Return the bias-corrected step size of running statistics, as in Adam; the first is 1."""
    step: Tensor = rate / (1 - (1 - rate) ** n_updates.double())
    return step


class PopArtHead(nn.Module):
    """Value head that rescales its targets adaptively while preserving its outputs precisely.

        V_t(h) = σ_t n_t(h) + μ_t,  n_t(h) = w_t · h + b_t

    for each task t. The outputs are values in the units of the returns: a head whose ``update`` is
    never called is an ordinary head per task. All rows w_t start equal, so the first values do not
    depend on the task.

    Args:
        n_tasks: number of tasks.
        hidden_dim: size of h.
        fusion: gives h = relu(fusion(x, z)); None to use the vector x as h.
        rate: step size of the statistics in each ``update``, between 0 and 1.
        gain: length of each row w_t at initialization.

    References:
        van Hasselt et al., "Learning Values Across Many Orders of Magnitude", NeurIPS 2016;
        Hessel et al., "Multi-task Deep Reinforcement Learning with PopArt", AAAI 2019, for the
        statistics per task.
    """

    mean: Float[Tensor, " tasks"]
    """μ; the statistics are float64, which keeps enough digits of ν − μ²."""
    mean_of_squares: Float[Tensor, " tasks"]
    """ν, the mean of the squared returns."""
    n_updates: Int[Tensor, " tasks"]
    """Number of updates in which each task was present."""

    def __init__(
        self,
        n_tasks: int,
        hidden_dim: int,
        fusion: Fusion | None = None,
        *,
        rate: float = RATE,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.n_tasks = n_tasks
        self.fusion = fusion
        self.rate = rate
        # one row for all tasks: a single random draw, and equal first values
        row = nn.init.orthogonal_(torch.empty(1, hidden_dim), gain)
        self.weight = nn.Parameter(row.repeat(n_tasks, 1))
        self.bias = nn.Parameter(torch.zeros(n_tasks))
        self.register_buffer("mean", torch.zeros(n_tasks, dtype=torch.float64))
        self.register_buffer("mean_of_squares", torch.ones(n_tasks, dtype=torch.float64))
        self.register_buffer("n_updates", torch.zeros(n_tasks, dtype=torch.int64))

    @property
    def std(self) -> Float[Tensor, " tasks"]:
        """σ = √(ν − μ²) of each task, at least ``MIN_STD``."""
        # rounding may make the difference slightly negative
        variance = self.mean_of_squares - self.mean.square()
        return variance.clamp(min=MIN_STD**2).sqrt()

    def scale(self, tasks: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return σ of each row's task, the unit of its value.

        Args:
            tasks: (B,), the task of each row.
        """
        return self.std.to(self.weight.dtype).index_select(0, tasks)

    def forward(self, features: Features) -> Float[Tensor, "batch 1"]:
        """Return the value of each row for its own task, (B, 1)."""
        assert features.task is not None
        hidden = features.vector
        if self.fusion is not None:
            hidden = F.relu(self.fusion(features.vector, *features.context))
        normalized = F.linear(hidden, self.weight, self.bias)  # (B, tasks)
        # σ n(h) + μ, back in the units of the returns
        values = self.std.to(hidden.dtype) * normalized + self.mean.to(hidden.dtype)
        # (B, tasks) -> (B, 1), the column of each row's task
        return values.gather(1, features.task.unsqueeze(1))

    @torch.no_grad()
    def update(self, returns: Float[Tensor, " batch"], tasks: Int[Tensor, " batch"]) -> None:
        """Update the statistics with returns R, and w and b such that no value changes.

            μ_t ← μ_t + β_t (mean R − μ_t),  ν_t ← ν_t + β_t (mean R² − ν_t)
            w_t ← w_t σ_t / σ′_t,            b_t ← (σ_t b_t + μ_t − μ′_t) / σ′_t

        for each task t that is present, where β_t = rate / (1 − (1 − rate)^k) at the k-th update of
        the task, so that the first update replaces the initial statistics. The optimizer's moments
        of w and b are not changed.

        Args:
            returns: (B,), in the units of the rewards.
            tasks: (B,), the task of each return.
        """
        rows = returns.double()
        membership = F.one_hot(tasks, self.n_tasks).double()  # (B, tasks)
        moments = torch.stack([torch.ones_like(rows), rows, rows.square()], 1)  # (B, 3)
        # (tasks, B) x (B, 3) -> (tasks, 3): count, sum and sum of squares of each task
        counts, sums, sums_of_squares = (membership.T @ moments).unbind(1)
        present = counts > 0
        old_mean = self.mean.clone()
        old_std = self.std

        # new statistics
        self.n_updates += present
        step = _corrected_step(self.rate, self.n_updates)
        # also removes the rate / 0 of a task that has never been present
        step = torch.where(present, step, 0.0)
        n_rows = counts.clamp(min=1)
        self.mean += step * (sums / n_rows - self.mean)
        self.mean_of_squares += step * (sums_of_squares / n_rows - self.mean_of_squares)

        # new weights, so that σ n(h) + μ stays the same
        std = self.std
        weight = self.weight.double() * (old_std / std).unsqueeze(1)
        bias = (old_std * self.bias.double() + old_mean - self.mean) / std
        # copied in place, because the optimizer holds these parameters
        self.weight.copy_(torch.where(present.unsqueeze(1), weight, self.weight))
        self.bias.copy_(torch.where(present, bias, self.bias))


class ScaledHead(nn.Module):
    """Value head with a unit of its own, σ, which follows the size of the returns.

        V(h) = σ f(h),  σ = max(1, √ν)

    where ν is a running mean of the squared returns. Large returns then neither need large weights
    nor make the gradients of the value loss much larger than those of the policy. Returns of at
    most 1 leave σ at 1: the head is f. All tasks share the unit; ``PopArtHead`` has one for each.

    Unlike ``PopArtHead``, an ``update`` scales all values with σ. The first one replaces the
    initial ν, while V is still close to 0. The step size of the later ones decreases from about one
    half to ``rate``.

    Args:
        head: f, a head over ``Features`` with one output.
        rate: step size of ν in each ``update``, between 0 and 1.

    References:
        van Hasselt et al., "Learning Values Across Many Orders of Magnitude", NeurIPS 2016, compare
        this with PopArt.
    """

    mean_of_squares: Float[Tensor, ""]
    """ν, in float64."""
    n_updates: Int[Tensor, ""]

    def __init__(self, head: nn.Module, *, rate: float = RATE) -> None:
        super().__init__()
        self.head = head
        self.rate = rate
        self.register_buffer("mean_of_squares", torch.ones((), dtype=torch.float64))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    @property
    def unit(self) -> Float[Tensor, ""]:
        """σ, a float64 scalar."""
        return self.mean_of_squares.clamp(min=1.0).sqrt()

    def scale(self, tasks: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return σ for each row.

        Args:
            tasks: (B,), the task of each row.
        """
        return self.unit.float().expand(len(tasks))

    def forward(self, features: Features) -> Float[Tensor, "batch 1"]:
        """Return the value of each row, (B, 1)."""
        values: Tensor = self.head(features)
        return self.unit.to(values.dtype) * values

    @torch.no_grad()
    def update(self, returns: Float[Tensor, " batch"], tasks: Int[Tensor, " batch"]) -> None:
        """Update ν with returns R: ν ← ν + β (mean R² − ν).

        β = rate / (1 − (1 − rate)^k) at the k-th update, so that the first one replaces ν.

        Args:
            returns: (B,), in the units of the rewards.
            tasks: unused.
        """
        del tasks
        self.n_updates += 1
        step = _corrected_step(self.rate, self.n_updates)
        self.mean_of_squares += step * (returns.double().square().mean() - self.mean_of_squares)
