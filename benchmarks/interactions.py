"""Time every interaction by itself, alternating: ``python benchmarks/interactions.py [--rounds 15]``.

Batch 2048, context 64, features and outputs 128; few distinct contexts (24) or one per row; forward, and forward with
backward; float32 and bfloat16. Beside the family: ``torch.nn.Bilinear``, the einsum of the bilinear form, a plain layer
over [x, z], and the floor of every form without shared contexts: the matrix product (batch, X) × (X, Z·O) alone.
A second table forces both forms of the bilinear term at growing numbers of contexts: the rule which to take is there.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from machine import write_results
from throughput import spread
from torch import Tensor, nn

from mirl.configs.networks import FusionConfig, choose
from mirl.policies import Fusion, build_fusion, grouping

BATCH, CONTEXT, FEATURES, OUT, FEW = 2048, 64, 128, 128, 24
FAMILY = ("concat", "bilinear", "low_rank", "hyper", "film", "gate", "attention", "metric")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Forward = Callable[[], Tensor]


def seconds_of(forward: Forward, leaves: list[Tensor], *, backward: bool, bf16: bool) -> float:
    """One call."""
    _wait()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
        y = forward()
    if backward:
        torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def subjects(groups: int) -> dict[str, tuple[Forward, list[Tensor]]]:
    """What is timed, with what its gradients are for."""
    x = torch.randn(BATCH, FEATURES, device=DEVICE, requires_grad=True)
    z = torch.randn(groups, CONTEXT, device=DEVICE, requires_grad=True)
    index = torch.arange(BATCH, device=DEVICE) * groups // BATCH
    found: dict[str, tuple[Forward, list[Tensor]]] = {}

    def add(name: str, module: nn.Module, forward: Forward) -> None:
        found[name] = forward, [x, z, *module.parameters()]

    rows = (lambda: z[index]) if groups < BATCH else (lambda: z)
    for name in FAMILY:
        fusion = build_fusion(choose(name, FusionConfig), FEATURES, CONTEXT, OUT).to(DEVICE)
        shared = grouping.Groups(index, groups, ordered=True) if groups < BATCH else None
        add(name, fusion, lambda fusion=fusion, shared=shared: fusion(x, z, shared))
    plain = nn.Linear(FEATURES + CONTEXT, OUT, device=DEVICE)
    add("nn.Linear over [x, z]", plain, lambda: plain(torch.cat([x, rows()], dim=1)))
    bilinear = nn.Bilinear(CONTEXT, FEATURES, OUT, device=DEVICE)
    add("einsum", bilinear, lambda: torch.einsum("bz,ozx,bx->bo", rows(), bilinear.weight, x))
    floor = nn.Linear(FEATURES, CONTEXT * OUT, bias=False, device=DEVICE)
    add("GEMM floor", floor, lambda: floor(x))
    add("nn.Bilinear", bilinear, lambda: bilinear(rows(), x))
    return found


def compare(rounds: int, *, groups: int, backward: bool, bf16: bool) -> dict[str, list[float]]:
    """Seconds of each subject; ``nn.Bilinear`` is slow, and three rounds must do for it."""
    torch.manual_seed(0)
    timed = subjects(groups)
    if bf16:  # it knows no autocast on the CPU, and einsum's order of products exceeds the memory there
        del timed["nn.Bilinear"], timed["einsum"]
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds + 1):
        for name, (forward, leaves) in timed.items():
            if name != "nn.Bilinear" or turn < 4:
                taken = seconds_of(forward, leaves, backward=backward, bf16=bf16)
                if turn:  # the first is the warm-up
                    seconds[name].append(taken)
    return seconds


def rule(rounds: int) -> list[list[str]]:
    """Both forms of the bilinear term, forced, at growing numbers of distinct contexts."""
    rows = []
    for name, (x_dim, z_dim, out) in {"128 × 64 → 128": (128, 64, 128), "64 × 64 → 7": (64, 64, 7)}.items():
        for count in (8, 32, 64, 128, 256, 512, 1024):
            fusion = build_fusion(choose("bilinear", FusionConfig), x_dim, z_dim, out).to(DEVICE)
            x = torch.randn(BATCH, x_dim, device=DEVICE, requires_grad=True)
            z = torch.randn(count, z_dim, device=DEVICE, requires_grad=True)
            index = torch.arange(BATCH, device=DEVICE) * count // BATCH
            grouped, by_row = (1000 * statistics.median(seconds) for seconds in both_forms(rounds, fusion, x, z, index))
            chosen = grouping.Groups(index, count).are_worth_it(x_dim * z_dim * out)
            form = "grouped" if chosen else "row by row"
            rows.append([name, f"{BATCH / count:.0f}", f"{grouped:.2f}", f"{by_row:.2f}", form])
    return rows


def both_forms(rounds: int, fusion: Fusion, x: Tensor, z: Tensor, index: Tensor) -> tuple[list[float], list[float]]:
    """Seconds of forward and backward in the grouped and in the row-by-row form, alternating."""
    leaves = [x, z, *fusion.parameters()]

    def forward() -> Tensor:
        y: Tensor = fusion(x, z, grouping.Groups(index, len(z), ordered=True))
        return y

    found: tuple[list[float], list[float]] = ([], [])
    before = grouping.GROUP_OVERHEAD
    for turn in range(rounds + 1):
        for seconds, overhead in zip(found, (-math.inf, math.inf), strict=True):
            grouping.GROUP_OVERHEAD = overhead
            taken = seconds_of(forward, leaves, backward=True, bf16=False)
            if turn:  # the first is the warm-up
                seconds.append(taken)
    grouping.GROUP_OVERHEAD = before
    return found


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    measurements: dict[str, dict[str, list[float]]] = {}
    for groups, how in ((FEW, f"{FEW} contexts"), (BATCH, "all distinct")):
        for backward in (False, True):
            for bf16 in (False, True):
                column = f"{how}, {'forward + backward' if backward else 'forward'}, {'bf16' if bf16 else 'fp32'}"
                measurements[column] = compare(arguments.rounds, groups=groups, backward=backward, bf16=bf16)
    suffix = "_cuda" if DEVICE.type == "cuda" else ""
    rows = [
        [name, *(_cell(measured.get(name), measured["GEMM floor"]) for measured in measurements.values())]
        for name in next(iter(measurements.values()))
    ]
    write_results(f"interactions{suffix}", ["milliseconds, median", *measurements], rows, measurements)
    columns = ["forward + backward, float32", "ratio, median (smallest – largest)"]
    write_results(f"interaction_ratios{suffix}", columns, ratios(measurements), {})
    columns = ["features × context → outputs", "rows per context", "grouped, ms", "row by row, ms", "the rule takes"]
    write_results(f"interaction_forms{suffix}", columns, rule(arguments.rounds), {})


def ratios(measurements: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """How the forms of the bilinear interaction compare, round by round."""
    few, distinct = (measurements[f"{how}, forward + backward, fp32"] for how in (f"{FEW} contexts", "all distinct"))
    compared = {
        f"{FEW} contexts: nn.Bilinear / bilinear": (few["nn.Bilinear"], few["bilinear"]),
        f"{FEW} contexts: einsum / bilinear": (few["einsum"], few["bilinear"]),
        f"{FEW} contexts: bilinear / nn.Linear over [x, z]": (few["bilinear"], few["nn.Linear over [x, z]"]),
        "all distinct: bilinear / GEMM floor": (distinct["bilinear"], distinct["GEMM floor"]),
    }
    return [
        [name, spread([one / other for one, other in zip(seconds, others, strict=False)], 2)]
        for name, (seconds, others) in compared.items()
    ]


def _cell(seconds: list[float] | None, floor: list[float]) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * statistics.median(seconds):.2f} ({statistics.median(seconds) / statistics.median(floor):.2f})"


if __name__ == "__main__":
    main()
