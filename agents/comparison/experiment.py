"""A comparison from its configuration to its tables: plan, train what is missing, report."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple, cast

from mirl.agents.comparison.equal_parameters import matching_widths, parameters_of
from mirl.agents.comparison.figures import draw_figures
from mirl.agents.comparison.machine import command_line, machine
from mirl.agents.comparison.summary import one_line, outcomes_of, pair_rows, result_rows
from mirl.agents.comparison.tables import Table, pairs_table, results_table, write_tables
from mirl.agents.comparison.worker import RECORDS, RUNS, PlannedRun, Record, train_and_evaluate
from mirl.agents.jobs.engine import Engine
from mirl.agents.jobs.execution import LOGS, build_engine, check_engine, execute_and_log, locked
from mirl.agents.runs.atomic_files import load_json, write_json
from mirl.configs.commands.engines import ENGINE_FIELDS
from mirl.configs.comparison import ComparisonConfig
from mirl.configs.errors import ConfigError

PLAN = "comparison.json"
"""File with the configuration of the comparison in a folder."""
RESULTS = "results.json"
"""File with all results."""
NOT_IN_PLAN = ENGINE_FIELDS | {"out"}
"""Options that do not change the results."""


class ComparisonResult(NamedTuple):
    """The state of a comparison after ``compare``."""

    tables: list[Table]
    """The tables; empty if no run is finished."""
    failures: dict[str, str]
    """The reason for each failure, by the name of the run."""
    missing: int
    """Number of runs that are not finished, failed ones included."""
    ignoring: list[str]
    """Names of the runs whose agents ignore their context."""


def compare(
    config: ComparisonConfig,
    log: Callable[[str], None] = lambda _: None,
    engine: Engine | None = None,
) -> ComparisonResult:
    """Train every setting on every task with every seed, and write the results.

    Calling it again with the same configuration keeps finished runs and resumes the others. On
    Ctrl-C or SIGTERM the runs save a checkpoint and end.

    Args:
        config: the comparison.
        log: called with one line per finished or failed run.
        engine: executes the runs; None for the engine that the configuration chooses.

    Returns:
        The tables, and the runs that failed or are not finished.

    Raises:
        ConfigError: an option is invalid, the folder holds another comparison, or another process
            works on it.
    """
    folder = config.folder
    check_engine(config)
    with _locked(folder):
        runs = _plan(config, folder)
        waiting = [run for run in runs if not run.record_path(folder).exists()]
        if len(waiting) < len(runs):
            log(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already.")
        if engine is None:
            engine = build_engine(config, len(waiting), folder)
        failures = _execute(engine, waiting, folder, log)
        if not any((folder / RUNS).iterdir()):
            # no run has begun, so a corrected command may use the same folder
            (folder / PLAN).unlink()
        finished = [run for run in runs if run.record_path(folder).exists()]
        records = [_load(run, folder) for run in finished]
        tables = _write_results(config, records, failures)
        ignoring = []
        for run, record in zip(finished, records, strict=True):
            if _ignores_context(record):
                ignoring.append(run.name)
        return ComparisonResult(tables, failures, len(runs) - len(records), ignoring)


def _ignores_context(record: Record) -> bool:
    # records of earlier versions do not have it
    use = record.get("context_use")
    return use is not None and use["ignores_context"]


# --------------------------------------------------------------------------------------------- plan


def _plan(config: ComparisonConfig, folder: Path) -> list[PlannedRun]:
    """Return all runs after checking that the folder is for them, and create its folders."""
    widths = _widths(config, folder)
    runs = []
    # seed by seed, so that a stopped comparison has about as many seeds for each setting
    for seed, task, setting in product(config.seeds, config.tasks, config.settings):
        options = config.words(task, setting)
        if setting in widths.get(task, {}):
            options.append(f"{config.match}={int(widths[task][setting])}")
        runs.append(PlannedRun(setting, task, seed, tuple(options)))
    for name in (RUNS, RECORDS, LOGS):
        (folder / name).mkdir(exist_ok=True)
    return runs


def _widths(config: ComparisonConfig, folder: Path) -> dict[str, dict[str, int]]:
    """Return the widths for equal parameters by task and setting, which the folder keeps."""
    asked = config.model_dump(mode="json", exclude=set(NOT_IN_PLAN))
    path = folder / PLAN
    if path.exists():
        stored = load_json(path)
        _check_same(stored.get("comparison"), asked, folder)
        if stored["comparison"] != asked:  # seeds were added
            write_json(path, {**stored, "comparison": asked})
        return cast(dict[str, dict[str, int]], stored.get("widths"))
    widths: dict[str, dict[str, int]] = {}
    for task in config.tasks:
        words = {setting: config.words(task, setting) for setting in config.settings}
        for setting, options in words.items():
            _check_buildable(setting, task, options)
        if config.match:
            widths[task] = matching_widths(words, config.match)
    write_json(path, {"comparison": asked, "widths": widths})
    return widths


def _check_buildable(setting: str, task: str, options: Sequence[str]) -> None:
    """Raise if the agent of a setting cannot be built, before any setting is trained."""
    try:
        parameters_of(options)
    except ConfigError as error:
        raise ConfigError(f"{setting} in {task}: {error}") from None


def _check_same(stored: object, asked: Mapping[str, object], folder: Path) -> None:
    """Raise if a folder holds a comparison with other settings, tasks or options.

    Seeds may be added but not removed.
    """
    if not isinstance(stored, dict):
        raise ConfigError(f"{folder / PLAN} holds no comparison; choose another out=…")
    for key, now in asked.items():
        there = stored.get(key)
        if key == "seeds" and isinstance(there, list) and set(there) <= set(cast(list[int], now)):
            continue
        if there != now:
            raise ConfigError(
                f"{folder} holds another comparison ({key}: {json.dumps(there)} there, "
                f"{json.dumps(now)} now); choose another out=…"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create a folder and keep other processes from comparing in it."""
    known = {".lock", RUNS, RECORDS, LOGS}
    is_comparison = (folder / PLAN).exists() or not folder.is_dir()
    if not is_comparison and {path.name for path in folder.iterdir()} - known:
        raise ConfigError(f"{folder} holds something else than a comparison; choose another out=…")
    with locked(folder):
        yield


