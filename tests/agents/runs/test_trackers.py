"""Trackers get plain numbers, continue their runs, and never end a training."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killed, kill_at
from run_records import CLOCK, metrics_of, tensors_of
from stable_baselines3.common.logger import Figure, HParam, Video

from mirl.agents import train
from mirl.agents.runs import trackers
from mirl.agents.runs.logger import build_logger
from mirl.agents.runs.trackers import IDS, Tracker, load_ids
from mirl.configs.errors import ConfigError, PlainWarning
from mirl.configs.schema import TrainConfig

Build = Callable[..., TrainConfig]
Series = dict[str, list[tuple[int, float]]]
NAMES = ("wandb", "trackio", "mlflow")


class Recorder(Tracker):
    """A tracker that keeps what it is sent, under the name of one whose package may be missing."""

    name = "wandb"
    opened: list["Recorder"]
    error: Exception | None = None

    def open(self) -> str:
        if self.error is not None:
            raise self.error
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended: list[str] = []
        self.opened.append(self)
        return self.id or f"run{len(self.opened)}"

    def send(self, numbers: dict[str, float], step: int) -> None:
        if self.error is not None:
            raise self.error
        self.rows.append((step, numbers))

    def finish(self) -> None:
        self.ended.append(self.outcome)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Put ``Recorder`` in place of Weights & Biases, whose package counts as installed."""
    recorder = type("Fresh", (Recorder,), {"opened": []})
    monkeypatch.setitem(trackers.TRACKERS, "wandb", recorder)
    found = SimpleNamespace(origin="here")
    monkeypatch.setattr("mirl.configs.compose.find_spec", lambda _: found)
    return recorder


def test_values_are_plain_numbers(tmp_path: Path, recorder: type[Recorder]) -> None:
    logger = build_logger(tmp_path, None, ["wandb"])
    values = [1, True, np.float32(1.5), np.int64(2), torch.tensor(0.5), np.array(3)]
    for number, value in enumerate(values):
        logger.record(f"own/{number}", value)
    logger.dump(np.int64(7))  # type: ignore[arg-type]
    logger.close()
    [tracker] = recorder.opened
    [(step, numbers)] = tracker.rows
    assert type(step) is int
    assert step == 7
    assert {type(number) for number in numbers.values()} == {float}
    assert list(numbers.values()) == [1, 1, 1.5, 2, 0.5, 3]


def test_other_values_are_left_out(tmp_path: Path, recorder: type[Recorder]) -> None:
    """Texts, media, arrays, hyperparameters and what the table and TensorBoard leave out."""
    logger = recorder(tmp_path, {}, {})
    values = {
        "text": "a",
        "video": Video(torch.zeros(1, 1, 3, 2, 2, dtype=torch.uint8), 1),
        "figure": Figure(None, close=False),
        "array": np.zeros(2),
        "hparams": HParam({"a": 1}, {"b": 0.0}),
        "no_tracker": 1.0,
        "no_format": 1.0,
        "time/total_timesteps": 5,
    }
    excluded: dict[str, Any] = dict.fromkeys(values, ())
    excluded["no_tracker"] = ("wandb",)
    excluded["no_format"] = ("stdout", "log", "json", "csv", "tensorboard")
    excluded["time/total_timesteps"] = ("tensorboard",)
    logger.write(values, excluded, 5)
    logger.write({"text": "a"}, {}, 6)
    assert logger.rows == [(5, {"time/total_timesteps": 5.0})]


def test_failing_tracker_warns_once(tiny: Build, recorder: type[Recorder]) -> None:
    """A tracker that raises anything does not end the run, and warns once."""
    recorder.error = RuntimeError("no network\nand more")
    message = r"logger=wandb failed \(no network\); training continues without it"
    with pytest.warns(PlainWarning, match=message) as warned:
        result = train(tiny("logger=wandb"))
    assert result.finished
    assert len([each for each in warned if "logger=wandb" in str(each.message)]) == 1
    assert not (result.run.path / IDS).exists()
    assert len(metrics_of(result.run.path)) > 4


def test_failing_row_warns_once(tmp_path: Path, recorder: type[Recorder]) -> None:
    """Rows that cannot be sent cause one warning; later ones are sent."""
    tracker = recorder(tmp_path, {}, {})
    tracker.error = OSError(28, "No space left on device")
    with pytest.warns(PlainWarning, match="No space left on device"):
        tracker.write({"a": 1}, {}, 1)
    tracker.rests_until = 0.0
    tracker.write({"a": 1}, {}, 2)
    tracker.error = None
    tracker.rests_until = 0.0
    tracker.write({"a": 1}, {}, 3)
    assert tracker.rows == [(3, {"a": 1.0})]


