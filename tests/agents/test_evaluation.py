"""Evaluation: fixed quotas of unseen episodes, and rates with honest intervals."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy

from mirl.agents import evaluate, train
from mirl.agents.evaluation import evaluate_run, mean_success, results_table
from mirl.agents.statistics import TaskResult, wilson_interval
from mirl.configs.schema import EvalConfig, SuiteConfig, TaskConfig, TrainConfig
from mirl.envs import Split, SuiteVecEnv, slot_seeds

Build = Callable[..., TrainConfig]
FAST_FAILURE, SLOW_SUCCESS = 2, 20
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class SlowSuccessEnv(gym.Env[Any, Any]):
    """Whatever is done, half of the episodes fail after 2 timesteps and half succeed after 20."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self._left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._succeeds = bool(self.np_random.random() < 0.5)
        self._left = SLOW_SUCCESS if self._succeeds else FAST_FAILURE
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        over = self._left == 0
        return np.zeros(2, np.float32), float(over and self._succeeds), over, False, {}


class GuessEnv(SlowSuccessEnv):
    """One timestep; only action 0 succeeds."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), float(action == 0), True, False, {}


@pytest.fixture
def suite() -> Iterator[SuiteConfig]:
    """Two tasks; their ids are known during the test."""
    environments = {"ToySlowSuccess-v0": SlowSuccessEnv, "ToyGuess-v0": GuessEnv}
    for env_id, entry_point in environments.items():
        gym.register(env_id, entry_point=entry_point)
    tasks = tuple(
        TaskConfig(name=name, env_id=env_id) for name, env_id in zip(("slow", "guess"), environments, strict=True)
    )
    yield SuiteConfig(name="toys", tasks=tasks)
    for env_id in environments:
        del gym.registry[env_id]


def make_policy(env: SuiteVecEnv) -> BasePolicy:
    torch.manual_seed(0)
    return MultiInputActorCriticPolicy(env.observation_space, env.action_space, lambda _: 0.0)


def first_outcomes(seed: int, split: Split, slots: int, quotas: list[int]) -> list[bool]:
    """What each slot's first episodes of the slow task are, replayed one environment at a time."""
    outcomes = []
    for slot_seed, quota in zip(slot_seeds(seed, split, 0, slots), quotas, strict=True):
        env = SlowSuccessEnv()
        for episode in range(quota):
            env.reset(seed=slot_seed if episode == 0 else None)
            outcomes.append(env._succeeds)
    return outcomes


def evaluated(suite: SuiteConfig, n_envs: int, **options: Any) -> list[TaskResult]:
    env = SuiteVecEnv(suite, n_envs, split="validation", workers=0)
    try:
        return evaluate(make_policy(env), env, **options)
    finally:
        env.close()


@pytest.mark.parametrize(("slots", "episodes", "quotas"), [(64, 64, [1] * 64), (3, 8, [3, 3, 2]), (4, 2, [1, 1, 0, 0])])
def test_every_slot_plays_its_quota_so_that_short_failures_are_not_favoured(
    suite: SuiteConfig, slots: int, episodes: int, quotas: list[int]
) -> None:
    slow, guess = evaluated(suite, 2 * slots, episodes=episodes, seed=3)
    expected = first_outcomes(3, "validation", slots, quotas)
    assert slow.success.tolist() == expected
    assert slow.lengths.tolist() == [SLOW_SUCCESS if success else FAST_FAILURE for success in expected]
    assert slow.returns.tolist() == [float(success) for success in expected]
    assert len(guess.success) == episodes
    assert (slow.task, guess.task) == ("slow", "guess")


def test_the_success_rate_is_not_biased_by_the_length_of_episodes(suite: SuiteConfig) -> None:
    slow, _ = evaluated(suite, 800, episodes=400, seed=0)
    assert abs(slow.success_rate - 0.5) < 4 * 0.5 / math.sqrt(400)  # of the first 400 to finish next to none succeed


