"""A study: Optuna searches for the best values of a sweep's options."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.table import Table

from mirl.agents.jobs.engine import Engine, JobDiedError
from mirl.agents.jobs.execution import build_engine, execute
from mirl.agents.sweeps.plan import opened, write_results
from mirl.agents.sweeps.trial import TrialJob, open_study, run_trial
from mirl.configs.commands.sweep import SweepConfig, describe
from mirl.configs.errors import ConfigError

if TYPE_CHECKING:  # Optuna is optional
    import optuna

ARGUMENTS = "arguments"
"""Attribute of a trial with its arguments of train.py."""
MAX_ROWS = 10
"""Number of trials that the table shows."""


class StudyResult(NamedTuple):
    """The state of a study after ``run_study``."""

    table: Table
    """The best trials, for the terminal."""
    counts: dict[str, int]
    """Number of trials by their state: complete, pruned, fail, running."""
    failures: dict[str, str]
    """The reason for each failure in this call, by the name of the trial."""
    best: list[str] | None
    """Arguments of train.py with the best values; None if no trial is complete."""
    missing: int
    """Number of trials that have not ended."""
    written: Path
    """The file of results."""


def run_study(
    config: SweepConfig,
    log: Callable[[str], None] = lambda _: None,
    engine: Engine | None = None,
) -> StudyResult:
    """Run the trials of a study.

    The value of a trial is the score of its last evaluation on validation episodes, the score by
    which a run selects its best checkpoint. Calling it again with the same configuration resumes
    trials that were stopped or killed, and a larger number of trials adds new ones.

    Args:
        config: the sweep.
        log: called with one line per trial that has ended.
        engine: executes the trials; None for the engine that the configuration chooses.

    Returns:
        The best trials, and the states of all.

    Raises:
        ConfigError: Optuna is not installed, an option is invalid, or the folder holds another
            sweep, or is in use.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("a study needs Optuna: pip install 'mirl[sweep]'")
    with opened(config) as folder:
        study = open_study(folder)
        n_ended = len(_trials(study, running=False))
        # a sampler with a fixed seed would repeat the points of an earlier command
        seed = np.random.SeedSequence([_seed(config), len(study.get_trials(deepcopy=False))])
        study.sampler = _sampler(int(seed.generate_state(1)[0]))
        if n_ended:
            log(f"{n_ended} of {config.trials} trials have ended already.")
        if engine is None:
            engine = build_engine(config, max(1, config.trials - n_ended), folder)
        failures = _Execution(config, study, folder, log).run(engine)
        return _result(config, study, folder, failures)


def _seed(config: SweepConfig) -> int:
    seeds = [value for key, value in config.options if key == "seed"]
    return int(seeds[-1]) if seeds else 0


