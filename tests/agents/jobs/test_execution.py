"""Execution of jobs in a folder."""

import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mirl.agents.jobs.execution import (
    LOGS,
    build_engine,
    check_engine,
    execute,
    locked,
    log_path,
)
from mirl.agents.jobs.local import LokyEngine
from mirl.agents.jobs.process import STOP
from mirl.configs.commands.engines import EngineConfig
from mirl.configs.errors import ConfigError, RunError


class NamedJob(NamedTuple):
    """A job that is only a name."""

    name: str


JOBS = [NamedJob("a"), NamedJob("b"), NamedJob("c")]


class InProcess:
    """Engine that calls the function itself."""

    def run(
        self, function: Callable[[NamedJob], object], items: Iterable[NamedJob]
    ) -> Iterator[tuple[NamedJob, object]]:
        for item in items:
            try:
                yield item, function(item)
            except Exception as error:
                yield item, error


def outcomes(folder: Path, function: Callable[[NamedJob], object]) -> dict[str, str]:
    """Return the failures of the jobs by their names."""
    found: dict[str, str] = {}

    def on_end(job: NamedJob, _outcome: object, failure: str) -> None:
        found[job.name] = failure

    execute(InProcess(), function, JOBS, folder, on_end)
    return found


def test_failure_is_one_line(tmp_path: Path) -> None:
    def function(job: NamedJob) -> None:
        if job.name == "a":
            raise RunError("the simulator\nbroke")
        if job.name == "b":
            raise KeyError("x")

    log = log_path(tmp_path, JOBS[1])
    assert log == tmp_path / LOGS / "b.txt"
    failures = {"a": "the simulator broke", "b": f"KeyError: 'x' (traceback: {log})", "c": ""}
    assert outcomes(tmp_path, function) == failures


def test_signal_stops_the_jobs(tmp_path: Path) -> None:
    """After Ctrl-C no job begins, and the file asks those under way to save and end."""
    found = outcomes(tmp_path, lambda _: signal.raise_signal(signal.SIGINT))
    assert found == {"a": ""}
    assert (tmp_path / STOP).exists()
    with locked(tmp_path):
        assert not (tmp_path / STOP).exists()


def test_folder_has_one_command(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "new"),
        pytest.raises(ConfigError, match=r"another process works in .*another out="),
        locked(tmp_path / "new"),
    ):
        raise AssertionError
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"out: .* cannot be created"),
        locked(tmp_path / "file" / "in"),
    ):
        raise AssertionError


def test_engine_is_chosen_by_name(tmp_path: Path) -> None:
    engine = build_engine(EngineConfig(jobs=2), 4, tmp_path)
    assert isinstance(engine, LokyEngine)
    assert engine.jobs == 2
    check_engine(EngineConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slurm": {"partition": "x"}}, "slurm.partition: expected engine=slurm"),
        ({"engine": "slurm"}, "engine=slurm"),
        ({"engine": "ray"}, "engine=ray"),
    ],
)
def test_missing_engine_is_one_line(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=message):
        check_engine(EngineConfig(**options))
