"""Comparison of existing runs: every pair plays the same episodes, and nothing is trained."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mirl.agents.builder import Policy
from mirl.agents.comparison.experiment import RESULTS
from mirl.agents.comparison.machine import command_line, machine
from mirl.agents.comparison.statistics import mcnemar, paired_bootstrap
from mirl.agents.comparison.summary import Row
from mirl.agents.comparison.tables import Table, run_pairs_table, write_tables
from mirl.agents.evaluation import build_test_env, evaluate
from mirl.agents.policy_loader import restore_policy
from mirl.agents.runs.atomic_files import make_folder, write_json
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import SUBSETS, TaskResult
from mirl.configs.comparison import RunComparisonConfig
from mirl.configs.compose import parse_flat
from mirl.configs.errors import ConfigError
from mirl.configs.schema import EvalConfig


class Contestant(NamedTuple):
    """A checkpoint of a run and the options of its evaluation."""

    name: str
    run: RunDirectory
    checkpoint: Checkpoint
    options: EvalConfig


def compare_runs(config: RunComparisonConfig, log: Callable[[str], None] = lambda _: None) -> Table:
    """Evaluate runs on the same episodes, compare each pair, and write the results.

    This compares these checkpoints, not the settings that they were trained with: training again
    with another seed may make a larger difference.

    Args:
        config: the runs and the options of their evaluation.
        log: called with one line per run.

    Returns:
        The table.

    Raises:
        ConfigError: an option is invalid, or the runs have different tasks.
    """
    contestants = [_open(config, index) for index in range(len(config.runs))]
    _check_same_episodes(contestants)
    results = []
    for contestant in contestants:
        log(f"{contestant.name}: playing with {contestant.checkpoint.name}")
        results.append(list(_play(contestant)))
    rows: list[Row] = []
    for first, second in combinations(range(len(contestants)), 2):
        names = {"first": contestants[first].name, "second": contestants[second].name}
        rows += compare_episodes(results[first], results[second], names)
    table = run_pairs_table(rows)
    report = {
        "command": command_line(),
        "machine": machine(),
        "checkpoints": {each.name: each.checkpoint.name for each in contestants},
        "columns": table.columns,
        "rows": table.rows,
        "pairs": rows,
        "tasks": {
            each.name: [result.summary() for result in of_run]
            for each, of_run in zip(contestants, results, strict=True)
        },
    }
    make_folder(config.folder)
    write_json(config.folder / RESULTS, report)
    write_tables(config.folder, [table], {"table": rows})
    return table


def _open(config: RunComparisonConfig, index: int) -> Contestant:
    options = parse_flat(EvalConfig, [f"run={config.runs[index]}", *config.options])
    run = RunDirectory.open(options.run)
    return Contestant(config.names[index], run, run.checkpoint(options.checkpoint), options)


def _check_same_episodes(contestants: Sequence[Contestant]) -> None:
    """Raise unless all runs have the same tasks and hold out the same episodes."""
    first, *others = contestants
    for other in others:
        for what, mine, its in (
            ("tasks", first.run.config.task.tasks, other.run.config.task.tasks),
            ("a split", first.run.config.split, other.run.config.split),
        ):
            if mine != its:
                raise ConfigError(
                    f"{first.run.path} and {other.run.path} have {what} that differ, expected the "
                    "same episodes for both; compare runs of one task= and split="
                )


def _play(contestant: Contestant) -> Iterator[TaskResult]:
    """Play the test episodes of every subset, one episode per environment and seed.

    A second episode in an environment would depend on how the policy played the first one.
    """
    run = contestant.run
    options = contestant.options
    policy: Policy | None = None
    for subset in SUBSETS if run.config.split.holds_out_any else SUBSETS[:1]:
        rounds: list[list[TaskResult]] = []
        with closing(build_test_env(run, options, subset)) as env:
            if policy is None:
                policy = restore_policy(run.config, contestant.checkpoint, options.device, env)
            per_round = int(np.bincount(env.task_index).max())
            for first in range(0, options.episodes, per_round):
                played = evaluate(
                    policy,
                    env,
                    episodes=min(per_round, options.episodes - first),
                    seed=(options.seed + first) % 2**31,
                    deterministic=options.deterministic,
                    subset=subset,
                )
                rounds.append(played)
        for of_task in zip(*rounds, strict=True):
            yield _joined(of_task)


def _joined(parts: Sequence[TaskResult]) -> TaskResult:
    """Join the results of a task over several rounds into one."""
    success = None
    known = [part.success for part in parts if part.success is not None]
    if len(known) == len(parts):
        success = np.concatenate(known)
    return TaskResult(
        task=parts[0].task,
        success=success,
        returns=np.concatenate([part.returns for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        score_low=parts[0].score_low,
        score_high=parts[0].score_high,
        subset=parts[0].subset,
    )


# --------------------------------------------------------------------------------------- statistics


def compare_episodes(
    first: Sequence[TaskResult], second: Sequence[TaskResult], names: dict[str, str]
) -> list[Row]:
    """Compare two runs that have played the same episodes, task by task.

    Args:
        first: results of the first run.
        second: results of the second run, of the same episodes in the same order.
        names: the columns that name the runs.

    Returns:
        A row for the success of each task, if it is known, and one for the return.
    """
    rows: list[Row] = []
    for one, other in zip(first, second, strict=True):
        if one.success is not None and other.success is not None:
            test = mcnemar(one.success, other.success)._asdict()
            values = (one.success.astype(float), other.success.astype(float))
            rows.append(_row(one.label, names, "success", values, test))
        rows.append(_row(one.label, names, "return", (one.returns, other.returns), {}))
    return rows


def _row(
    label: str,
    names: dict[str, str],
    metric: str,
    values: tuple[np.ndarray, np.ndarray],
    test: dict[str, object],
) -> Row:
    first, second = values
    return {
        "task": label,
        **names,
        "metric": metric,
        "episodes": len(first),
        "first_mean": float(first.mean()),
        "second_mean": float(second.mean()),
        **asdict(paired_bootstrap(first - second)),
        **(test or dict.fromkeys(("only_first", "only_second", "p_value"))),
    }
