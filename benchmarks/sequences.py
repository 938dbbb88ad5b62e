"""Compare recurrent cores on supervised sequence tasks, at equal parameters, over several seeds.

    python benchmarks/sequences.py copy      # repeat ten symbols, permuted depending on the context
    python benchmarks/sequences.py recall    # six key-value pairs; answer every key, permuted too
    python benchmarks/sequences.py text      # predict the next character of MIRL's own files

In the first two tasks the context z selects one of four permutations of the symbols, so the same
sequence has four right answers. Every core sees z and the symbols at each timestep; ``mi_lstm``
also modulates its gates by z. All cores have as many parameters as ``lstm``, and train with the
same learning rate and number of steps. After each run, the results are written to
``benchmarks/results/sequences_TASK.json``.
"""

# Shapes: T timesteps, B sequences, I input features, O output features.

import argparse
import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import ROOT, write_results
from torch import Tensor, nn
from torch.nn import functional as F

from mirl.agents.comparison.equal_parameters import width_for
from mirl.configs.networks import RecurrentConfig, choose
from mirl.policies import count_parameters
from mirl.policies.memory.build import build_core
from mirl.policies.memory.episodes import Episodes

CORES: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm"},
    "gru": {"kind": "gru"},
    "mi_lstm, low rank": {"kind": "mi_lstm", "form": "low_rank"},
    "mi_lstm, diagonal": {"kind": "mi_lstm", "form": "diagonal"},
    "fast_weights": {"kind": "fast_weights"},
    "attention": {"kind": "attention"},
}
"""Options of each core."""
LSTM_SIZE = 128
"""Hidden size of ``lstm``, whose number of parameters the others match."""

N_SYMBOLS = 8
N_CONTEXTS = 4
N_COPIED = 10
"""Symbols of a sequence to copy."""
N_KEYS = 16
N_PAIRS = 6
"""Key-value pairs of a sequence to recall."""
PERMUTATIONS = np.stack(
    [np.random.default_rng(context).permutation(N_SYMBOLS) for context in range(N_CONTEXTS)]
)
"""The symbol to answer, (contexts, symbols)."""
NO_SYMBOL = -1
"""Input at a timestep without a symbol; target at a timestep without an answer."""
TEXT_LENGTH = 64
"""Characters of a piece of text."""

BATCH = 64
LEARNING_RATE = 3e-3
TEST_BATCHES = 100


class Batch(NamedTuple):
    """Sequences, time first."""

    inputs: Tensor
    """(T, B, I)"""
    context: Tensor | None
    """(T · B, Z), if the task has a context."""
    targets: Tensor
    """(T, B), ``NO_SYMBOL`` where no answer is required."""


BatchStream = Callable[[bool, np.random.Generator], Iterator[Batch]]
"""Endless batches: training data if the first argument is true, else unseen data."""


class Task(NamedTuple):
    """A task: its dimensions, training steps and data."""

    inputs_dim: int
    context_dim: int
    outputs_dim: int
    steps: int
    batches: BatchStream


# -------------------------------------------------------------------------------- copy and recall


def encode(inputs: list[np.ndarray], contexts: np.ndarray, targets: np.ndarray) -> Batch:
    """Encode symbols and contexts as concatenated one-hot vectors.

    Args:
        inputs: Symbols of shape (T, B), preceded by keys of the same shape, if there are any.
        contexts: The context of each sequence, of shape (B,).
        targets: The answers, of shape (T, B).
    """
    sizes = [N_SYMBOLS]
    if len(inputs) == 2:
        sizes = [N_KEYS, N_SYMBOLS]
    parts = []
    for indices, size in zip(inputs, sizes, strict=True):
        # index -1 takes the last row, whose 1 is cut off: a missing symbol is a vector of zeros
        one_hot = np.eye(size + 1, dtype=np.float32)[indices]
        parts.append(one_hot[..., :size])
    z = np.eye(N_CONTEXTS, dtype=np.float32)[np.broadcast_to(contexts, targets.shape)]
    return Batch(
        inputs=torch.from_numpy(np.concatenate([*parts, z], axis=-1)),
        context=torch.from_numpy(z).flatten(0, 1),  # (T, B, Z) -> (T · B, Z)
        targets=torch.from_numpy(targets),
    )


