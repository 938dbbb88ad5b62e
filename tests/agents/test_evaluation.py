"""Evaluation plays fixed quotas of unseen episodes and reports rates with intervals."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from corridor_env import corridor
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from run_setup import evaluate_at
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy

from mirl.agents import evaluate, train
from mirl.agents.evaluation import _result
from mirl.agents.statistics import Episode, TaskResult, suite_result
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError, PlainWarning
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import HoldoutConfig, SuiteConfig, TaskConfig
from mirl.envs import SeedSplit, SuiteVecEnv, env_seeds

Build = Callable[..., TrainConfig]
FAST_FAILURE, SLOW_SUCCESS = 2, 20
SPLITS: tuple[SeedSplit, ...] = ("train", "validation", "test")


class SlowSuccessEnv(gym.Env[Any, Any]):
    """An environment whose episodes fail after 2 timesteps or succeed after 20."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self._left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._succeeds = bool(self.np_random.random() < 0.5)
        self._left = SLOW_SUCCESS if self._succeeds else FAST_FAILURE
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        over = self._left == 0
        return np.zeros(2, np.float32), float(over and self._succeeds), over, False, {}


class GuessEnv(SlowSuccessEnv):
    """An environment of one timestep in which only action 0 succeeds."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), float(action == 0), True, False, {}


@pytest.fixture
def suite() -> Iterator[SuiteConfig]:
    """Yield two tasks whose ids are registered during the test."""
    environments = {"ToySlowSuccess-v0": SlowSuccessEnv, "ToyGuess-v0": GuessEnv}
    for env_id, entry_point in environments.items():
        gym.register(env_id, entry_point=entry_point)
    tasks = tuple(
        TaskConfig(name=name, env_id=env_id, success="reward")
        for name, env_id in zip(("slow", "guess"), environments, strict=True)
    )
    yield SuiteConfig(name="toys", tasks=tasks)
    for env_id in environments:
        del gym.registry[env_id]


def make_policy(env: SuiteVecEnv) -> BasePolicy:
    torch.manual_seed(0)
    return MultiInputActorCriticPolicy(env.observation_space, env.action_space, lambda _: 0.0)


def first_outcomes(seed: int, split: SeedSplit, slots: int, quotas: list[int]) -> list[bool]:
    """Replay the first episodes of the slow task, one environment at a time."""
    outcomes = []
    for slot_seed, quota in zip(env_seeds(seed, split, 0, slots), quotas, strict=True):
        env = SlowSuccessEnv()
        for episode in range(quota):
            env.reset(seed=slot_seed if episode == 0 else None)
            outcomes.append(env._succeeds)
    return outcomes


def evaluated(suite: SuiteConfig, n_envs: int, **options: Any) -> list[TaskResult]:
    env = SuiteVecEnv(suite, n_envs, seed_split="validation", workers=0)
    try:
        return evaluate(make_policy(env), env, **options)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("slots", "episodes", "quotas"), [(64, 64, [1] * 64), (3, 8, [3, 3, 2]), (4, 2, [1, 1, 0, 0])]
)
def test_every_environment_plays_its_quota(
    suite: SuiteConfig, slots: int, episodes: int, quotas: list[int]
) -> None:
    """Every environment plays its quota, so that short failures are not favored."""
    slow, guess = evaluated(suite, 2 * slots, episodes=episodes, seed=3)
    expected = first_outcomes(3, "validation", slots, quotas)
    assert slow.success.tolist() == expected
    assert slow.lengths.tolist() == [
        SLOW_SUCCESS if success else FAST_FAILURE for success in expected
    ]
    assert slow.returns.tolist() == [float(success) for success in expected]
    assert len(guess.success) == episodes
    assert (slow.task, guess.task) == ("slow", "guess")


def test_success_rate_ignores_episode_length(suite: SuiteConfig) -> None:
    """The success rate is not biased by the lengths of episodes."""
    slow, _ = evaluated(suite, 800, episodes=400, seed=0)
    assert abs(slow.success_rate - 0.5) < 4 * 0.5 / np.sqrt(
        400
    )  # of the first 400 to finish next to none succeed


def test_policy_sees_few_batch_sizes(suite: SuiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy sees few batch sizes while environments become inactive."""
    sizes: set[int] = set()
    predict = BasePolicy.predict

    def counted(policy: BasePolicy, observation: dict[str, Any], *rest: Any) -> Any:
        sizes.add(len(observation["observation"]))
        return predict(policy, observation, *rest)

    monkeypatch.setattr(BasePolicy, "predict", counted)
    results = evaluated(
        suite, 200, episodes=150, seed=0
    )  # two episodes of some slots, one of the others
    assert len(sizes) > 2
    assert all(size % 13 == 0 for size in sizes), sizes  # 16 sizes up to 200
    assert [len(result.success) for result in results] == [150, 150]


