"""A trial of a study in its own process: train, report each evaluation and tell the result."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mirl.agents.jobs.execution import log_path
from mirl.agents.jobs.process import STOP, job_process, wait_for_lock
from mirl.agents.training import train
from mirl.configs.compose import compose_train
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig

if TYPE_CHECKING:  # Optuna is optional
    import optuna

JOURNAL = "study.journal"
"""File with all of Optuna's data of a study: one line of JSON per event."""
STUDY = "mirl"
"""Name of the study in its file."""
RUNS = "runs"
"""Folder of the trials' run directories, inside that of the study."""


@dataclass(frozen=True)
class TrialJob:
    """A trial.

    Args:
        number: its number in the study.
        words: arguments of train.py with the values that Optuna has chosen.
    """

    number: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of its run directory."""
        return f"trial{self.number:04d}"

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of train.py that define this run.

        Args:
            folder: folder of the study.
        """
        return [*self.words, f"name={self.name}", f"runs_dir={folder / RUNS}"]


def open_study(
    folder: Path, sampler: "optuna.samplers.BaseSampler | None" = None
) -> "optuna.Study":
    """Open the study of a folder, or create it.

    Args:
        folder: folder of the study.
        sampler: chooses the values of new trials; None if no new trials are created.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # absolute, because the file's lock is a link to it in the same folder
    storage = JournalStorage(JournalFileBackend(str((folder / JOURNAL).absolute())))
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(),
        direction="maximize",
        load_if_exists=True,
    )


class TrialReports:
    """Report evaluations to Optuna, which may prune the trial.

    The pruner only compares equal steps, so a step is the number of intervals of
    ``evaluation.every`` timesteps, and not the timesteps, which depend on the size of the rollouts.

    Args:
        trial: the trial.
        config: configuration of its run.
    """

    def __init__(self, trial: "optuna.Trial", config: TrainConfig) -> None:
        self.trial = trial
        self.config = config
        self.value: float | None = None
        """The last value; None if there is none yet."""
        self.steps = set(_intermediate_values(trial))
        """Steps that were reported, including those of earlier processes."""
        self.is_pruned = False

    def report(self, timesteps: int, score: float) -> bool:
        """Report an evaluation.

        Args:
            timesteps: timesteps of training so far.
            score: score of the evaluation.

        Returns:
            True if the trial should be stopped.
        """
        self.value = score
        if not math.isfinite(score):
            return True
        step = timesteps // self.config.evaluation.every
        if timesteps >= self.config.total_timesteps:
            # the last evaluation, after the last interval
            step = self.config.total_timesteps // self.config.evaluation.every + 1
        if step not in self.steps:
            self.steps.add(step)
            self.trial.report(score, step)
        self.is_pruned = timesteps < self.config.total_timesteps and self.trial.should_prune()
        return self.is_pruned


def run_trial(job: TrialJob, folder: Path) -> bool:
    """Train the run of a trial, or resume it, and tell Optuna how it ended.

    Args:
        job: the trial.
        folder: folder of the study.

    Returns:
        True if the trial has ended, False if it was stopped and can be resumed.

    Raises:
        ConfigError: the values do not fit together, or do not fit the environment.
        RunError: the training failed, or its value is not a number.
    """
    import optuna
    from optuna.trial import TrialState

    with job_process(log_path(folder, job), folder / STOP) as log:
        study = open_study(folder)
        tell = partial(study.tell, job.number, skip_if_finished=True)
        try:
            config = compose_train([*job.arguments(folder), "progress=false"])
            wait_for_lock(config.run_dir, folder / STOP)
            stored = study.get_trials(deepcopy=False)[job.number]
            if stored.state.is_finished():
                return True  # finished by the job that this one waited for
            return _train(optuna.Trial(study, stored._trial_id), config, log, tell)
        except Exception:
            tell(state=TrialState.FAIL)
            raise


def _train(
    trial: "optuna.Trial",
    config: TrainConfig,
    log: Callable[[str], None],
    tell: Callable[..., object],
) -> bool:
    from optuna.trial import TrialState

    reports = TrialReports(trial, config)
    result = train(config, log, reports.report)
    value = reports.value
    if value is not None and not math.isfinite(value):
        raise RunError(f"the value of an evaluation is {value}, expected a finite number")
    if reports.is_pruned:
        tell(state=TrialState.PRUNED)
        return True
    if not result.finished:
        return False
    if value is None:
        # the process of an earlier command died after the last evaluation
        reported = _intermediate_values(trial)
        value = reported[max(reported)]
    tell(value)
    return True


def _intermediate_values(trial: "optuna.Trial") -> dict[int, float]:
    """Return the values that were reported, by their steps."""
    values: dict[int, float] = trial.storage.get_trial(trial._trial_id).intermediate_values
    return values