# --------------------------------------------------------------------------------------------- runs


def _execute(
    engine: Engine, runs: Sequence[PlannedRun], folder: Path, log: Callable[[str], None]
) -> dict[str, str]:
    """Train and evaluate runs until all have ended or a signal has come; return the failures."""
    return execute_and_log(
        engine,
        partial(train_and_evaluate, folder=folder),
        runs,
        folder,
        label=lambda run: run.name,
        summary=lambda run: one_line(_load(run, folder)),
        log=log,
    )


def _load(run: PlannedRun, folder: Path) -> Record:
    return cast(Record, load_json(run.record_path(folder)))


# ------------------------------------------------------------------------------------------ results


def _write_results(
    config: ComparisonConfig, records: Sequence[Record], failures: Mapping[str, str]
) -> list[Table]:
    """Write ``results.json``, the tables and the figures; return the tables."""
    if not records:
        return []
    outcomes = outcomes_of(records)
    results = result_rows(records, outcomes)
    pairs = pair_rows(outcomes)
    tables = [results_table(results)]
    if pairs:
        tables.append(pairs_table(pairs))
    report = {
        "command": command_line(),
        "comparison": config.model_dump(mode="json", exclude=set(NOT_IN_PLAN)),
        "machine": machine(),
        "columns": tables[0].columns,
        "rows": tables[0].rows,
        "results": results,
        "pairs": pairs,
        "failures": failures,
        "runs": records,
    }
    write_json(config.folder / RESULTS, report)
    write_tables(config.folder, tables, {"table": results, "pairs": pairs})
    draw_figures(config.folder, records)
    return tables
