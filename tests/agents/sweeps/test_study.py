"""Studies, whose trials are not trained here but told at once."""

import json
from pathlib import Path

import optuna
import pytest
from sweep_setup import InProcessEngine, sweep

from mirl.agents.jobs.engine import JobDiedError
from mirl.agents.sweeps import study as study_module
from mirl.agents.sweeps.study import StudyResult, distributions, run_study, typed_values
from mirl.agents.sweeps.trial import TrialJob, open_study
from mirl.configs.errors import ConfigError, RunError

RANGES = ("agent.gamma=interval(.5,.9)", "agent.n_epochs=int(interval(1,4))")


class Trials:
    """Trials that end as a function of their number says; anything else is complete."""

    def __init__(self, **ends: object) -> None:
        self.ends = {int(name.removeprefix("t")): end for name, end in ends.items()}
        self.words: dict[int, tuple[str, ...]] = {}
        self.executed: list[int] = []

    def __call__(self, job: TrialJob, folder: Path) -> bool:
        self.executed.append(job.number)
        self.words[job.number] = job.words
        end = self.ends.pop(job.number, float(job.number))
        if isinstance(end, Exception):
            raise end
        if end is None:
            return False
        open_study(folder).tell(job.number, end)
        return True


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a study of tiny runs with such trials."""

    def call(trials: Trials, n_trials: int, *words: str, log=lambda _: None) -> StudyResult:
        monkeypatch.setattr(study_module, "run_trial", trials)
        config = sweep(tmp_path / "out", *(words or RANGES), f"n_trials={n_trials}")
        return run_study(config, log, InProcessEngine())

    return call


def points(result: StudyResult) -> list[tuple[tuple[str, str], ...]]:
    """Return the values of all trials."""
    rows = json.loads(result.written.read_text())["runs"]
    return [tuple(row["settings"].items()) for row in rows]


def test_best_values_are_found(run) -> None:
    lines: list[str] = []
    trials = Trials()
    result = run(trials, 3, log=lines.append)
    assert (result.counts, result.failures, result.missing) == ({"complete": 3}, {}, 0)
    assert result.best == list(trials.words[2])
    assert list(result.table.columns[0].cells) == ["2", "1", "0"]
    assert lines[0].startswith("[1/3] agent.gamma=0.")
    assert lines[0].endswith(": complete, value 0")


def test_resumed_study_draws_new_points(run) -> None:
    """More trials are new points, although the sampler has a seed; the same number adds none."""
    first = points(run(Trials(), 4))
    trials = Trials()
    more = run(trials, 8)
    assert trials.executed == [4, 5, 6, 7]
    assert points(more)[:4] == first
    assert len(set(points(more))) == 8
    none = Trials()
    assert run(none, 8).counts == {"complete": 8}
    assert none.executed == []


def test_failed_trial_counts(run) -> None:
    result = run(Trials(t1=RunError("the values\ndiverged")), 3)
    assert result.counts == {"complete": 2, "fail": 1}
    assert result.failures == {"trial0001": "the values diverged"}
    again = Trials()
    assert run(again, 3).counts == {"complete": 2, "fail": 1}
    assert again.executed == []


def test_killed_trial_is_resumed(run) -> None:
    """A trial whose process dies is resumed once; the study ends with all of its trials."""
    trials = Trials(t1=JobDiedError("killed"))
    result = run(trials, 3)
    assert (result.counts, result.failures) == ({"complete": 3}, {})
    assert trials.executed == [0, 1, 2, 1]


def test_trial_that_always_dies_fails(run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(Trials):
        def __call__(self, job: TrialJob, folder: Path) -> bool:
            if job.number == 1:
                self.executed.append(1)
                raise JobDiedError("out of memory")
            return super().__call__(job, folder)

    trials = Dying()
    result = run(trials, 3)
    assert trials.executed == [0, 1, 2, 1]
    assert result.counts == {"complete": 2, "fail": 1}
    assert result.failures == {"trial0001": "out of memory"}


def test_stopped_trial_goes_on(run) -> None:
    """The trials of a command that was killed are resumed with their values by the next."""
    first = run(Trials(t1=None), 2)
    assert (first.counts, first.missing) == ({"complete": 1, "running": 1}, 1)
    before = points(first)
    trials = Trials()
    second = run(trials, 3)
    assert trials.executed == [1, 2]
    assert points(second)[:2] == before
    assert second.missing == 0


def test_equal_points_are_not_repeated(run) -> None:
    """The same values and seed would give the same run."""
    trials = Trials()
    result = run(trials, 12, "fusion=concat,film")
    assert result.counts == {"complete": 12}
    assert len(trials.executed) == 2


def test_options_have_distributions(tmp_path: Path) -> None:
    words = (
        "fusion=concat,film",
        "agent.learning_rate=tag(log,interval(1e-4,1e-2))",
        "agent.n_epochs=range(1,8,2)",
        "agent.ent_coef=range(0,1,.25)",
    )
    config = sweep(tmp_path, *words)
    space = distributions(config)
    assert space == {
        "fusion": optuna.distributions.CategoricalDistribution(("concat", "film")),
        "agent.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "agent.n_epochs": optuna.distributions.IntDistribution(1, 7, step=2),
        "agent.ent_coef": optuna.distributions.FloatDistribution(0, 0.75, step=0.25),
    }
    params = {"fusion": "film", "agent.learning_rate": 1e-3, "agent.n_epochs": 3}
    typed = typed_values(config, {**params, "agent.ent_coef": 0.5})
    assert list(typed.values()) == ["film", "0.001", "3", "0.5"]


def test_missing_optuna_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sweep(tmp_path / "out", *RANGES)
    monkeypatch.setattr(study_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'mirl\[sweep\]'"):
        run_study(config)
    assert not (tmp_path / "out").exists()