def copy_batches(training: bool, random: np.random.Generator) -> Iterator[Batch]:
    """Yield sequences of ten symbols, then ten timesteps in which to answer them.

    Args:
        training: Ignored, because all data are random.
        random: Random generator for the data.
    """
    while True:
        symbols = random.integers(N_SYMBOLS, size=(N_COPIED, BATCH))
        contexts = random.integers(N_CONTEXTS, size=BATCH)
        nothing = np.full_like(symbols, NO_SYMBOL)
        inputs = np.concatenate([symbols, nothing])
        targets = np.concatenate([nothing, PERMUTATIONS[contexts, symbols]])
        yield encode([inputs], contexts, targets)


def recall_batches(training: bool, random: np.random.Generator) -> Iterator[Batch]:
    """Yield sequences of six key-value pairs, then only the keys in another order.

    Args:
        training: Ignored, because all data are random.
        random: Random generator for the data.
    """
    while True:
        all_keys = np.tile(np.arange(N_KEYS)[:, None], BATCH)
        keys = random.permuted(all_keys, axis=0)[:N_PAIRS]
        values = random.integers(N_SYMBOLS, size=(N_PAIRS, BATCH))
        contexts = random.integers(N_CONTEXTS, size=BATCH)
        order = random.permuted(np.tile(np.arange(N_PAIRS)[:, None], BATCH), axis=0)
        asked_keys = np.take_along_axis(keys, order, axis=0)
        answers = np.take_along_axis(values, order, axis=0)
        nothing = np.full_like(values, NO_SYMBOL)
        inputs = [np.concatenate([keys, asked_keys]), np.concatenate([values, nothing])]
        targets = np.concatenate([nothing, PERMUTATIONS[contexts, answers]])
        yield encode(inputs, contexts, targets)


# ------------------------------------------------------------------------------------------- text


def load_text() -> str:
    """Return MIRL's documents and sources, one after the other."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    for folder in ("agents", "envs", "policies"):
        paths += ROOT.glob(f"{folder}/*.py")
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(paths))


def text_batches(characters: np.ndarray, n_kinds: int) -> BatchStream:
    """Return a stream of pieces of a text whose last tenth is held out.

    Args:
        characters: The index of each character.
        n_kinds: Number of distinct characters.
    """
    held_out = len(characters) * 9 // 10

    def batches(training: bool, random: np.random.Generator) -> Iterator[Batch]:
        subset = characters[held_out:]
        if training:
            subset = characters[:held_out]
        offsets = np.arange(TEXT_LENGTH + 1)[:, None]
        while True:
            starts = random.integers(len(subset) - TEXT_LENGTH, size=BATCH)
            piece = torch.from_numpy(subset[starts + offsets])  # (T + 1, B)
            inputs = F.one_hot(piece[:-1], n_kinds).float()
            yield Batch(inputs, None, piece[1:])

    return batches


def build_task(name: str) -> Task:
    """Build a task.

    Args:
        name: ``copy``, ``recall`` or ``text``.
    """
    symbols_dim = N_SYMBOLS + N_CONTEXTS
    match name:
        case "copy":
            return Task(symbols_dim, N_CONTEXTS, N_SYMBOLS, 1_500, copy_batches)
        case "recall":
            return Task(N_KEYS + symbols_dim, N_CONTEXTS, N_SYMBOLS, 1_000, recall_batches)
        case _:
            kinds, characters = np.unique(np.array(list(load_text())), return_inverse=True)
            n_kinds = len(kinds)
            return Task(n_kinds, 0, n_kinds, 1_000, text_batches(characters, n_kinds))


# --------------------------------------------------------------------------------------- learning


class SequenceModel(nn.Module):
    """A recurrent core with a linear output layer.

    Args:
        config: The configuration of the core.
        task: The task, for its dimensions.
    """

    def __init__(self, config: RecurrentConfig, task: Task) -> None:
        super().__init__()
        self.core = build_core(config, task.inputs_dim, task.context_dim)
        self.output = nn.Linear(self.core.out_dim, task.outputs_dim)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of the answers, of shape (T, B, O)."""
        # every sequence is one episode, with a hidden state of zeros at its start
        starts = np.zeros(batch.targets.shape, np.bool_)
        starts[0] = True
        hidden_state = torch.zeros(starts.shape[1], self.core.state_dim)
        features, _ = self.core(batch.inputs, hidden_state, Episodes(starts), batch.context)
        logits: Tensor = self.output(features)
        return logits