def test_evaluation_restores_generator_and_mode(suite: SuiteConfig) -> None:
    """An evaluation restores torch's generator and the mode of the policy."""
    env = SuiteVecEnv(suite, 4, workers=0)
    policy = make_policy(env)
    policy.set_training_mode(True)
    before = torch.get_rng_state()
    evaluate(policy, env, episodes=5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert policy.training
    env.close()


def test_evaluation_is_reproducible(suite: SuiteConfig) -> None:
    env = SuiteVecEnv(suite, 4, workers=0)
    policy = make_policy(env)

    def outcomes(seed: int) -> list[list[bool]]:
        torch.rand(3)  # whatever happened to the generator before
        return [result.success.tolist() for result in evaluate(policy, env, episodes=50, seed=seed)]

    first = outcomes(1)
    assert outcomes(1) == first
    assert outcomes(2) != first
    assert outcomes(1) == first
    env.close()


def test_deterministic_takes_most_probable_action(suite: SuiteConfig) -> None:
    env = SuiteVecEnv(suite, 4, workers=0)
    policy = make_policy(env)
    rates = {
        d: evaluate(policy, env, episodes=60, seed=1, deterministic=d)[1].success_rate
        for d in (True, False)
    }
    assert rates[True] in (0.0, 1.0)
    assert 0.0 < rates[False] < 1.0
    env.close()


SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS, SEEDS, st.integers(0, 9), st.integers(0, 9))
def test_seed_splits_are_disjoint(first: int, second: int, task: int, other_task: int) -> None:
    one, two, three = (
        {*env_seeds(seed, split, index, 64)}
        for seed, split, index in zip(
            (first, second, first), SPLITS, (task, other_task, other_task), strict=True
        )
    )
    assert len(one | two | three) == len(one) + len(two) + len(three)


def test_tasks_and_seeds_have_own_seeds() -> None:
    """Every task and every seed has environment seeds of its own."""
    drawn = [tuple(env_seeds(seed, "train", task, 8)) for seed in range(3) for task in range(3)]
    assert len(set(drawn)) == 9
    assert env_seeds(0, "train", 0, 8)[:4] == env_seeds(0, "train", 0, 4)


def test_partly_reported_success_is_unknown(suite: SuiteConfig) -> None:
    """A rate over the episodes that report success would leave out the others."""
    tasks = [task.model_copy(update={"success": "auto"}) for task in suite.tasks]
    episodes = [Episode(True, 1.0, 3), Episode(None, 0.0, 3)]
    assert _result(tasks[0], episodes, "trained").success is None
    assert _result(tasks[0], episodes[:1], "trained").success_rate == 1.0


def test_unknown_success_is_null_in_reports(tmp_path: Path) -> None:
    """A run whose task reports no success is evaluated, and its report holds null."""
    sizes = ("agent.n_envs=2", "agent.n_steps=32", "agent.batch_size=64", "total_timesteps=64")
    others = ("evaluation.episodes=2", "progress=false", "device=cpu", f"runs_dir={tmp_path}")
    config = compose_train([*corridor("", "success: 'return>=-16'"), *sizes, *others])
    train(config)
    options = EvalConfig(run=config.run_dir, checkpoint="best", episodes=4, n_envs=2)
    results, [path] = evaluate_at(options)
    assert [result.success_rate for result in results] == [None, 1.0]
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    for key in ("successes", "success_rate", "success_interval"):
        assert report["tasks"][0][key] is None
        assert report["tasks"][1][key] is not None
    summary = report["summary"]["trained"]
    assert (summary["tasks_with_success"], summary["success"]["mean"]) == (1, 1.0)


