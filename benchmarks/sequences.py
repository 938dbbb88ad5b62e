"""What memories learn of sequences, at equal parameters and over several seeds.

    python benchmarks/sequences.py copy       # repeat ten symbols, each renamed as the context says
    python benchmarks/sequences.py recall     # six keys with a value each; say the values of all, renamed too
    python benchmarks/sequences.py text       # the next character of MIRL's own documents and sources

In the first two a context z renames the symbols by one of four permutations, so that the same sequence has four right
answers. Every memory reads it beside the symbols at each timestep; ``mi_lstm`` lets it scale its gates, too. The sizes
are such that all have as many parameters as ``lstm``; step size and steps are the same. Each result is written when it
is there, to ``benchmarks/results/sequences_TASK.json``.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from compare import width_for
from machine import write_results
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.configs.networks import RecurrentConfig, choose
from mirl.policies import count_parameters
from mirl.policies.cores import build_core
from mirl.policies.episodes import Episodes

ROOT = Path(__file__).parent.parent
MEMORIES: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm"},
    "gru": {"kind": "gru"},
    "mi_lstm, low rank": {"kind": "mi_lstm", "form": "low_rank"},
    "mi_lstm, diagonal": {"kind": "mi_lstm", "form": "diagonal"},
    "fast_weights": {"kind": "fast_weights"},
    "attention": {"kind": "attention"},
}
LSTM_SIZE = 128
SYMBOLS, CONTEXTS = 8, 4
COPIED, PAIRS, KEYS = 10, 6, 16
CHARACTERS = 64
"""Timesteps of a piece of text."""
BATCH = 64
RATE = 3e-3
TESTED = 100
"""Batches of what was never seen."""


class Batch(NamedTuple):
    """Sequences, time first; a target of −1 is not asked for."""

    inputs: Tensor
    context: Tensor | None
    targets: Tensor


class Task(NamedTuple):
    """What is to be learned: ``batches`` are of training, or, unless ``training``, of what was never seen."""

    inputs_dim: int
    context_dim: int
    outputs_dim: int
    steps: int
    batches: Callable[[bool, np.random.Generator], Iterator[Batch]]


# --------------------------------------------------------------------------------------------------- copy and recall

RENAMED = np.stack([np.random.default_rng(context).permutation(SYMBOLS) for context in range(CONTEXTS)])


def batch_of(shown: list[np.ndarray], contexts: np.ndarray, targets: np.ndarray) -> Batch:
    """From symbols, −1 for none, as one-hot vectors side by side with the context's."""
    sizes = [SYMBOLS] if len(shown) == 1 else [KEYS, SYMBOLS]
    parts = [
        np.eye(size + 1, dtype=np.float32)[symbols][..., :size] for symbols, size in zip(shown, sizes, strict=True)
    ]
    z = np.eye(CONTEXTS, dtype=np.float32)[np.broadcast_to(contexts, targets.shape)]
    inputs = torch.from_numpy(np.concatenate([*parts, z], axis=-1))
    return Batch(inputs, torch.from_numpy(z).flatten(0, 1), torch.from_numpy(targets))


def copying(training: bool, random: np.random.Generator) -> Iterator[Batch]:
    """Ten symbols, then as many timesteps in which they are to be said."""
    while True:
        symbols, contexts = random.integers(SYMBOLS, size=(COPIED, BATCH)), random.integers(CONTEXTS, size=BATCH)
        nothing = np.full_like(symbols, -1)
        targets = np.concatenate([nothing, RENAMED[contexts, symbols]])
        yield batch_of([np.concatenate([symbols, nothing])], contexts, targets)


def recalling(training: bool, random: np.random.Generator) -> Iterator[Batch]:
    """Six different keys with a value each, then the keys in another order."""
    while True:
        keys = random.permuted(np.tile(np.arange(KEYS)[:, None], BATCH), axis=0)[:PAIRS]
        values, contexts = random.integers(SYMBOLS, size=(PAIRS, BATCH)), random.integers(CONTEXTS, size=BATCH)
        order = random.permuted(np.tile(np.arange(PAIRS)[:, None], BATCH), axis=0)
        asked, answers = (np.take_along_axis(of_pair, order, axis=0) for of_pair in (keys, values))
        nothing = np.full_like(values, -1)
        targets = np.concatenate([nothing, RENAMED[contexts, answers]])
        yield batch_of([np.concatenate([keys, asked]), np.concatenate([values, nothing])], contexts, targets)


# --------------------------------------------------------------------------------------------------------------- text


def text() -> str:
    """MIRL's own documents and sources, one after the other."""
    names = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(p for f in ("agents", "envs", "policies") for p in ROOT.glob(f"{f}/*.py")),
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(names))