def core_config(options: dict[str, Any], size: int) -> RecurrentConfig:
    """Return the configuration of a core, without normalization of its one-hot inputs.

    Args:
        options: The options of the core.
        size: Its hidden size.
    """
    config: RecurrentConfig = choose(options["kind"], RecurrentConfig)
    return type(config).model_validate({"normalize": False, **options, "size": size})


def matched_config(options: dict[str, Any], task: Task) -> RecurrentConfig:
    """Return the smallest core with at least as many parameters as an LSTM of ``LSTM_SIZE``.

    Args:
        options: The options of the core.
        task: The task, for its dimensions.
    """

    def parameters(config: RecurrentConfig) -> int:
        return count_parameters(SequenceModel(config, task))

    target = parameters(core_config(CORES["lstm"], LSTM_SIZE))
    # attention needs a size that is a multiple of twice its number of heads
    heads = getattr(core_config(options, LSTM_SIZE), "heads", None)
    unit = 1
    if heads is not None:
        unit = 2 * heads
    units = width_for(target, lambda units: parameters(core_config(options, unit * units)))
    return core_config(options, unit * units)


def train_and_test(config: RecurrentConfig, task: Task, seed: int) -> dict[str, float]:
    """Train a core and test it on unseen sequences.

    Args:
        config: The configuration of the core.
        task: The task.
        seed: The seed of the weights and the data.

    Returns:
        The cross-entropy in bits per answer, and the accuracy.
    """
    torch.manual_seed(seed)
    model = SequenceModel(config, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, task.steps)
    training_data = task.batches(True, np.random.default_rng((seed, 0)))
    for batch in islice(training_data, task.steps):
        optimizer.zero_grad()
        logits = model(batch).flatten(0, 1)  # (T, B, O) -> (T · B, O)
        loss = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=NO_SYMBOL)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    losses = []
    accuracies = []
    unseen_data = task.batches(False, np.random.default_rng((seed, 1)))
    with torch.no_grad():
        for batch in islice(unseen_data, TEST_BATCHES):
            is_asked = batch.targets != NO_SYMBOL
            logits = model(batch)[is_asked]
            targets = batch.targets[is_asked]
            losses.append(F.cross_entropy(logits, targets))
            accuracies.append((logits.argmax(-1) == targets).float().mean())
    bits = torch.stack(losses).mean() / np.log(2)
    return {"bits": float(bits), "accuracy": float(torch.stack(accuracies).mean())}


def table_row(name: str, parameters: int, runs: list[dict[str, float]]) -> list[str]:
    """Return a row of the table: mean, minimum and maximum over the seeds.

    Args:
        name: The name of the core.
        parameters: Its number of parameters, with the output layer.
        runs: The result of each seed.
    """
    cells = []
    for key, form in (("accuracy", "{:.1%}"), ("bits", "{:.3f}")):
        values = [run[key] for run in runs]
        mean = form.format(np.mean(values))
        cells.append(f"{mean} ({form.format(min(values))} – {form.format(max(values))})")
    return [name, f"{parameters:,}", str(len(runs)), *cells]


def main() -> None:
    """Compare the cores on a task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("copy", "recall", "text"))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument(
        "--memories",
        nargs="+",
        choices=CORES,
        default=list(CORES),
        metavar="MEMORY",
        help=f"recurrent cores, of {'; '.join(CORES)}; all by default",
    )
    arguments = parser.parse_args()
    task = build_task(arguments.task)
    configs = {}
    parameters = {}
    for name in arguments.memories:
        configs[name] = matched_config(CORES[name], task)
        parameters[name] = count_parameters(SequenceModel(configs[name], task))

    source = {}
    if arguments.task == "text":
        # the files change with the project, so record a hash of the text
        source["text"] = hashlib.sha256(load_text().encode()).hexdigest()
    columns = ["memory", "parameters", "seeds", "accuracy", "bits per answer"]
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        for name, config in configs.items():
            result = train_and_test(config, task, seed)
            results.setdefault(name, []).append(result)
            print(name, seed, result, flush=True)  # noqa: T201
            rows = [table_row(each, parameters[each], runs) for each, runs in results.items()]
            write_results(f"sequences_{arguments.task}", columns, rows, {**source, **results})


if __name__ == "__main__":
    main()
