"""The run of a job is trained and evaluated; one that is stopped has no results."""

from pathlib import Path

from comparison_setup import TINY

from mirl.agents.jobs.process import STOP
from mirl.agents.jobs.trained_run import train_and_evaluate


def test_finished_run_is_evaluated(tmp_path: Path) -> None:
    words = [*TINY, f"runs_dir={tmp_path}", "progress=false"]
    run = train_and_evaluate(words, tmp_path / "log.txt", tmp_path)
    assert run is not None
    assert run.result.timesteps == 128
    assert len(run.evaluation.results[0].returns) == 8
    assert run.seconds > 0
    assert (tmp_path / "log.txt").read_text().startswith("Training for 128 timesteps")


def test_stopped_run_has_no_results(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()
    words = [*TINY, f"runs_dir={tmp_path}", "total_timesteps=1_000_000", "progress=false"]
    assert train_and_evaluate(words, tmp_path / "log.txt", tmp_path) is None
