"""Swapped contexts show whether an agent uses its context."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from off_policy_setup import tiny_off_policy
from run_records import metrics_of, tensors_of
from run_setup import checkpoint_of
from toy_goal_envs import FlipGoalEnv, FlipMissionEnv

from mirl.agents import evaluate, train
from mirl.agents.context_use import ContextUse, RecordedContexts, SwappedContexts
from mirl.agents.evaluation import RunEvaluation, evaluate_run, evaluate_swapped
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult
from mirl.configs.compose import compose_train
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import SuiteVecEnv

LIMIT = 20
"""Timesteps after which an episode of ``SearchEnv`` is truncated."""
CONTEXT_METRICS = {"eval/context_use", "eval/swapped_success", "eval/swapped_return"}


class SearchEnv(FlipGoalEnv):
    """A task that lasts until the right action is taken: its failures are long.

    It says that an episode succeeded, and never that one failed.
    """

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.observation_space["second_goal"] = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        observation["second_goal"] = -observation["desired_goal"]
        self.count = 0
        self.delay = int(self.np_random.integers(1, 4))
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        SearchEnv.steps += 1
        self.count += 1
        is_found = self.count >= self.delay and int(action) == self.right_action
        info = {"is_success": True} if is_found else {}
        return self.current_observation, float(is_found), is_found, self.count >= LIMIT, info


ENVIRONMENTS = {
    "ToyFlipGoal-v0": FlipGoalEnv,
    "ToyFlipMission-v0": FlipMissionEnv,
    "ToySearch-v0": SearchEnv,
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the environments during the test."""
    for env_id, entry_point in ENVIRONMENTS.items():
        gym.register(env_id, entry_point=entry_point)
    yield
    for env_id in ENVIRONMENTS:
        del gym.registry[env_id]


class Scripted:
    """A policy that takes the right action, or that for a positive goal if it does not listen.

    With a memory, it acts on what it has read in the first timestep of the episode.
    """

    training = False

    def __init__(self, listens: bool, key: str, has_memory: bool = False) -> None:
        self.device = torch.device("cpu")
        self.listens = listens
        self.key = key
        self.has_memory = has_memory
        self.calls = 0
        self.rows = 0

    def set_training_mode(self, mode: bool) -> None:
        self.training = mode

    def predict(self, obs: Any, state: Any, starts: Any, deterministic: bool) -> tuple[Any, Any]:
        self.calls += 1
        self.rows += len(starts)
        is_positive = np.ones(len(starts), np.bool_)
        if self.listens and self.key == "mission":
            # one of the missions has five words, the other six
            is_positive = (obs[self.key] != 0).sum(-1) == 5
        elif self.listens:
            is_positive = obs[self.key][:, 0] > 0
        if self.has_memory:
            if state is None:
                state = (is_positive,)
            state = (np.where(starts, is_positive, state[0]),)
            is_positive = state[0]
        right = (obs["observation"][:, 0] > 0) == is_positive
        return right.astype(np.int64), state


def make_env(env_id: str, n_envs: int = 8, **options: Any) -> SuiteVecEnv:
    tasks = (TaskConfig(name="flip", env_id=env_id, **options),)
    return SuiteVecEnv(SuiteConfig(name="flips", tasks=tasks), n_envs, workers=0)


def measure(
    policy: Any, env: SuiteVecEnv, *keys: str, episodes: int, swapped: int = 64
) -> ContextUse | None:
    """Evaluate a policy with its own and with swapped contexts."""
    contexts = RecordedContexts(keys)
    own = evaluate(policy, env, episodes=episodes, seed=0, contexts=contexts)
    return evaluate_swapped(policy, env, own, contexts, episodes=swapped, seed=0)


GOALS = pytest.mark.parametrize(
    ("env_id", "key"), [("ToyFlipGoal-v0", "desired_goal"), ("ToyFlipMission-v0", "mission")]
)