def reading(characters: np.ndarray, n_kinds: int) -> Callable[[bool, np.random.Generator], Iterator[Batch]]:
    """Pieces of the text; the last tenth is held out."""
    held_out = len(characters) * 9 // 10

    def batches(training: bool, random: np.random.Generator) -> Iterator[Batch]:
        part = characters[:held_out] if training else characters[held_out:]
        while True:
            begins = random.integers(len(part) - CHARACTERS, size=BATCH)
            piece = part[begins + np.arange(CHARACTERS + 1)[:, None]]
            yield Batch(F.one_hot(torch.from_numpy(piece[:-1]), n_kinds).float(), None, torch.from_numpy(piece[1:]))

    return batches


def build_task(name: str) -> Task:
    """A task by its name."""
    match name:
        case "copy":
            return Task(SYMBOLS + CONTEXTS, CONTEXTS, SYMBOLS, 1_500, copying)
        case "recall":
            return Task(KEYS + SYMBOLS + CONTEXTS, CONTEXTS, SYMBOLS, 1_000, recalling)
        case _:
            kinds, characters = np.unique(np.array(list(text())), return_inverse=True)
            return Task(len(kinds), 0, len(kinds), 1_000, reading(characters, len(kinds)))


# ----------------------------------------------------------------------------------------------------------- learning


class Reader(nn.Module):
    """A memory, and a linear layer that says what it makes of it."""

    def __init__(self, memory: RecurrentConfig, task: Task) -> None:
        super().__init__()
        self.core = build_core(memory, task.inputs_dim, task.context_dim)
        self.say = nn.Linear(self.core.out_dim, task.outputs_dim)

    def forward(self, batch: Batch) -> Tensor:
        starts = np.zeros(batch.targets.shape, np.bool_)
        starts[0] = True
        nothing = torch.zeros(starts.shape[1], self.core.state_dim)
        read, _ = self.core(batch.inputs, nothing, Episodes(starts), batch.context)
        logits: Tensor = self.say(read)
        return logits


def memory(options: dict[str, Any], size: int) -> RecurrentConfig:
    """The memory with these options; symbols are read as they are."""
    config: RecurrentConfig = choose(options["kind"], RecurrentConfig)
    return type(config).model_validate({"normalize": False, **options, "size": size})


def sized(options: dict[str, Any], task: Task) -> RecurrentConfig:
    """The memory that has as many parameters as an LSTM of ``LSTM_SIZE``, or a few more."""
    target = count_parameters(Reader(memory(MEMORIES["lstm"], LSTM_SIZE), task))
    unit = 2 * getattr(memory(options, LSTM_SIZE), "heads", 0) or 1  # sizes that the heads divide
    return memory(
        options, unit * width_for(target, lambda units: count_parameters(Reader(memory(options, unit * units), task)))
    )


def learn(config: RecurrentConfig, task: Task, seed: int) -> dict[str, float]:
    """Train, and tell how well what was never seen is answered."""
    torch.manual_seed(seed)
    reader = Reader(config, task)
    optimizer = torch.optim.Adam(reader.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, task.steps)
    for batch in islice(task.batches(True, np.random.default_rng((seed, 0))), task.steps):
        optimizer.zero_grad()
        F.cross_entropy(reader(batch).flatten(0, 1), batch.targets.flatten(), ignore_index=-1).backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    losses, right = [], []
    with torch.no_grad():
        for batch in islice(task.batches(False, np.random.default_rng((seed, 1))), TESTED):
            logits, asked = reader(batch), batch.targets >= 0
            losses.append(F.cross_entropy(logits[asked], batch.targets[asked]))
            right.append((logits[asked].argmax(-1) == batch.targets[asked]).float().mean())
    return {"bits": float(torch.stack(losses).mean() / np.log(2)), "right": float(torch.stack(right).mean())}


def row(name: str, parameters: int, found: list[dict[str, float]]) -> list[str]:
    """A line of the table: the mean over the seeds, and the range."""
    cells = []
    for key, form in (("right", "{:.1%}"), ("bits", "{:.3f}")):
        values = [each[key] for each in found]
        cells.append(f"{form.format(np.mean(values))} ({form.format(min(values))} – {form.format(max(values))})")
    return [name, f"{parameters:,}", str(len(found)), *cells]


def main() -> None:
    """Compare the memories on a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("copy", "recall", "text"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--memories", nargs="+", choices=MEMORIES, default=list(MEMORIES), metavar="MEMORY")
    arguments = parser.parse_args()
    task = build_task(arguments.task)
    configs = {name: sized(MEMORIES[name], task) for name in arguments.memories}
    parameters = {name: count_parameters(Reader(config, task)) for name, config in configs.items()}
    source = {"text": hashlib.sha256(text().encode()).hexdigest()} if arguments.task == "text" else {}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for seed in range(arguments.seeds):
        for name, config in configs.items():
            results[name].append(learn(config, task, seed))
            print(name, seed, results[name][-1], flush=True)  # noqa: T201
            rows = [row(each, parameters[each], found) for each, found in results.items() if found]
            columns = ["memory", "parameters", "seeds", "right", "bits per answer"]
            write_results(f"sequences_{arguments.task}", columns, rows, {**source, **results})


if __name__ == "__main__":
    main()
