"""A trial of a study reports its evaluations and tells how it has ended."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from comparison_setup import TINY

from mirl.agents.sweeps import trial as trial_module
from mirl.agents.sweeps.trial import JOURNAL, TrialJob, open_study, run_trial
from mirl.configs.errors import RunError
from mirl.configs.schema import TrainConfig

Report = Callable[[int, float], bool]
SPACE = {"agent.gamma": optuna.distributions.FloatDistribution(0.5, 0.9)}


class FakeTraining:
    """Training that reports scores at the ends of intervals, from where it was killed."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        self.configs: list[TrainConfig] = []

    def __call__(self, config: TrainConfig, log: object, report: Report) -> SimpleNamespace:
        self.configs.append(config)
        every = config.evaluation.every
        finished = True
        for index, score in enumerate(self.scores, start=1):
            timesteps = min(every * index, config.total_timesteps)
            if report(timesteps, score):
                finished = timesteps == config.total_timesteps
                break
        return SimpleNamespace(finished=finished)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a study."""
    (tmp_path / "logs").mkdir()
    return tmp_path


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], again: bool = False
) -> tuple[bool, optuna.trial.FrozenTrial]:
    """Run a new trial, or the last one again; return its result and its state."""
    study = open_study(folder)
    number = len(study.trials) - 1 if again else study.ask(SPACE).number
    monkeypatch.setattr(trial_module, "train", FakeTraining(scores))
    ended = run_trial(TrialJob(number, (*TINY, "total_timesteps=192")), folder)
    return ended, open_study(folder).trials[number]


def test_value_is_the_last_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, trial = run(folder, monkeypatch, [0.1, 0.4, 0.3])
    assert (ended, trial.state.name, trial.value) == (True, "COMPLETE", 0.3)
    # intervals of 64 timesteps, and the end
    assert trial.intermediate_values == {1: 0.1, 2: 0.4, 4: 0.3}


def test_poor_trial_is_pruned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pruner compares equal intervals, once it knows five trials."""
    for _ in range(5):
        run(folder, monkeypatch, [0.5, 0.6, 0.7])
    ended, trial = run(folder, monkeypatch, [0.1, 0.6, 0.7])
    assert (ended, trial.state.name, trial.intermediate_values) == (True, "PRUNED", {1: 0.1})
    _, trial = run(folder, monkeypatch, [0.5, 0.6, 0.1])
    assert trial.state.name == "COMPLETE"


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_non_finite_trial_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    with pytest.raises(RunError, match=f"the value of an evaluation is {score}"):
        run(folder, monkeypatch, [0.1, score, 0.3])
    assert open_study(folder).trials[0].state.name == "FAIL"


def test_stopped_trial_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial goes on after a stop; evaluations that come twice keep their first value."""

    def stopped(config: TrainConfig, log: object, report: Report) -> SimpleNamespace:
        report(64, 0.1)
        return SimpleNamespace(finished=False)

    study = open_study(folder)
    job = TrialJob(study.ask(SPACE).number, TINY)
    monkeypatch.setattr(trial_module, "train", stopped)
    assert not run_trial(job, folder)
    assert open_study(folder).trials[0].state.name == "RUNNING"
    ended, trial = run(folder, monkeypatch, [0.2, 0.4, 0.5], again=True)
    assert (ended, trial.value) == (True, 0.5)
    assert trial.intermediate_values == {1: 0.1, 2: 0.4, 4: 0.5}


def test_trained_trial_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died after the training leaves the value of the last evaluation."""
    study = open_study(folder)
    study.ask(SPACE).report(0.7, 4)
    ended, trial = run(folder, monkeypatch, [], again=True)
    assert (ended, trial.state.name, trial.value) == (True, "COMPLETE", 0.7)


def test_ended_trial_is_not_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that has waited for one of an earlier command finds the trial ended by it."""
    study = open_study(folder)
    study.tell(study.ask(SPACE), state=optuna.trial.TrialState.PRUNED)
    training = FakeTraining([0.1, 0.2, 0.3])
    monkeypatch.setattr(trial_module, "train", training)
    assert run_trial(TrialJob(0, TINY), folder)
    assert training.configs == []


def test_failed_trial_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = TrialJob(open_study(folder).ask(SPACE).number, (*TINY, "fusion=none"))
    with pytest.raises(ValueError, match="unknown fusion"):
        run_trial(job, folder)
    assert open_study(folder).trials[0].state.name == "FAIL"
    assert "Traceback" in (folder / "logs" / "trial0000.txt").read_text()


def test_run_is_in_the_study(folder: Path) -> None:
    words = TrialJob(3, ("seed=1",)).arguments(folder)
    assert words == ["seed=1", "name=trial0003", f"runs_dir={folder / 'runs'}"]


def test_journal_has_no_relative_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that a killed process has left can be seen from any folder, and so expires."""
    monkeypatch.chdir(folder.parent)
    study = open_study(Path(folder.name))
    assert Path(study._storage._backend._file_path) == folder / JOURNAL


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let Optuna log as before afterwards."""
    before = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(before)