@GOALS
def test_listening_agent_uses_its_context(env_id: str, key: str) -> None:
    with closing(make_env(env_id)) as env:
        use = measure(Scripted(True, key), env, key, episodes=100)
    assert use is not None
    assert (use.own[0].n_episodes, use.swapped[0].n_episodes) == (100, 64)
    assert (use.value, use.swapped_success, use.swapped_return) == (1.0, 0.0, 0.0)
    [line] = use.lines()
    assert line.startswith(f"Context use: 100.0% (success 100.0% with its own {key}, 0.0% with")


@GOALS
def test_deaf_agent_is_warned_about(env_id: str, key: str) -> None:
    with closing(make_env(env_id)) as env:
        use = measure(Scripted(False, key), env, key, episodes=200)
    assert use is not None
    assert abs(use.value) < 0.15
    _, warning = use.lines()
    assert warning.startswith(f"Warning: the agent ignores its {key}, or its success does not")


def test_context_is_swapped_throughout() -> None:
    """A recurrent core reads the swapped context from the first timestep to the last."""
    with closing(make_env("ToySearch-v0")) as env:
        for has_memory in (False, True):
            policy = Scripted(True, "desired_goal", has_memory)
            use = measure(policy, env, "desired_goal", episodes=16)
            assert use is not None
            # cut at the length of the longest own episode; its environment has reported nothing
            assert use.swapped[0].lengths.tolist() == [3] * use.swapped[0].n_episodes
            assert use.value == 1.0


def test_all_keys_are_swapped_together() -> None:
    with closing(make_env("ToySearch-v0")) as env:
        for key in ("desired_goal", "second_goal"):
            policy = Scripted(True, "desired_goal")
            use = measure(policy, env, "desired_goal", "second_goal", episodes=16)
            assert use is not None
            assert use.value == 1.0, key
            assert "its own desired_goal and second_goal" in use.lines()[0]


@pytest.mark.parametrize(("n_envs", "episodes"), [(1, 2), (4, 4), (3, 8), (8, 64), (8, 300)])
@pytest.mark.parametrize("listens", [True, False])
def test_swapping_costs_no_more_timesteps(n_envs: int, episodes: int, listens: bool) -> None:
    """The swapped episodes take no more timesteps and forward passes than the own ones."""
    policy = Scripted(listens, "desired_goal")
    contexts = RecordedContexts(("desired_goal",))
    with closing(make_env("ToySearch-v0", n_envs)) as env:
        SearchEnv.steps = 0
        own = evaluate(policy, env, episodes=episodes, seed=2, contexts=contexts)
        before = (SearchEnv.steps, policy.calls, policy.rows)
        use = evaluate_swapped(policy, env, own, contexts, episodes=64, seed=2)
    assert contexts.differ
    assert use is not None
    after = (SearchEnv.steps, policy.calls, policy.rows)
    assert all(both <= 2 * alone for both, alone in zip(after, before, strict=True))
    assert 1 <= use.swapped[0].n_episodes <= 64


def test_other_results_do_not_change() -> None:
    policy = Scripted(True, "desired_goal")
    with closing(make_env("ToySearch-v0")) as env:
        [before] = evaluate(policy, env, episodes=30, seed=5)
        use = measure(policy, env, "desired_goal", episodes=30)
        [after] = evaluate(policy, env, episodes=30, seed=5)
    assert use is not None
    assert before.lengths.tolist() == after.lengths.tolist()
    assert before.returns.tolist() == after.returns.tolist()


def test_global_generators_are_restored() -> None:
    class Drawing(Scripted):
        def predict(self, *arguments: Any) -> tuple[Any, Any]:
            np.random.random()  # noqa: NPY002
            return super().predict(*arguments)

    contexts = RecordedContexts(("desired_goal",))
    policy = Drawing(True, "desired_goal")
    with closing(make_env("ToyFlipGoal-v0")) as env:
        own = evaluate(policy, env, episodes=8, seed=0, contexts=contexts)
        before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        assert evaluate_swapped(policy, env, own, contexts, episodes=8, seed=0) is not None
        after = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    assert np.array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_equal_contexts_report_nothing() -> None:
    with closing(make_env("ToyFlipGoal-v0")) as env:
        assert measure(Scripted(False, "task"), env, "task", episodes=16) is None


