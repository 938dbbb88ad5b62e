"""The look inside a policy is written as numbers, as a figure and for TensorBoard."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirl.agents import Run, train
from mirl.configs.errors import PlainWarning
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    "words",
    [
        ("task=goto_local",),
        ("task=mt3", "context=task_id", "evaluation.max_steps=20"),
        ("task=goto_local", "memory=gru", "memory.size=8"),
    ],
    ids=["missions", "tasks", "memory"],
)
def test_inside_is_written(tiny: Build, words: tuple[str, ...]) -> None:
    run = Run(train(tiny("total_timesteps=128", *words)).run.path, "last", "cpu")
    evaluation = run.evaluate(episodes=8, n_envs=4, inside=True)
    numbers, picture, events = evaluation.files[1:]
    assert evaluation.inside is not None
    report = json.loads(numbers.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    n_contexts = len(report["contexts"])
    assert n_contexts >= 2
    assert len(report["similarity"]) == n_contexts
    last = "features" if "memory=gru" in words else "action"
    assert report["similarity_of"] == last
    for shares in report["variance_shares"].values():
        assert sum(shares.values()) == pytest.approx(1) or sum(shares.values()) == 0
    n_tasks = len(run.config.task.tasks)
    assert len(report["variance_shares_by_task"]) == (n_tasks if n_tasks > 1 else 0)
    with Image.open(picture) as image:
        assert image.format == "PNG"
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    [scalar] = accumulator.Scalars(f"inside/interaction/{last}")
    assert scalar.step == 128
    share = report["variance_shares"][last]["interaction"]
    assert scalar.value == pytest.approx(share, abs=1e-6)
    assert report["factors"] or run.config.fusion.kind == "bilinear"
    for name in report["factors"]:
        [histogram] = accumulator.Histograms(f"inside/factors/{name}")
        assert histogram.histogram_value.num > 0
    tensors = list(events.rglob("tensors.tsv"))
    assert len(tensors) == 1
    assert len(tensors[0].read_text().splitlines()) == n_contexts


def test_single_context_is_no_comparison(tmp_path: Path, tiny: Build) -> None:
    """The results of the evaluation are not lost."""
    config = tiny(
        "total_timesteps=128",
        "task=MiniGrid-Empty-5x5-v0",
        "evaluation.max_steps=20",
        f"runs_dir={tmp_path}",
    )
    run = train(config).run
    with pytest.warns(PlainWarning, match="all episodes have the same one"):
        evaluation = Run(run.path, "last", "cpu").evaluate(episodes=4, n_envs=2, inside=True)
    assert evaluation.inside is None
    assert evaluation.results[0].n_episodes == 4
    assert len(evaluation.files) == 1


def test_command_prints_the_shares(tmp_path: Path, tiny: Build) -> None:
    config = tiny("total_timesteps=128", "task=goto_local", f"runs_dir={tmp_path}")
    run_dir = train(config).run.path
    script = Path(__file__).parents[3] / "eval.py"
    words = [f"run={run_dir}", "episodes=4", "n_envs=4", "inside=true", "device=cpu"]
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "of the variance of the action is an interaction of observation and context" in (
        done.stdout
    )