def test_an_evaluation_leaves_torchs_generator_and_the_policys_mode(suite: SuiteConfig) -> None:
    env = SuiteVecEnv(suite, 4, workers=0)
    policy = make_policy(env)
    policy.set_training_mode(True)
    before = torch.get_rng_state()
    evaluate(policy, env, episodes=5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert policy.training
    env.close()


def test_an_evaluation_can_be_repeated(suite: SuiteConfig) -> None:
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


def test_deterministic_takes_the_most_probable_action(suite: SuiteConfig) -> None:
    env = SuiteVecEnv(suite, 4, workers=0)
    policy = make_policy(env)
    rates = {d: evaluate(policy, env, episodes=60, seed=1, deterministic=d)[1].success_rate for d in (True, False)}
    assert rates[True] in (0.0, 1.0)
    assert 0.0 < rates[False] < 1.0
    env.close()


SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS, SEEDS, st.integers(0, 9), st.integers(0, 9))
def test_no_two_splits_share_a_seed(first: int, second: int, task: int, other_task: int) -> None:
    one, two, three = (
        {*slot_seeds(seed, split, index, 64)}
        for seed, split, index in zip((first, second, first), SPLITS, (task, other_task, other_task), strict=True)
    )
    assert len(one | two | three) == len(one) + len(two) + len(three)


def test_a_task_and_a_seed_have_seeds_of_their_own() -> None:
    drawn = [tuple(slot_seeds(seed, "train", task, 8)) for seed in range(3) for task in range(3)]
    assert len(set(drawn)) == 9
    assert slot_seeds(0, "train", 0, 8)[:4] == slot_seeds(0, "train", 0, 4)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_equals_a_published_table(successes: int, episodes: int, low: float, high: float) -> None:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 2000), st.data())
def test_the_wilson_interval_equals_its_formula(episodes: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, episodes))
    z, p = 1.959963984540054, successes / episodes
    centre = (p + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    half = z * math.sqrt(p * (1 - p) / episodes + z**2 / (4 * episodes**2)) / (1 + z**2 / episodes)
    low, high = wilson_interval(successes, episodes)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert low <= p + 1e-12
    assert high >= p - 1e-12


def test_a_summary_is_computed_from_the_episodes() -> None:
    result = TaskResult(
        "door", np.array([True, False, False, True]), np.array([1.0, 0, 0, 0.5]), np.array([2, 4, 6, 8])
    )
    summary = result.summary()
    assert (summary["episodes"], summary["successes"], summary["success_rate"]) == (4, 2, 0.5)
    assert (summary["return_mean"], summary["length_mean"]) == (0.375, 5.0)
    assert summary["return_std"] == pytest.approx(np.sqrt(0.171875))
    assert summary["success_interval"] == pytest.approx(wilson_interval(2, 4))


def test_the_mean_success_weighs_tasks_equally() -> None:
    many = TaskResult("many", np.ones(90, bool), np.ones(90), np.ones(90, int))
    few = TaskResult("few", np.zeros(10, bool), np.zeros(10), np.ones(10, int))
    assert mean_success([many, few]) == 0.5


def test_the_table_has_a_row_per_task() -> None:
    result = TaskResult("door", np.array([True, False]), np.array([1.0, 0.0]), np.array([3, 5]))
    table = results_table([result, result], "title")
    assert table.row_count == 2
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["door", "2", "50.0%", "9.5% – 90.5%", "0.500 ± 0.500", "4.0"]


def test_a_runs_evaluation_is_on_test_seeds_and_written_down(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config, splits = tiny("total_timesteps=128"), list[Split]()
    train(config)
    reset = SuiteVecEnv.reset

    def noted(env: SuiteVecEnv) -> Any:
        splits.append(env.split)
        return reset(env)

    monkeypatch.setattr(SuiteVecEnv, "reset", noted)
    results, (path, gif) = evaluate_run(
        EvalConfig(run=config.run_dir, checkpoint="last", episodes=6, n_envs=3, gif=True)
    )
    assert set(splits) == {"test"}
    report = json.loads(path.read_text())
    assert path.parent == config.run_dir / "eval"
    assert (report["checkpoint"], report["seed"], report["deterministic"]) == ("step_000000128", 0, False)
    assert report["tasks"] == [result.summary() for result in results]
    assert report["tasks"][0]["episodes"] == 6
    assert gif == path.with_name(f"{path.stem}-goto_door.gif")
    assert gif.read_bytes().startswith(b"GIF89a")


def test_evaluations_of_another_kind_get_files_of_their_own(tiny: Build) -> None:
    config = tiny("total_timesteps=128")
    train(config)
    common = {"run": config.run_dir, "checkpoint": "last", "episodes": 2}
    for options in ({}, {"seed": 1}, {"deterministic": True}, {"backend": "gymnasium"}, {"backend": "gymnasium"}):
        evaluate_run(EvalConfig(**common, **options))
    assert len(list((config.run_dir / "eval").glob("*.json"))) == 4