def test_slow_failure_is_not_repeated(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an attempt that failed in 30 seconds, nothing is sent for 300 seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(trackers.time, "monotonic", lambda: clock.now)
    tracker = recorder(tmp_path, {}, {})

    def slow(*_: object) -> None:
        clock.now += 30.0
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "send", slow)
        with pytest.warns(PlainWarning, match="TimeoutError"):
            tracker.write({"a": 1}, {}, 1)
    clock.now = 329.0
    tracker.write({"a": 1}, {}, 2)
    clock.now = 331.0
    tracker.write({"a": 1}, {}, 3)
    assert [step for step, _ in tracker.rows] == [3]


def test_end_of_training_is_told(
    tiny: Build, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is killed when it is stopped, failed after an error, finished at its end."""
    config = tiny("logger=wandb", "evaluation.every=128", "checkpoint_every=128")
    assert not train(config, report=lambda *_: True).finished
    with monkeypatch.context() as patch:
        kill_at(patch, 20)
        with pytest.raises(Killed):
            train(config)
    assert train(config).finished
    assert train(config).finished  # once more: nothing is left to log
    assert [tracker.ended for tracker in recorder.opened] == [["killed"], ["failed"], ["finished"]]
    assert load_ids(config.run_dir) == {"wandb": "run1"}
    assert [tracker.id for tracker in recorder.opened] == [None, "run1", "run1"]


def test_resumed_run_repeats_no_row(tmp_path: Path, recorder: type[Recorder]) -> None:
    """Rows after the checkpoint, which were logged before the run was killed, are not repeated."""
    for start in (None, 10):
        logger = build_logger(tmp_path, start, ["wandb"])
        for step in (10, 20, 30):
            if start is None and step == 30:
                continue
            if start is None or step > start:
                logger.record("time/total_timesteps", step)
                logger.record("a", step)
                logger.dump(step)
        logger.close()
    first, second = recorder.opened
    assert [step for step, _ in first.rows] == [10, 20]
    assert [step for step, _ in second.rows] == [30]
    assert [row["a"] for row in metrics_of(tmp_path)] == ["10", "20", "30"]


def test_tracker_may_join_later(tiny: Build, recorder: type[Recorder]) -> None:
    """A resumed run may have other loggers; a new one gets the rows from there on."""
    config = tiny("total_timesteps=256", "logger=csv")
    train(config)
    assert not list(config.run_dir.glob("events*"))
    assert train(tiny("logger=[tensorboard,wandb]")).finished
    [tracker] = recorder.opened
    assert tracker.rows[0][0] == 384
    assert list(config.run_dir.glob("events*"))


def test_hostile_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / IDS).write_text(json.dumps({"wandb": "../../elsewhere"}))
    with pytest.raises(ConfigError, match=r"expected the id of a run in wandb, got '\.\./"):
        load_ids(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("task/goto_door/return", "task/goto_door/return"),
        ("task/a=(b)/return", "task/a__b_/return"),
        ("task/../return", "task_.._return"),
        ("task//return", "task__return"),
        ("a" * 300, "a" * 250),
    ],
)
def test_mlflow_name_is_valid(name: str, expected: str) -> None:
    assert trackers._mlflow_name(name) == expected


# ------------------------------------------------------------------------------- the real packages


@pytest.fixture(scope="module")
def offline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one folder for all tests, because wandb and Trackio keep that of their first run."""
    return tmp_path_factory.mktemp("offline")


@pytest.fixture
def offline(offline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the packages write into a folder, which becomes the current one."""
    monkeypatch.chdir(offline_folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{offline_folder}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(offline_folder))
    return offline_folder


def wandb_records(path: Path) -> list[Any]:
    """Return the records of an offline file, a log of LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    records: list[Any] = []
    position, part = 7, b""  # after the header
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        part += data[position + 7 : position + 7 + length]
        if data[position + 6] in (1, 4):  # a whole record, or its last part
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
        position += 7 + length
    return records


def finished_records(path: Path) -> list[Any]:
    """Wait for the last record: now and then the file is not complete when ``finish`` returns."""
    for _ in range(300):
        records = wandb_records(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.1)
    return records


def wandb_content(run_id: str) -> tuple[Series, str]:
    series: Series = defaultdict(list)
    ends = {0: "finished", 255: "killed", 1: "failed"}
    end = "running"
    for path in sorted(Path.cwd().glob(f"wandb/offline-run-*-{run_id}/*.wandb")):
        for record in finished_records(path):
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith(("_", "video/")):
                    series[name].append((record.history.step.num, json.loads(item.value_json)))
            if record.WhichOneof("record_type") == "exit":
                end = ends[record.exit.exit_code]
    return series, end


def trackio_content(name: str) -> tuple[Series, str]:
    from trackio.sqlite_storage import SQLiteStorage

    series: Series = defaultdict(list)
    for row in SQLiteStorage.get_logs("mirl", run=name):
        for key in row.keys() - {"step", "timestamp"}:
            series[key].append((row["step"], row[key]))
    return series, "unknown"


def mlflow_content(run_id: str) -> tuple[Series, str]:
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    series: Series = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run_id, name)
        series[name] = [(point.step, point.value) for point in history]
    assert run.data.params["agent.n_steps"] == "32"
    return series, run.info.status.lower()


CONTENT = {"wandb": wandb_content, "trackio": trackio_content, "mlflow": mlflow_content}


def table_series(run_dir: Path) -> Mapping[str, dict[int, float]]:
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for row in metrics_of(run_dir):
        for name, value in row.items():
            if value:
                series[name][int(row["time/total_timesteps"] or 0)] = float(value)
    return series


def assert_holds_table(name: str, run_dir: Path, end: str) -> None:
    """Check that a tracker has the values of metrics.csv, without clock times."""
    series, has_ended = CONTENT[name](load_ids(run_dir)[name])
    assert has_ended in (end, "unknown")
    kept = {}
    for key, points in series.items():
        if not key.startswith(CLOCK):
            kept[key] = dict(points)
    expected = table_series(run_dir)
    assert kept == expected
    assert len(expected) > 15


PACKAGES_WARN = pytest.mark.filterwarnings("ignore", "error::mirl.configs.errors.PlainWarning")
"""The packages warn about their own dependencies."""


@PACKAGES_WARN
@pytest.mark.parametrize("name", NAMES)
def test_tracker_equals_table(tiny: Build, offline: Path, name: str) -> None:
    """The tracker has the values of the table, and learning is as without it."""
    pytest.importorskip(name)
    config = tiny(f"logger={name}", f"name=whole_{name}", "evaluation.every=256", "videos=true")
    assert train(config).finished
    assert_holds_table(name, config.run_dir, "finished")
    plain = tiny("name=plain", "evaluation.every=256", "videos=true")
    train(plain)
    expected = tensors_of(plain.run_dir)
    for key, tensor in tensors_of(config.run_dir).items():
        np.testing.assert_array_equal(tensor, expected[key])


@PACKAGES_WARN
@pytest.mark.parametrize("name", NAMES)
def test_killed_run_goes_on(
    tiny: Build, offline: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A run that is killed after its checkpoint continues in the tracker."""
    pytest.importorskip(name)
    config = tiny(f"logger={name}", f"name=cut_{name}", "checkpoint_every=256")
    with monkeypatch.context() as patch:
        kill_at(patch, 130)
        with pytest.raises(Killed):
            train(config)
    assert_holds_table(name, config.run_dir, "failed")
    last = max(table_series(config.run_dir)["train/loss"])
    assert last == 384
    run_id = load_ids(config.run_dir)
    assert train(config).finished
    assert load_ids(config.run_dir) == run_id
    assert_holds_table(name, config.run_dir, "finished")


@PACKAGES_WARN
@pytest.mark.parametrize("name", NAMES)
def test_runs_of_process_stay_apart(tmp_path: Path, offline: Path, name: str) -> None:
    """Two runs at the same time, of one name in two folders, keep their own values."""
    pytest.importorskip(name)
    folders = [tmp_path / "a" / f"same_{name}", tmp_path / "b" / f"same_{name}"]
    loggers = []
    for folder in folders:
        folder.mkdir(parents=True)
        loggers.append(build_logger(folder, None, [name], {"agent": {"n_steps": 32}}))
        loggers[-1].record("first", 0)
        loggers[-1].dump(0)
        # Trackio knows a run by its first row, which a thread writes
        while name == "trackio" and "first" not in trackio_content(folder.name)[0]:
            time.sleep(0.05)
    for number, logger in enumerate(loggers):
        logger.record("value", number)
        logger.dump(1)
    for logger in loggers:
        logger.close()
    for number, folder in enumerate(folders):
        series, _ = CONTENT[name](load_ids(folder)[name])
        assert series["value"] == [(1, float(number))]