def test_success_rule_replaces_the_runs(tmp_path: Path) -> None:
    """``success=`` of eval.py decides the success of every task, and names the file."""
    sizes = ("agent.n_envs=2", "agent.n_steps=32", "agent.batch_size=64", "total_timesteps=64")
    others = ("evaluation.episodes=2", "progress=false", "device=cpu", f"runs_dir={tmp_path}")
    config = compose_train([*corridor("", "success: 'return>=-16'"), *sizes, *others])
    train(config)
    options = EvalConfig(
        run=config.run_dir, checkpoint="last", episodes=4, n_envs=2, success="return>=1000"
    )
    results, [path] = evaluate_at(options)
    assert [result.success_rate for result in results] == [0.0, 0.0]
    assert json.loads(path.read_text())["success"] == "return>=1000"
    assert path.stem.endswith("-return--1000")


def test_only_active_tasks_have_results(suite: SuiteConfig) -> None:
    env = SuiteVecEnv(suite, 2, workers=0, holdout=HoldoutConfig(tasks=("slow",)))
    [result] = evaluate(make_policy(env), env, episodes=3, seed=0)
    env.close()
    assert (result.task, set(result.lengths.tolist())) == ("guess", {1})


def test_results_use_task_score_bounds(suite: SuiteConfig) -> None:
    """Results are scored on the scale of their task."""
    scaled = suite.tasks[1].model_copy(update={"score_low": -1.0, "score_high": 3.0})
    slow, guess = evaluated(
        suite.model_copy(update={"tasks": (suite.tasks[0], scaled)}), 2, episodes=8, seed=0
    )
    assert slow.score == slow.returns.mean()
    assert guess.score == (guess.returns.mean() + 1) / 4


