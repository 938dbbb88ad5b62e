"""Measure the time of every fusion separately.

    python benchmarks/interactions.py [--rounds 15]

Batch 2048, context 64, features and outputs 128; few distinct contexts (24) or one per row;
forward, and forward with backward; float32 and bfloat16. For comparison: ``torch.nn.Bilinear``, the
einsum of the bilinear form, a linear layer over [x, z], and just the matrix product (batch, X) ×
(X, Z·O), a lower bound for every full bilinear form with one context per row ("GEMM floor").
All layers are timed in turn, round by round.

A second table measures both forms of the bilinear term with more and more contexts, to check the
rule that chooses between them (``policies/grouped_matmul.py``).
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from machine import write_results
from measurement import spread
from torch import Tensor, nn

from mirl.configs.networks import FusionConfig, choose
from mirl.policies import Fusion, build_fusion
from mirl.policies import grouped_matmul as grouping

BATCH = 2048
CONTEXT = 64
FEATURES = 128
OUT = 128
FEW = 24
"""Number of contexts when rows share contexts."""
FUSIONS = ("concat", "bilinear", "low_rank", "hyper", "film", "gate", "attention", "metric")
BILINEAR_SHAPES = ((128, 64, 128), (64, 64, 7))
"""Features, context and outputs of the second table."""
CONTEXT_COUNTS = (8, 32, 64, 128, 256, 512, 1024)
"""Numbers of distinct contexts of the second table."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Subject(NamedTuple):
    """A layer to time: its forward pass, and the tensors to differentiate with respect to."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]


def time_call(subject: Subject, *, backward: bool, bf16: bool) -> float:
    """Return the seconds of one call.

    Args:
        subject: The layer.
        backward: Include the backward pass.
        bf16: Compute the forward pass in bfloat16 autocast.
    """
    _synchronize()
    start = time.perf_counter()
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16)
    with torch.set_grad_enabled(backward), autocast:
        y = subject.forward()
    if backward:
        torch.autograd.grad(y, subject.leaves, torch.ones_like(y), allow_unused=True)
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _inputs(features: int, context: int, n_contexts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (B, X), distinct contexts (C, Z) and the context index of each row (B,)."""
    x = torch.randn(BATCH, features, device=DEVICE, requires_grad=True)
    z = torch.randn(n_contexts, context, device=DEVICE, requires_grad=True)
    index = torch.arange(BATCH, device=DEVICE) * n_contexts // BATCH
    return x, z, index


def build_subjects(n_contexts: int) -> dict[str, Subject]:
    """Build the layers to time.

    Args:
        n_contexts: Number of distinct contexts in the batch.
    """
    x, z, index = _inputs(FEATURES, CONTEXT, n_contexts)
    is_shared = n_contexts < BATCH
    subjects: dict[str, Subject] = {}

    def add(name: str, module: nn.Module, forward: Callable[[], Tensor]) -> None:
        subjects[name] = Subject(forward, [x, z, *module.parameters()])

    def context_rows() -> Tensor:
        # the layers that do not share contexts need one per row
        return z[index] if is_shared else z

    for name in FUSIONS:
        fusion = build_fusion(choose(name, FusionConfig), FEATURES, CONTEXT, OUT).to(DEVICE)
        groups = None
        if is_shared:
            groups = grouping.ContextGroups(index, n_contexts, ordered=True)
        add(name, fusion, lambda fusion=fusion, groups=groups: fusion(x, z, groups))

    linear = nn.Linear(FEATURES + CONTEXT, OUT, device=DEVICE)
    add("nn.Linear over [x, z]", linear, lambda: linear(torch.cat([x, context_rows()], dim=1)))

    bilinear = nn.Bilinear(CONTEXT, FEATURES, OUT, device=DEVICE)
    add(
        "einsum",
        bilinear,
        lambda: torch.einsum("bz,ozx,bx->bo", context_rows(), bilinear.weight, x),
    )

    floor = nn.Linear(FEATURES, CONTEXT * OUT, bias=False, device=DEVICE)
    add("GEMM floor", floor, lambda: floor(x))

    add("nn.Bilinear", bilinear, lambda: bilinear(context_rows(), x))
    return subjects


