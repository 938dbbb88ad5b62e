"""Jobs of Slurm, on submitit's local executor."""

from pathlib import Path

import pytest
from engine_calls import call

from mirl.agents.jobs import slurm
from mirl.agents.jobs.engine import JobDiedError
from mirl.agents.jobs.slurm import TIMEOUT_MINUTES, check_slurm, slurm_engine
from mirl.configs.errors import ConfigError, RunError

LOCAL = {"cluster": "local"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find submitit, and no Slurm."""
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)


def test_local_jobs_divide_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "cpu_count", lambda: 8)
    engine = slurm_engine(4, 20, tmp_path, LOCAL)
    assert (engine.jobs, engine.cluster) == (4, "local")
    assert engine.options == {"cpus_per_task": 2, "timeout_min": TIMEOUT_MINUTES}


def test_options_are_those_of_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/usr/bin/srun")
    options = {"partition": "gpu", "time": "90", "gpus_per_node": "1", "cpus_per_task": "4"}
    engine = slurm_engine(None, 20, tmp_path, options)
    assert (engine.jobs, engine.cluster) == (20, "slurm")
    assert engine.options == {
        "cpus_per_task": 4,
        "timeout_min": 90,
        "slurm_partition": "gpu",
        "gpus_per_node": 1,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no srun here"),
        ({"cluster": "cloud"}, "slurm.cluster: expected slurm or local, got 'cloud'"),
        ({**LOCAL, "cpus_per_task": "two"}, "slurm.cpus_per_task: expected a number"),
    ],
)
def test_wrong_option_is_one_line(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm_engine(1, 1, tmp_path, options)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(slurm.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match="pip install"):
            check_slurm(options)


@pytest.mark.cluster
def test_failures_do_not_stop_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception and a killed process are results like others, and threads are limited."""
    pytest.importorskip("submitit")
    monkeypatch.undo()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    monkeypatch.setattr(slurm, "cpu_count", lambda: 6)
    found = dict(slurm_engine(2, 4, tmp_path, LOCAL).run(call, range(4)))
    assert isinstance(found[1], RunError)
    assert str(found[1]) == "ValueError: one"
    assert isinstance(found[2], JobDiedError)
    first, last = found[0], found[3]
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert first[0] != last[0]
    assert (first[1], last[1]) == ("3", "3")