def _sampler(seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def distributions(config: SweepConfig) -> "dict[str, optuna.distributions.BaseDistribution]":
    """Return the distribution from which Optuna chooses each swept option.

    Args:
        config: the sweep.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, values in config.choices.items():
        found[key] = CategoricalDistribution(values)
    for key, each in config.ranges.items():
        if each.integer:
            step = round(each.step or 1)
            found[key] = IntDistribution(int(each.low), int(each.high), each.log, step)
        else:
            found[key] = FloatDistribution(each.low, each.high, each.log, each.step)
    return found


class _Execution:
    """The trials of one command."""

    def __init__(
        self,
        config: SweepConfig,
        study: "optuna.Study",
        folder: Path,
        log: Callable[[str], None],
    ) -> None:
        self.config = config
        self.study = study
        self.folder = folder
        self.log = log
        self.failures: dict[str, str] = {}
        self.died: list[TrialJob] = []
        """Trials whose process has died; they are resumed once."""

    def run(self, engine: Engine) -> dict[str, str]:
        """Run all trials; return the reasons for failures."""
        self._execute(engine, self._jobs())
        again, self.died = self.died, []
        if again:
            self._execute(engine, again)
        for job in self.died:
            self._fail(job)
        return self.failures

    def _execute(self, engine: Engine, jobs: "Iterator[TrialJob] | Sequence[TrialJob]") -> None:
        execute(engine, partial(run_trial, folder=self.folder), jobs, self.folder, self._on_end)

    def _jobs(self) -> Iterator[TrialJob]:
        """Yield the trials to resume, then new ones, created only when they can begin."""
        for frozen in _trials(self.study, running=True):
            if ARGUMENTS in frozen.user_attrs:
                yield TrialJob(frozen.number, tuple(frozen.user_attrs[ARGUMENTS]))
            else:  # the command was killed between the two lines below
                self.study.tell(frozen.number, state=_state("FAIL"))
        space = distributions(self.config)
        while len(self.study.get_trials(deepcopy=False)) < self.config.trials:
            trial = self.study.ask(space)
            if self._copy_twin(trial):
                continue
            words = self.config.words(typed_values(self.config, trial.params))
            trial.set_user_attr(ARGUMENTS, words)
            yield TrialJob(trial.number, tuple(words))

    def _copy_twin(self, trial: "optuna.Trial") -> bool:
        """Give a trial the result of an earlier one with the same values, if there is one."""
        for earlier in self.study.get_trials(deepcopy=False, states=[_state("COMPLETE")]):
            if earlier.params == trial.params:
                self.study.tell(trial, earlier.value)
                self._log(trial.number, f"as trial {earlier.number}")
                return True
        return False

    def _on_end(self, job: TrialJob, outcome: object, failure: str) -> None:
        if isinstance(outcome, JobDiedError):
            self.died.append(job)
        self.failures.pop(job.name, None)  # it was resumed
        if failure:
            self.failures[job.name] = failure
        frozen = self.study.get_trials(deepcopy=False)[job.number]
        state = frozen.state.name.lower()
        if failure and state == "complete":  # its process died after the trial was complete
            del self.failures[job.name]
        elif failure and not isinstance(outcome, JobDiedError):
            self._fail(job)
            state = "fail"
        value = "" if frozen.value is None else f", value {frozen.value:.4g}"
        self._log(job.number, f"{state}{value}")

    def _log(self, number: int, what: str) -> None:
        params = self.study.get_trials(deepcopy=False)[number].params
        settings = describe(typed_values(self.config, params))
        self.log(f"[{number + 1}/{self.config.trials}] {settings}: {what}")

    def _fail(self, job: TrialJob) -> None:
        self.study.tell(job.number, state=_state("FAIL"), skip_if_finished=True)


def typed_values(config: SweepConfig, params: "dict[str, object]") -> dict[str, str]:
    """Return the values of a trial as they would be typed.

    Args:
        config: the sweep.
        params: the values that Optuna has chosen.
    """
    typed: dict[str, str] = {}
    for key in config.swept:
        value = params[key]
        if key in config.ranges:
            assert isinstance(value, int | float)
            typed[key] = config.ranges[key].typed(value)
        else:
            typed[key] = str(value)
    return typed


def _state(name: str) -> "optuna.trial.TrialState":
    from optuna.trial import TrialState

    return TrialState[name]


def _trials(study: "optuna.Study", *, running: bool) -> "list[optuna.trial.FrozenTrial]":
    """Return the trials that are running, or those that have ended."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() != running:
            found.append(trial)
    return found


# ------------------------------------------------------------------------------------------ results


def _result(
    config: SweepConfig, study: "optuna.Study", folder: Path, failures: dict[str, str]
) -> StudyResult:
    trials = study.get_trials(deepcopy=False)
    rows: list[dict[str, object]] = []
    counts: dict[str, int] = {}
    for trial in trials:
        name = TrialJob(trial.number, ()).name
        state = trial.state.name.lower()
        counts[state] = counts.get(state, 0) + 1
        rows.append(
            {
                "name": name,
                "settings": typed_values(config, trial.params) if trial.params else {},
                "state": state,
                "value": trial.value,
                "evaluations": dict(trial.intermediate_values),
                "failure": failures.get(name, ""),
            }
        )
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    complete.sort(key=lambda trial: -float(trial.value or 0.0))
    best = None
    if complete:
        best = config.words(typed_values(config, complete[0].params))
    missing = config.trials - len(_trials(study, running=False))
    table = _table(config, complete[:MAX_ROWS], len(complete))
    return StudyResult(table, counts, failures, best, missing, write_results(folder, rows))


def _table(
    config: SweepConfig, shown: "Sequence[optuna.trial.FrozenTrial]", n_complete: int
) -> Table:
    title = f"The best of {n_complete} complete trials, by the last evaluation"
    table = Table(title=title, title_justify="left")
    table.add_column("trial")
    for name in config.swept:
        table.add_column(name, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    for trial in shown:
        values = typed_values(config, trial.params).values()
        table.add_row(str(trial.number), *values, f"{trial.value:.4g}")
    return table
