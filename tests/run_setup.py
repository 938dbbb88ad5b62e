"""Runs and checkpoints for tests, from configurations and paths."""

from pathlib import Path

from mirl.agents.builder import resolve_auto
from mirl.agents.evaluation import evaluate_run
from mirl.agents.exports.export import Export, export_run
from mirl.agents.few_shot import Adaptation, adapt_run
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.choices import adopt_choices
from mirl.agents.runs.run_directory import RunDirectory, adopt_texts
from mirl.agents.statistics import TaskResult
from mirl.configs.schema import EvalConfig, ResolvedConfig, TrainConfig
from mirl.envs import choose_backend
from mirl.envs.suite_spaces import joined_spaces


def resolve(config: TrainConfig) -> ResolvedConfig:
    """Resolve ``auto`` and the texts against the configuration's environments."""
    stored = RunDirectory.stored(config)
    config = adopt_texts(config, stored)
    joined = joined_spaces(config.task, choose_backend(config.task, config.backend))
    config = config.model_copy(update={"task": joined.suite})
    return adopt_choices(config, resolve_auto(config, joined.observation), stored)


def start_run(config: TrainConfig) -> RunDirectory:
    """Create or resume the run of a configuration."""
    resolved = resolve(config)
    run = RunDirectory.find(resolved)
    if run is None:
        run = RunDirectory.create(resolved)
    return run


def checkpoint_of(run_dir: Path, which: str) -> Checkpoint:
    """Find a checkpoint of a run."""
    return RunDirectory.open(run_dir).checkpoint(which)


def evaluate_at(config: EvalConfig) -> tuple[list[TaskResult], list[Path]]:
    """Open the run and the checkpoint of an evaluation, and evaluate it."""
    run = RunDirectory.open(config.run)
    evaluation = evaluate_run(run, run.checkpoint(config.checkpoint), config)
    return evaluation.results, evaluation.files


def adapt_at(config: EvalConfig) -> list[Adaptation]:
    """Open the run and the checkpoint of an adaptation, and adapt it."""
    run = RunDirectory.open(config.run)
    return list(adapt_run(run, run.checkpoint(config.checkpoint), config))


def export_at(config: EvalConfig) -> Export:
    """Open the run and the checkpoint of an export, and export it."""
    run = RunDirectory.open(config.run)
    return export_run(run, run.checkpoint(config.checkpoint), config)
