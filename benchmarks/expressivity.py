"""Count the hidden units that a network needs to compute x·z, with and without products of inputs.

    python benchmarks/expressivity.py [--steps N] [--seeds N]

Networks learn y = x·z for n numbers in x and n in z, drawn anew from a normal distribution in every
step. A network has enough hidden units if, with the better of the learning rates ``RATES``, the
median over the seeds of its error on unseen inputs is at most ``ERROR`` of the variance of y. Their
number doubles until it has, from half of what half as many inputs needed. The results go to
``benchmarks/results/expressivity.json`` after each n; repeat the command to continue after a stop.
"""

import argparse
import json
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from machine import RESULTS, write_results
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from mirl.configs.networks import BilinearConfig, FilmConfig, LowRankConfig
from mirl.policies.fusions import Bilinear, Film, LowRank

SIZES = (1, 2, 4, 8, 16)
"""Numbers n in x, and in z."""
MAX_UNITS = 4096
"""Maximum number of hidden units."""
ERROR = 0.01
"""Mean squared error that counts as computed, as a fraction of the variance of y."""
RATES = (1e-3, 1e-2)
"""Learning rates of Adam, each decreased linearly to zero."""
BATCH = 256
TEST_INPUTS = 8192


class Concatenation(nn.Module):
    """Hidden layers of ReLU units on [x, z], and a linear output."""

    def __init__(self, n: int, *widths: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*create_mlp(2 * n, 1, list(widths)))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return y, (B, 1)."""
        y: Tensor = self.layers(torch.cat([x, z], dim=1))
        return y


class FilmOutput(nn.Module):
    """``film`` with some outputs, and a linear layer of them."""

    def __init__(self, n: int, units: int) -> None:
        super().__init__()
        self.fusion = Film(n, n, units, FilmConfig(), gain=1.0)
        self.output = nn.Linear(units, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return y, (B, 1)."""
        y: Tensor = self.output(self.fusion(x, z))
        return y


def two_layers(n: int, units: int) -> nn.Module:
    """Return a concatenation with two equal hidden layers."""
    return Concatenation(n, units, units)


def bilinear(n: int, _units: int) -> nn.Module:
    """Return the bilinear layer, which has no hidden units."""
    return Bilinear(n, n, 1, BilinearConfig(), gain=1.0)


def low_rank(n: int, units: int) -> nn.Module:
    """Return a bilinear layer whose rank is the number of units."""
    return LowRank(n, n, 1, LowRankConfig(rank=units), gain=1.0)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "concatenation, one hidden layer": Concatenation,
    "concatenation, two hidden layers": two_layers,
    "film": FilmOutput,
    "low_rank": low_rank,
    "bilinear": bilinear,
}


def error_of(network: nn.Module, n: int, rate: float, steps: int, seed: int) -> float:
    """Return the error of a network on unseen inputs after training, over the variance of y.

    Args:
        network: the network.
        n: numbers in x, and in z.
        rate: learning rate at the start.
        steps: steps of Adam.
        seed: seed of the inputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        x, z = torch.randn(2, count, n, generator=generator)
        return x, z, (x * z).sum(1, keepdim=True) / math.sqrt(n)  # of variance 1

    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        x, z, y = draw(BATCH)
        loss = nn.functional.mse_loss(network(x, z), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x, z, y = draw(TEST_INPUTS)
    with torch.no_grad():
        return float(nn.functional.mse_loss(network(x, z), y))


def lowest_error(name: str, n: int, units: int, steps: int, seeds: int) -> float:
    """Return the median error over the seeds, with the better learning rate.

    Of seeds that are left out because the others decide, the error does not count.

    Args:
        name: name of the network.
        n: numbers in x, and in z.
        units: number of hidden units.
        steps: steps of Adam.
        seeds: number of seeds.
    """
    lowest = math.inf
    for rate in RATES:
        errors: list[float] = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            errors.append(error_of(NETWORKS[name](n, units), n, rate, steps, seed))
            # the median is decided once more than half of the seeds agree
            if 2 * sum(error <= ERROR for error in errors) > seeds:
                return median(errors)
            if 2 * sum(error > ERROR for error in errors) > seeds:
                break
        lowest = min(lowest, median(errors))
    return lowest


def smallest(name: str, n: int, units: int, steps: int, seeds: int) -> dict[str, Any]:
    """Return the smallest number of hidden units that is able, with its parameters and error.

    Args:
        name: name of the network.
        n: numbers in x, and in z.
        units: number of hidden units to begin with.
        steps: steps of Adam.
        seeds: number of seeds.
    """
    while True:
        error = lowest_error(name, n, units, steps, seeds)
        if error <= ERROR or units == MAX_UNITS or name == "bilinear":
            parameters = NETWORKS[name](n, units).parameters()
            return {
                "network": name,
                "n": n,
                "able": error <= ERROR,
                "units": units,
                "parameters": sum(parameter.numel() for parameter in parameters),
                "error": error,
            }
        units *= 2


def cell(result: dict[str, Any]) -> str:
    """Return the cell of a result: its hidden units and parameters."""
    if not result["able"]:
        return f"more than {result['units']:,} (error {result['error']:.2f})"
    parameters = f"{result['parameters']:,} parameters"
    if result["network"] == "bilinear":
        return parameters
    return f"{result['units']:,}; {parameters}"


def main() -> None:
    """Measure what is missing of the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000, help="steps of Adam")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "expressivity.json"
    done: list[dict[str, Any]] = []
    if path.exists():
        done = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    for n in SIZES:
        for name in NETWORKS:
            if not any((result["network"], result["n"]) == (name, n) for result in done):
                before = [result["units"] for result in done if result["network"] == name]
                first = max(before[-1] // 2, 1) if before else 1
                result = smallest(name, n, first, arguments.steps, arguments.seeds)
                print(result, flush=True)  # noqa: T201
                done.append(result)
        rows = []
        for size in SIZES[: SIZES.index(n) + 1]:
            cells = {result["network"]: cell(result) for result in done if result["n"] == size}
            rows.append([str(size), *(cells[name] for name in NETWORKS)])
        write_results("expressivity", ["n", *NETWORKS], rows, done)


if __name__ == "__main__":
    main()
