"""A run in a notebook: its curves, its policy, its evaluation and its video."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mirl.agents import Run, load_policy, train
from mirl.configs.errors import ConfigError
from mirl.configs.schema import TrainConfig


@pytest.fixture(scope="module")
def run(tiny_in: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a short run of three tasks, with evaluations."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["task=mt3", "total_timesteps=384", "evaluation.every=128"]
    return Run(train(tiny_in(folder, *words)).run.path, "last", "cpu")


def test_curves_equal_metrics_csv(run: Run) -> None:
    curves = run.curves()
    assert isinstance(curves, pd.DataFrame)
    with (run.path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["time/total_timesteps"]]
    assert list(curves.index) == sorted({int(row["time/total_timesteps"]) for row in rows})
    assert list(curves.columns) == sorted(curves.columns)
    for row in rows:
        step = int(row.pop("time/total_timesteps"))
        for name, value in row.items():
            if value:
                assert curves.loc[step, name] == pytest.approx(float(value))
    assert curves["eval/success_rate"].notna().any()


def test_policy_is_the_checkpoint(run: Run) -> None:
    ours = run.policy.state_dict()
    loaded = load_policy(run.path, "last", "cpu").state_dict()
    assert ours.keys() == loaded.keys()
    assert all(ours[name].equal(loaded[name]) for name in ours)
    assert run.config.task.name == "mt3"
    assert "step_000000384" in repr(run)


def test_evaluation_is_a_table(run: Run) -> None:
    evaluation = run.evaluate(episodes=4, n_envs=3)
    table = evaluation.to_dataframe()
    names = [task.name for task in run.config.task.tasks]
    assert list(table["task"]) == names
    assert list(table["episodes"]) == [4] * len(names)
    [path] = evaluation.files
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["tasks"] == table.to_dict("records")


def test_wrong_options_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="episodes"):
        run.evaluate(episodes=0)
    with pytest.raises(ConfigError, match=r"has no task 'goto'"):
        run.video("goto")
    with pytest.raises(ConfigError, match="is not a run directory"):
        Run(run.path / "checkpoints")
    with pytest.raises(ConfigError, match="checkpoint"):
        Run(run.path, "7")


def test_video_is_shown_in_notebooks(run: Run) -> None:
    gif = run.video(run.config.task.tasks[1].name, seed=3)
    with Image.open(io.BytesIO(gif.data)) as image:
        assert image.format == "GIF"
        assert image.size == (gif.width, gif.height)
    html = gif._repr_html_()
    assert html.startswith("<img")
    assert "data:image/gif;base64," in html


def test_missing_curves_are_named(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    shutil.copytree(run.path / "checkpoints", copy / "checkpoints")
    opened = Run(copy, "last", "cpu")
    with pytest.raises(ConfigError, match=r"metrics\.csv cannot be read"):
        opened.curves()
