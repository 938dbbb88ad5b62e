"""The log of a run is correct, and each value is logged at its own step."""

import csv
import io
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_setup import resolve
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mirl.agents import PPO, train
from mirl.agents.builder import policy_kwargs
from mirl.agents.callbacks.statistics import WINDOW
from mirl.agents.runs.logger import build_logger
from mirl.configs.errors import PlainWarning
from mirl.configs.schema import TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy

Build = Callable[..., TrainConfig]
TASKS = ("door", "obj")
SUITE = (
    "task.name=two",
    "task.tasks=[{name: door, env_id: MiniGrid-GoToDoor-5x5-v0}, "
    "{name: obj, env_id: MiniGrid-GoToObject-6x6-N2-v0}]",
    "context=mission",
    "encoder=grid",
)


@dataclass
class Witness:
    """A record of a run, kept beside its log."""

    config: TrainConfig
    episodes: dict[str, list[Any]] = field(default_factory=dict)
    """None for each call of ``reset`` and the infos of each timestep, by seed split."""
    losses: dict[int, float] = field(default_factory=dict)
    """The loss when ``train`` returned, by timestep."""

    @property
    def events(self) -> EventAccumulator:
        return events_in(self.config.run_dir)


def events_in(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    points = events.Scalars(tag)
    assert len({point.step for point in points}) == len(points), "a step comes twice"
    return {point.step: point.value for point in points}


def record_losses(
    patch: pytest.MonkeyPatch, algorithm: type[OnPolicyAlgorithm], losses: dict[int, float]
) -> None:
    update = algorithm.train

    def recorded(agent: OnPolicyAlgorithm) -> None:
        update(agent)
        losses[agent.num_timesteps] = float(agent.logger.name_to_value["train/loss"])

    patch.setattr(algorithm, "train", recorded)


def record_episodes(patch: pytest.MonkeyPatch, episodes: dict[str, list[Any]]) -> None:
    reset, step_wait = SuiteVecEnv.reset, SuiteVecEnv.step_wait

    def recorded_reset(env: SuiteVecEnv) -> Any:
        episodes.setdefault(env.seed_split, []).append(None)
        return reset(env)

    def recorded_step(env: SuiteVecEnv) -> Any:
        result = step_wait(env)
        episodes[env.seed_split].append(result[3])
        return result

    patch.setattr(SuiteVecEnv, "reset", recorded_reset)
    patch.setattr(SuiteVecEnv, "step_wait", recorded_step)


@pytest.fixture(scope="module")
def run(tiny_in: Build, tmp_path_factory: pytest.TempPathFactory) -> Witness:
    """Six iterations of 128 timesteps over two tasks, evaluated every 256 and saved every 512."""
    words = (
        "total_timesteps=768",
        "evaluation.every=256",
        "evaluation.episodes=7",
        "checkpoint_every=512",
        "videos=true",
    )
    witness = Witness(
        tiny_in(
            tmp_path_factory.mktemp("runs"), *SUITE, *words, "agent.learning_rate=0.01", "seed=2"
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        record_losses(patch, PPO, witness.losses)
        record_episodes(patch, witness.episodes)
        train(witness.config)
    return witness


def test_losses_stand_at_own_iteration(run: Witness) -> None:
    assert list(run.losses) == [128, 256, 384, 512, 640, 768]
    assert scalars(run.events, "train/loss") == pytest.approx(run.losses)


def test_sb3_losses_stand_one_late(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's own losses are logged one iteration late."""
    config, losses = tiny("backend=gymnasium"), dict[int, float]()
    record_losses(monkeypatch, SB3PPO, losses)
    env = SuiteVecEnv(config.task, 4)
    agent = SB3PPO(
        FusionPolicy,
        env,
        n_steps=32,
        batch_size=64,
        policy_kwargs=policy_kwargs(resolve(config)),
        device="cpu",
    )
    config.run_dir.mkdir()
    logger = build_logger(config.run_dir, None)
    agent.set_logger(logger)
    agent.learn(384, log_interval=1)
    logger.close()
    env.close()
    late = {step + 128: loss for step, loss in losses.items() if step < 384}
    assert scalars(events_in(config.run_dir), "train/loss") == pytest.approx(late)


@pytest.mark.parametrize(
    ("metric", "key"), [("success_rate", "is_success"), ("return", "r"), ("length", "l")]
)
@pytest.mark.parametrize("task", TASKS)
def test_task_scalars_equal_recount(run: Witness, task: str, metric: str, key: str) -> None:
    steps = [infos for infos in run.episodes["train"] if infos is not None]
    assert len(steps) == 6 * 32
    window: deque[float] = deque(maxlen=WINDOW)
    expected = {}
    for number, infos in enumerate(steps, start=1):
        for info in infos:
            if info.get("task") == task:
                window.append(float({**info["episode"], **info}[key]))
        if number % 32 == 0 and window:
            expected[number * 4] = np.mean(window)
    assert scalars(run.events, f"task/{task}/{metric}") == pytest.approx(expected)
    assert len(set(expected.values())) > 1


@pytest.mark.parametrize(
    ("metric", "key"), [("success_rate", "is_success"), ("return", "r"), ("length", "l")]
)
@pytest.mark.parametrize(("task", "slots"), [("door", (0, 1)), ("obj", (2, 3))])
def test_evaluation_scalars_equal_recount(
    run: Witness, task: str, slots: tuple[int, int], metric: str, key: str
) -> None:
    """Evaluation scalars equal a recount of each environment's first episodes."""
    evaluations: list[dict[int, list[float]]] = []
    for infos in run.episodes["validation"]:
        if infos is None:
            evaluations.append({slot: [] for slot in range(4)})
            continue
        for slot, info in enumerate(infos):
            if info:
                evaluations[-1][slot].append(float({**info["episode"], **info}[key]))
    quotas = (4, 3)  # seven episodes over two slots
    values = [
        np.mean([v for s, n in zip(slots, quotas, strict=True) for v in one[s][:n]])
        for one in evaluations
    ]
    expected = dict(zip((256, 512, 768), values, strict=True))
    assert scalars(run.events, f"eval/{task}/{metric}") == pytest.approx(expected)


def test_overall_success_is_task_mean(run: Witness) -> None:
    each = [scalars(run.events, f"eval/{task}/success_rate") for task in TASKS]
    assert scalars(run.events, "eval/success_rate") == pytest.approx(
        {s: np.mean([e[s] for e in each]) for s in each[0]}
    )


def test_training_and_evaluation_seeds_differ(run: Witness) -> None:
    """Training and evaluation use their own seed splits."""
    assert set(run.episodes) == {"train", "validation"}


def rows_of(config: TrainConfig) -> list[dict[str, str]]:
    with (config.run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_iterations_log_time_shares(run: Witness) -> None:
    rows = [row for row in rows_of(run.config) if row["speed/steps_per_second"]]
    assert len(rows) == 6
    for row in rows:
        shares = [
            float(row[f"speed/{part}_percent"])
            for part in ("environment", "forward", "update", "rest")
        ]
        assert sum(shares) == pytest.approx(100)
        assert min(shares) > 0


def test_csv_equals_events(run: Witness) -> None:
    table = {
        int(row["time/total_timesteps"]): float(row["train/loss"])
        for row in rows_of(run.config)
        if row["train/loss"]
    }
    assert table == pytest.approx(run.losses)


def test_events_hold_hyperparameters(run: Witness) -> None:
    content = run.events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    shown = {
        name: value.string_value or value.number_value for name, value in start.hparams.items()
    }
    assert shown["fusion.kind"] == "bilinear"
    assert shown["agent.learning_rate"] == 0.01
    assert shown["parameters"] == scalars(run.events, "model/parameters")[0]


def test_gifs_are_in_events_and_folder(run: Witness) -> None:
    frames = []
    for task in TASKS:
        images = run.events.Images(f"video/{task}")
        assert [image.step for image in images] == [512, 768]
        for image in images:
            path = run.config.run_dir / "videos" / f"{task}_{image.step:09d}.gif"
            assert path.read_bytes() == image.encoded_image_string
            with Image.open(io.BytesIO(image.encoded_image_string)) as gif:
                assert (gif.format, gif.size) == ("GIF", (image.width, image.height))
                frames.append(gif.n_frames)
    assert (
        max(frames) > 1
    )  # a frame that equals the one before makes that one stay, so an episode can have one


def test_log_every_thins_the_log(tiny: Build) -> None:
    config = tiny("log_every=2")
    train(config)
    assert sorted(scalars(events_in(config.run_dir), "train/loss")) == [256, 512]


def test_numbers_in_tensors_are_numbers(tmp_path: Path) -> None:
    """A callback may record a tensor without axes."""
    logger = build_logger(tmp_path, None)
    logger.record("own/tensor", torch.tensor(0.5))
    logger.record("own/array", np.array(2))
    logger.dump(1)
    logger.close()
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert (row["own/tensor"], row["own/array"]) == ("0.5", "2")


@pytest.mark.parametrize(
    "content",
    [
        b"a,time/total_timesteps\n1,many\n",
        b"a,time/total_timesteps\n1," + b"9" * 5000,
        b"a\n1,2,3\n",
        b"a\n\xff\n",
        b"a\n" + b"1" * 2**18,
    ],
    ids=["word", "digits", "cells", "encoding", "long"],
)
def test_damaged_table_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """A table that cannot be read does not end a resumed run, and is kept."""
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.warns(PlainWarning, match=r"metrics\.csv is damaged \(.*a new table begins"):
        logger = build_logger(tmp_path, resumed_at=10)
    logger.record("time/total_timesteps", 20)
    logger.dump(20)
    logger.close()
    assert (tmp_path / "damaged_metrics.csv").read_bytes() == content
    assert (tmp_path / "metrics.csv").read_text() == "time/total_timesteps\n20\n"


def test_resumed_table_may_add_columns(tmp_path: Path) -> None:
    """A resumed table may have new columns."""
    first = build_logger(tmp_path, None)
    first.record("time/total_timesteps", 10)
    first.record("text", 'a "word", and more')
    first.dump(10)
    first.close()
    second = build_logger(tmp_path, 10)
    second.record("time/total_timesteps", 20)
    second.record("new", 1.5)
    second.dump(20)
    second.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["time/total_timesteps"] for row in rows] == ["10", "20"]
    assert [row["text"] for row in rows] == ['a "word", and more', ""]
    assert [row["new"] for row in rows] == ["", "1.5"]