def time_subjects(
    rounds: int, *, n_contexts: int, backward: bool, bf16: bool
) -> dict[str, list[float]]:
    """Time all layers in turn.

    Args:
        rounds: Number of calls per layer, after one for warm-up.
        n_contexts: Number of distinct contexts in the batch.
        backward: Include the backward pass.
        bf16: Compute the forward pass in bfloat16 autocast.

    Returns:
        The seconds of each call, by layer.
    """
    torch.manual_seed(0)
    subjects = build_subjects(n_contexts)
    if bf16:
        # On a CPU, autocast does not support nn.Bilinear, and einsum contracts in an order that
        # runs out of memory.
        del subjects["nn.Bilinear"], subjects["einsum"]
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, subject in subjects.items():
            # nn.Bilinear is so slow that three rounds must suffice
            if name == "nn.Bilinear" and turn > 3:
                continue
            taken = time_call(subject, backward=backward, bf16=bf16)
            if turn > 0:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def form_rows(rounds: int) -> list[list[str]]:
    """Time both forms of the bilinear term with more and more contexts.

    Args:
        rounds: Number of calls per form, after one for warm-up.

    Returns:
        The rows of the table.
    """
    rows = []
    for features, context, out in BILINEAR_SHAPES:
        for n_contexts in CONTEXT_COUNTS:
            config = choose("bilinear", FusionConfig)
            fusion = build_fusion(config, features, context, out).to(DEVICE)
            x, z, index = _inputs(features, context, n_contexts)
            grouped, by_row = time_both_forms(rounds, fusion, x, z, index)
            chosen = "row by row"
            if grouping.ContextGroups(index, n_contexts).prefer_grouped(features * context * out):
                chosen = "grouped"
            row = [
                f"{features} × {context} → {out}",
                f"{BATCH / n_contexts:.0f}",
                f"{1000 * statistics.median(grouped):.2f}",
                f"{1000 * statistics.median(by_row):.2f}",
                chosen,
            ]
            rows.append(row)
    return rows


def time_both_forms(
    rounds: int, fusion: Fusion, x: Tensor, z: Tensor, index: Tensor
) -> tuple[list[float], list[float]]:
    """Time forward and backward of the grouped and the row-by-row form, in turn.

    Args:
        rounds: Number of calls per form, after one for warm-up.
        fusion: A bilinear fusion.
        x: Features, of shape (B, X).
        z: Distinct contexts, of shape (C, Z).
        index: The context of each row, of shape (B,), in ascending order.

    Returns:
        The seconds of the grouped and of the row-by-row form.
    """

    def forward() -> Tensor:
        y: Tensor = fusion(x, z, grouping.ContextGroups(index, len(z), ordered=True))
        return y

    subject = Subject(forward, [x, z, *fusion.parameters()])
    seconds: tuple[list[float], list[float]] = ([], [])
    overhead_before = grouping.GROUP_OVERHEAD
    for turn in range(rounds + 1):
        # an overhead of -inf forces the grouped form, one of +inf the row-by-row form
        for of_form, overhead in zip(seconds, (-math.inf, math.inf), strict=True):
            grouping.GROUP_OVERHEAD = overhead
            taken = time_call(subject, backward=True, bf16=False)
            if turn > 0:  # the first round warms up
                of_form.append(taken)
    grouping.GROUP_OVERHEAD = overhead_before
    return seconds


def ratio_rows(measurements: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Compare the forms of the bilinear fusion, round by round.

    Args:
        measurements: The seconds of each layer, by column of the first table.

    Returns:
        The rows of the table.
    """
    few = measurements[f"{FEW} contexts, forward + backward, fp32"]
    distinct = measurements["all distinct, forward + backward, fp32"]
    linear = "nn.Linear over [x, z]"
    compared = (
        (f"{FEW} contexts: nn.Bilinear / bilinear", few["nn.Bilinear"], few["bilinear"]),
        (f"{FEW} contexts: einsum / bilinear", few["einsum"], few["bilinear"]),
        (f"{FEW} contexts: bilinear / {linear}", few["bilinear"], few[linear]),
        ("all distinct: bilinear / GEMM floor", distinct["bilinear"], distinct["GEMM floor"]),
    )
    rows = []
    for name, numerators, denominators in compared:
        # nn.Bilinear has fewer rounds than the other layers
        ratios = [a / b for a, b in zip(numerators, denominators, strict=False)]
        rows.append([name, spread(ratios, 2)])
    return rows


def _cell(seconds: list[float] | None, floor: list[float]) -> str:
    if seconds is None:
        return "–"
    median = statistics.median(seconds)
    return f"{1000 * median:.2f} ({median / statistics.median(floor):.2f})"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds

    measurements: dict[str, dict[str, list[float]]] = {}
    for n_contexts, contexts in ((FEW, f"{FEW} contexts"), (BATCH, "all distinct")):
        for backward in (False, True):
            for bf16 in (False, True):
                passes = "forward + backward" if backward else "forward"
                precision = "bf16" if bf16 else "fp32"
                measurements[f"{contexts}, {passes}, {precision}"] = time_subjects(
                    rounds, n_contexts=n_contexts, backward=backward, bf16=bf16
                )
    rows = []
    for name in next(iter(measurements.values())):
        row = [name]
        for seconds in measurements.values():
            row.append(_cell(seconds.get(name), seconds["GEMM floor"]))
        rows.append(row)

    suffix = "_cuda" if DEVICE.type == "cuda" else ""
    columns = ["median ms (ratio to the GEMM floor)", *measurements]
    write_results(f"interactions{suffix}", columns, rows, measurements)

    columns = ["forward + backward, float32", "ratio, median (min – max)"]
    write_results(f"interaction_ratios{suffix}", columns, ratio_rows(measurements), {})

    columns = ["features × context → outputs", "rows per context"]
    columns += ["grouped, ms", "row by row, ms", "chosen form"]
    write_results(f"interaction_forms{suffix}", columns, form_rows(rounds), {})


if __name__ == "__main__":
    main()
