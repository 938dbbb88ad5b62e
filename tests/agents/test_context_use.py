"""Swapped contexts show whether an agent uses its context."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from toy_goal_envs import FlipGoalEnv, FlipMissionEnv

from mirl.agents.context_use import (
    ContextUse,
    StartContext,
    choose_swaps,
)
from mirl.agents.evaluation import evaluate, evaluate_context_use
from mirl.agents.statistics import Episode
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv

ENVIRONMENTS = {"ToyFlipGoal-v0": FlipGoalEnv, "ToyFlipMission-v0": FlipMissionEnv}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the environments during the test."""
    for env_id, entry_point in ENVIRONMENTS.items():
        gym.register(env_id, entry_point=entry_point)
    yield
    for env_id in ENVIRONMENTS:
        del gym.registry[env_id]


class Scripted:
    """A policy whose actions are a function of the observation and a count of timesteps."""

    training = False

    def __init__(self, listens: bool, key: str) -> None:
        self.device = torch.device("cpu")
        self.listens = listens
        self.key = key

    def set_training_mode(self, mode: bool) -> None:
        self.training = mode

    def predict(self, obs: Any, state: Any, starts: Any, deterministic: bool) -> tuple[Any, Any]:
        right = obs["observation"][:, 0] > 0
        if self.listens:
            # one of the missions has five words, the other six
            if self.key == "mission":
                is_positive = (obs[self.key] != 0).sum(-1) == 5
            else:
                is_positive = obs[self.key][:, 0] > 0
            right = right == is_positive
        return right.astype(np.int64), state


def make_env(env_id: str, n_envs: int = 8, **options: Any) -> SuiteVecEnv:
    tasks = (TaskConfig(name="flip", env_id=env_id, **options),)
    return SuiteVecEnv(SuiteConfig(name="flips", tasks=tasks), n_envs, workers=0)


@pytest.mark.parametrize(
    ("env_id", "key"), [("ToyFlipGoal-v0", "desired_goal"), ("ToyFlipMission-v0", "mission")]
)
def test_listening_agent_uses_its_context(env_id: str, key: str) -> None:
    with closing(make_env(env_id)) as env:
        use = evaluate_context_use(Scripted(True, key), env, (key,), episodes=64, seed=0)
    assert use is not None
    assert len(use.own) == 64
    assert use.value == 1.0
    assert use.warning() is None


@pytest.mark.parametrize(
    ("env_id", "key"), [("ToyFlipGoal-v0", "desired_goal"), ("ToyFlipMission-v0", "mission")]
)
def test_deaf_agent_is_warned_about(env_id: str, key: str) -> None:
    with closing(make_env(env_id)) as env:
        use = evaluate_context_use(Scripted(False, key), env, (key,), episodes=64, seed=0)
    assert use is not None
    assert use.value == 0
    assert use.interval[1] < 0.05
    assert f"ignores its {key}" in str(use.warning())


def test_main_results_do_not_change() -> None:
    policy = Scripted(True, "desired_goal")
    with closing(make_env("ToyFlipGoal-v0")) as env:
        [before] = evaluate(policy, env, episodes=30, seed=5)
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        evaluate_context_use(policy, env, ("desired_goal",), episodes=20, seed=5)
        assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
        [after] = evaluate(policy, env, episodes=30, seed=5)
    assert before.returns.tolist() == after.returns.tolist()


def test_equal_contexts_report_nothing() -> None:
    with closing(make_env("ToyFlipGoal-v0")) as env:
        policy = Scripted(False, "desired_goal")
        assert evaluate_context_use(policy, env, ("task",), episodes=16, seed=0) is None


def test_partners_differ_within_the_task() -> None:
    starts = {}
    for env_index in range(12):
        task = env_index % 2
        value = np.array([10 * task + env_index // 2 % 3])
        starts[env_index, 0] = StartContext(task, {"goal": value})
    swaps = choose_swaps(starts, np.random.default_rng(0))
    assert list(swaps) == list(starts)
    for episode, partner in swaps.items():
        assert partner.task == starts[episode].task
        assert partner.differs(starts[episode])


def test_task_ids_swap_across_tasks() -> None:
    starts = {(i, 0): StartContext(i % 2, {"task": np.array(i % 2)}) for i in range(8)}
    swaps = choose_swaps(starts, np.random.default_rng(0))
    assert all(partner.task != starts[episode].task for episode, partner in swaps.items())
    assert len(swaps) == 8


def use_of(own: list[Any], swapped: list[Any], returns: float = 1.0, **options: Any) -> ContextUse:
    task = TaskConfig(name="flip", env_id="ToyFlipGoal-v0", **options)
    return ContextUse(
        ("goal",),
        [Episode(success, returns, 1) for success in own],
        [Episode(success, returns, 1) for success in swapped],
        [task] * len(own),
    )


def test_untrained_agent_is_not_warned() -> None:
    assert use_of([False] * 64, [False] * 64).warning() is None
    assert use_of([True] * 64, [True] * 64).warning() is not None


def test_few_episodes_do_not_warn() -> None:
    assert use_of([True] * 16, [True] * 16).warning() is None


def test_return_needs_score_bounds() -> None:
    unknown: list[Any] = [None] * 64
    assert use_of(unknown, unknown).warning() is None
    use = use_of(unknown, unknown, score_low=0.0, score_high=1.0)
    assert use.warning() is not None
    summary = json.loads(json.dumps(use.summary()))
    assert (summary["criterion"], summary["swapped_success"]) == ("return", None)