# ---------------------------------------------------------------------------------------- partners


def swap(values: list[int], task_ids: list[int]) -> list[tuple[int, int]]:
    """Return the value and the task of the swapped context of each of some episodes."""
    obs = {"goal": np.array([[10 * t + v] for v, t in zip(values, task_ids, strict=True)])}
    everyone = np.arange(len(values))
    recorded = RecordedContexts(("goal",))
    recorded.update(obs, np.array(task_ids), everyone, everyone)
    if not recorded.differ:
        return []
    swapped = SwappedContexts(recorded, np.random.default_rng(0))
    goals = swapped.update(obs, np.array(task_ids), everyone, everyone)["goal"][:, 0]
    return [(int(goal) % 10, int(goal) // 10) for goal in goals]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12))
def test_every_episode_gets_another_context(episodes: list[tuple[int, int]]) -> None:
    partners = swap(*(list(column) for column in zip(*episodes, strict=True)))
    assert bool(partners) == (len(set(episodes)) > 1)
    for own, partner in zip(episodes, partners, strict=False):
        assert partner in episodes
        assert partner != own
        varies = any(value != own[0] for value, task in episodes if task == own[1])
        assert not varies or partner[1] == own[1]


def test_every_context_is_used_once() -> None:
    values = list(range(8))
    used = [value for value, _ in swap(values, [0] * 8)]
    assert len(set(used)) >= 7


# ----------------------------------------------------------------------------------------- warnings


def result(success: float | None, episodes: int, **bounds: float) -> TaskResult:
    """Return a result with a share of successes, each with a return of 1."""
    returns = (np.arange(episodes) < (success or 0) * episodes).astype(float)
    outcomes = None if success is None else returns > 0
    return TaskResult("flip", outcomes, returns, np.ones(episodes, int), **bounds)


def ignores(own: float, swapped: float, n_own: int = 1000, n: int = 64, **bounds: float) -> bool:
    use = ContextUse(
        ("goal",),
        [result(own, n_own, **bounds)],
        [result(swapped, n, **bounds)],
        has_scores=bool(bounds),
    )
    return use.ignores_context


@pytest.mark.parametrize(
    ("own", "swapped", "n", "expected"),
    [
        (1.0, 1.0, 64, True),
        (0.5, 0.5, 64, True),
        (0.25, 0.25, 256, True),
        (0.5, 0.55, 64, True),
        (1.0, 0.0, 64, False),
        (0.95, 0.8, 64, False),
        (0.6, 0.4, 64, False),
        (0.0, 0.0, 64, False),  # nothing learned yet
        (0.02, 0.02, 64, False),
        (1.0, 1.0, 2, False),  # too few to tell
        (0.5, 0.5, 8, False),
    ],
)
def test_warning_needs_evidence(own: float, swapped: float, n: int, expected: bool) -> None:
    assert ignores(own, swapped, n=n) is expected


def test_random_agent_is_not_warned() -> None:
    """An agent whose score is that of random actions has learned nothing to ask about."""
    assert not ignores(0.5, 0.5, score_low=0.5, score_high=1.0)
    assert ignores(0.5, 0.5, score_low=0.25, score_high=1.0)


def test_unknown_success_compares_scores() -> None:
    own = TaskResult("flip", None, np.tile([0.0, 1.0], 50), np.ones(100, int))
    swapped = TaskResult("flip", None, np.tile([0.0, 1.0], 50), np.ones(100, int))
    assert not ContextUse(("goal",), [own], [swapped], has_scores=False).ignores_context
    use = ContextUse(("goal",), [own], [swapped], has_scores=True)
    assert use.ignores_context
    assert use.lines()[0].startswith("Context use: 0.000 (return 0.500 with its own goal, 0.500")
    assert use.swapped_success is None


def test_summary_is_json() -> None:
    for success, n in ((0.5, 4), (None, 4), (None, 1)):
        use = ContextUse(("goal",), [result(success, 4)], [result(success, n)], has_scores=False)
        summary = json.loads(json.dumps(use.summary(), allow_nan=False))
        assert summary["criterion"] == ("return" if success is None else "success")
        assert (summary["interval"] is None) == (n == 1)
        assert len(use.lines()) == 1


# --------------------------------------------------------------------------------------------- runs


def final_evaluation(config: TrainConfig, **options: Any) -> RunEvaluation:
    evaluation = EvalConfig(run=config.run_dir, episodes=16, n_envs=4, device="cpu", **options)
    checkpoint = checkpoint_of(config.run_dir, "last")
    return evaluate_run(RunDirectory.open(config.run_dir), checkpoint, evaluation)


def assert_training_is_equal(build: Callable[..., TrainConfig]) -> TrainConfig:
    """Check that measuring the context use changes no weight and no other metric."""
    configs = [build(f"evaluation.context_use={on}", f"name=is_{on}") for on in ("true", "false")]
    for config in configs:
        train(config)
    measured, plain = (tensors_of(config.run_dir) for config in configs)
    assert measured.keys() == plain.keys()
    for name, tensor in measured.items():
        assert np.array_equal(tensor, plain[name]), name
    with_metrics, without = (metrics_of(config.run_dir) for config in configs)
    assert with_metrics[-1].keys() >= CONTEXT_METRICS
    for row in with_metrics:
        for name in CONTEXT_METRICS:
            assert bool(row.pop(name)) == bool(row["eval/return"])
    assert with_metrics == without
    return configs[0]


@pytest.mark.parametrize("kind", ["sac", "dqn"])
def test_off_policy_training_is_equal(tmp_path: Path, kind: str) -> None:
    def build(*words: str) -> TrainConfig:
        # an evaluation among the random actions that off-policy agents begin with
        short = ("total_timesteps=30", "evaluation.every=10")
        return tiny_off_policy(tmp_path, kind, *short, *words)

    config = assert_training_is_equal(build)
    evaluation = final_evaluation(config)
    assert evaluation.context_use is not None
    assert evaluation.context_use.keys == ("desired_goal",)


def build_own(folder: Path, tasks: str, *words: str) -> TrainConfig:
    """Compose a tiny recurrent agent for tasks of the user's own."""
    return compose_train(
        [
            "task.name=own",
            f"task.tasks=[{tasks}]",
            "import=text_envs",
            "agent=a2c",
            "agent.n_envs=4",
            "agent.n_steps=16",
            "encoder=vector",
            "encoder.features_dim=8",
            "context.dim=8",
            "memory=gru",
            "memory.size=8",
            "total_timesteps=128",
            "evaluation.every=64",
            "evaluation.episodes=8",
            "progress=false",
            "device=cpu",
            "precision=fp32",
            f"runs_dir={folder}",
            *words,
        ]
    )


SAYS = "{name: first, env_id: text_envs:TextSays-v0}"


def test_recurrent_training_is_equal(tmp_path: Path) -> None:
    """The same for a recurrent policy, two tasks and a combined context."""
    other = "{name: second, env_id: text_envs:TextSays-v0, kwargs: {texts: [go left, go right]}}"
    config = assert_training_is_equal(partial(build_own, tmp_path, f"{SAYS}, {other}"))
    evaluation = final_evaluation(config)
    assert evaluation.context_use is not None
    assert evaluation.context_use.keys == ("mission", "task")
    summary = json.loads(evaluation.files[0].read_text())["context_use"]
    assert [task["task"] for task in summary["swapped"]] == ["first", "second"]
    evaluation = final_evaluation(config, context_use=False)
    assert evaluation.context_use is None
    assert "context_use" not in json.loads(evaluation.files[0].read_text())


def test_single_context_logs_nothing(tmp_path: Path) -> None:
    only = "{name: only, env_id: text_envs:TextSays-v0, kwargs: {texts: [press left]}}"
    config = build_own(tmp_path, only, "total_timesteps=64")
    train(config)
    assert not CONTEXT_METRICS & metrics_of(config.run_dir)[-1].keys()
    evaluation = final_evaluation(config)
    assert evaluation.context_use is None
    assert "context_use" not in json.loads(evaluation.files[0].read_text())