def test_run_is_evaluated_on_test_seeds(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is evaluated on the test seeds, and the results are written."""
    config, splits = tiny("total_timesteps=128"), list[SeedSplit]()
    train(config)
    reset = SuiteVecEnv.reset

    def recorded(env: SuiteVecEnv) -> Any:
        splits.append(env.seed_split)
        return reset(env)

    monkeypatch.setattr(SuiteVecEnv, "reset", recorded)
    results, (path, *gifs) = evaluate_at(
        EvalConfig(run=config.run_dir, checkpoint="last", episodes=6, n_envs=3, gif=True)
    )
    assert set(splits) == {"test"}
    report = json.loads(path.read_text())
    assert path.parent == config.run_dir / "eval"
    assert (report["checkpoint"], report["seed"], report["deterministic"]) == (
        "step_000000128",
        0,
        False,
    )
    assert report["tasks"] == [result.summary() for result in results]
    assert report["tasks"][0]["episodes"] == 6
    assert report["summary"] == {"trained": asdict(suite_result(results))}
    assert set(gifs) <= set(video_paths(path, "goto_door"))
    assert all(gif.read_bytes().startswith(b"GIF89a") for gif in gifs)
    # a success and a failure, if both were seen in the evaluation and in the first episodes
    assert len(gifs) in (1, 2)


def video_paths(path: Path, task: str) -> list[Path]:
    """Return the names that the GIFs of a task may have beside a report."""
    return [
        path.with_name(f"{path.stem}-{task}-{outcome}.gif") for outcome in ("success", "failure")
    ]


def test_videos_show_both_outcomes(door_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task with both outcomes, one episode of each is recorded."""
    monkeypatch.setattr("mirl.agents.evaluation.VIDEO_EPISODES", 200)
    options = EvalConfig(run=door_run, checkpoint="last", episodes=64, gif=True, seed=1)
    [result], [path, *gifs] = evaluate_at(options)
    assert result.n_successes not in (0, 64)
    assert gifs == video_paths(path, "goto_door")
    # a rule by which every episode fails
    never = options.model_copy(update={"success": "return>=5"})
    [result], [path, *gifs] = evaluate_at(never)
    assert result.n_successes == 0
    assert gifs == [video_paths(path, "goto_door")[1]]


def test_other_options_write_other_files(tiny: Build) -> None:
    """Evaluations with other options write other files."""
    config = tiny("total_timesteps=128")
    train(config)
    common = {"run": config.run_dir, "checkpoint": "last", "episodes": 2}
    for options in (
        {},
        {"seed": 1},
        {"deterministic": True},
        {"backend": "gymnasium"},
        {"backend": "gymnasium"},
    ):
        evaluate_at(EvalConfig(**common, **options))
    assert len(list((config.run_dir / "eval").glob("*.json"))) == 4


def test_held_out_episodes_are_evaluated_separately(tiny: Build) -> None:
    config = tiny(
        "total_timesteps=128", "task=goto_local", "split.name=red", "split.missions=[red]"
    )
    train(config)
    results, [path] = evaluate_at(
        EvalConfig(run=config.run_dir, checkpoint="last", episodes=4, n_envs=2)
    )
    assert [result.label for result in results] == ["goto_local", "goto_local (held out)"]
    report = json.loads(path.read_text())
    assert [task["subset"] for task in report["tasks"]] == ["trained", "held_out"]
    assert set(report["summary"]) == {"trained", "held_out"}


# ------------------------------------------------------------------------- other levels and suites


@pytest.fixture(scope="module")
def door_run(tmp_path_factory: pytest.TempPathFactory, tiny_in: Build) -> Path:
    """Train a run on one level, whose policy reads the mission."""
    config = tiny_in(tmp_path_factory.mktemp("runs"), "total_timesteps=128")
    train(config)
    return config.run_dir


OTHER_LEVELS = "MiniGrid-GoToDoor-6x6-v0+MiniGrid-GoToDoor-8x8-v0"


@pytest.mark.parametrize("task", ["goto_door_8x8", OTHER_LEVELS])
def test_run_plays_other_levels(door_run: Path, task: str) -> None:
    options = EvalConfig(run=door_run, checkpoint="last", episodes=2, n_envs=2, gif=True, task=task)
    results, [path, *gifs] = evaluate_at(options)
    names = task.split("+")
    assert [result.label for result in results] == names
    report = json.loads(path.read_text())
    assert report["task"] == task
    # the context can be swapped where the episodes of one level are played
    assert ("context_use" in report) == (len(names) == 1)
    assert f"-{task}-" in path.name
    for name in names:
        assert any(gif in video_paths(path, name) for gif in gifs)


def test_other_spaces_are_one_line(door_run: Path) -> None:
    options = EvalConfig(run=door_run, checkpoint="last", episodes=2, task="CartPole-v1")
    with pytest.raises(ConfigError) as caught:
        evaluate_at(options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("task 'CartPole-v1' does not fit ")
    assert "its observation 'direction' is missing, expected Discrete(4)" in message


def test_task_index_needs_known_task(tiny: Build) -> None:
    """A policy that reads the index of its task has none for a task that it was not trained on."""
    config = tiny("total_timesteps=128", "task=doors", "context=task_id")
    train(config)
    options = EvalConfig(run=config.run_dir, checkpoint="last", episodes=2, task="goto_door_8x8")
    [result], _ = evaluate_at(options)
    assert result.task == "goto_door_8x8"
    with pytest.raises(ConfigError, match="was not trained on 'goto_door', expected a task of its"):
        evaluate_at(options.model_copy(update={"task": "goto_door"}))


def test_unwritable_run_keeps_its_table(door_run: Path) -> None:
    """Results that cannot be written are returned, with one warning."""
    folder = door_run / "eval"
    shutil.rmtree(folder, ignore_errors=True)
    folder.touch()  # as unwritable as the folder of somebody else, also for root
    try:
        options = EvalConfig(run=door_run, checkpoint="last", episodes=2, gif=True)
        with pytest.warns(PlainWarning, match="the results cannot be written to .*eval") as caught:
            [result], written = evaluate_at(options)
    finally:
        folder.unlink()
    assert (result.n_episodes, written, len(caught)) == (2, [], 1)
