"""Few-shot adaptation: what it tunes, what it starts from, how much practice it gets, and what it writes down."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from mirl.agents import evaluate, load_policy, train
from mirl.agents import few_shot as adapting
from mirl.agents.few_shot import Point, ShiftedContext, adapt_run, adaptation_tasks, curve_table
from mirl.agents.runs.run import load_config, open_run
from mirl.configs.compose import compose_train, parse_flat
from mirl.configs.errors import ConfigError
from mirl.configs.networks import MissionContextConfig, TaskIdContextConfig
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.envs import SuiteVecEnv, mission_space, tokenize
from mirl.policies.contexts import MissionContext, TaskIdContext
from mirl.policies.features import unique_rows

ROOT = Path(__file__).parents[2]
PER_CALL = adapting.N_ENVS * adapting.N_STEPS
close = torch.testing.assert_close
Build = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_in: Build) -> dict[str, Path]:
    """Three trained runs: ``rooms`` withholds a task that is told by its number, ``all`` none, ``mission`` reads."""
    folder = tmp_path_factory.mktemp("runs")
    doors = ("task=doors", "context=task_id")
    words = {
        "rooms": (*doors, "split.name=rooms", "split.tasks=[goto_door_8x8]", "agent.popart=true"),
        "all": doors,
        "mission": ("task=goto_local",),
    }
    for name, own in words.items():
        train(tiny_in(folder, f"name={name}", "fusion=film", *own))
    return {name: folder / name for name in words}


def options(run: Path, **given: Any) -> EvalConfig:
    """A few unseen episodes of each point."""
    shared: dict[str, Any] = {
        "run": run,
        "checkpoint": "last",
        "episodes": 6,
        "n_envs": 3,
        "device": "cpu",
    }
    return EvalConfig(**{**shared, "adapt": "context", "adapt_episodes": (8,), **given})


def curves_of(config: EvalConfig) -> dict[str, list[Point]]:
    return {task: curve for task, curve, _ in adapt_run(config)}


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Tensor]]]:
    """The agents that adapt during the test, each with a copy of what it starts from."""
    noted: list[tuple[Any, dict[str, Tensor]]] = []
    load = adapting._load

    def note(*arguments: Any) -> Any:
        agent = load(*arguments)
        noted.append(
            (agent, {name: value.clone() for name, value in agent.policy.state_dict().items()})
        )
        return agent

    monkeypatch.setattr(adapting, "_load", note)
    return noted


def changed(agent: Any, start: dict[str, Tensor]) -> set[str]:
    return {
        name
        for name, value in agent.policy.state_dict().items()
        if not torch.equal(value, start[name])
    }


# -------------------------------------------------------------------------------------------------------- what is tuned


@pytest.mark.parametrize(("run", "task"), [("rooms", ""), ("mission", "goto_door")])
def test_by_context_nothing_but_the_offset_moves(
    runs: dict[str, Path], agents: list[Any], run: str, task: str
) -> None:
    curves_of(options(runs[run], task=task))
    [(agent, start)] = agents
    deltas = {name for name in start if name.endswith("context.delta")}
    assert changed(agent, start) == deltas
    assert deltas
    for module in agent.policy.modules():
        if isinstance(module, ShiftedContext):
            assert module.delta.grad is not None
            assert (module.delta.grad != 0).any()


def test_by_network_the_weights_move_with_the_offset(
    runs: dict[str, Path], agents: list[Any]
) -> None:
    curves_of(options(runs["rooms"], adapt="network"))
    [(agent, start)] = agents
    moved = changed(agent, start)
    assert any(name.endswith("context.delta") for name in moved)
    for part in ("encoder", "context.encoder", "mlp_extractor", "action_net", "value_net"):
        assert any(f"{part}." in name for name in moved), part


@pytest.mark.parametrize("mode", ["context", "network"])
def test_adaptation_starts_from_the_weights_of_the_checkpoint(
    runs: dict[str, Path], agents: list[Any], mode: str
) -> None:
    config = options(runs["rooms"], adapt=mode)
    curves_of(config)
    [(agent, start)] = agents
    policy, _ = load_policy(config.run, "last", agent.observation_space, agent.action_space, "cpu")
    weights = policy.state_dict()
    own = {
        name.replace("context.encoder.", "context."): value
        for name, value in start.items()
        if "delta" not in name
    }
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], weights[name]) for name in own)


def test_the_step_size_of_the_offset_is_its_own_and_that_of_the_network_its_trainings(
    runs: dict[str, Path], agents: list[Any]
) -> None:
    for mode in ("context", "network"):
        curves_of(options(runs["rooms"], adapt=mode))
    rates = [agent.policy.optimizer.param_groups[0]["lr"] for agent, _ in agents]
    assert rates == [adapting.CONTEXT_RATE, load_config(runs["rooms"]).agent.learning_rate]
    assert rates[1] != adapting.CONTEXT_RATE


# -------------------------------------------------------------------------------------------------- what it starts from


def test_before_practice_both_ways_play_the_same(runs: dict[str, Path]) -> None:
    first, second = (
        curves_of(options(runs["rooms"], adapt=mode, episodes=24, n_envs=8))["goto_door_8x8"]
        for mode in ("context", "network")
    )
    assert (first[0].episodes, first[0].timesteps) == (0, 0)
    np.testing.assert_array_equal(first[0].result.lengths, second[0].result.lengths)
    np.testing.assert_array_equal(first[0].result.returns, second[0].result.returns)


def test_before_practice_a_policy_that_reads_missions_plays_as_it_was_trained(
    runs: dict[str, Path],
) -> None:
    config = options(runs["mission"], task="goto_door", episodes=24, n_envs=8)
    [start, _] = curves_of(config)["goto_door"]
    suite = compose_train(["task=goto_door"]).task
    with closing(SuiteVecEnv(suite, 8, seed_split="test")) as env:
        policy, _ = load_policy(config.run, "last", env.observation_space, env.action_space, "cpu")
        [plain] = evaluate(policy, env, episodes=24, seed=config.seed)
    np.testing.assert_array_equal(start.result.lengths, plain.lengths)
    np.testing.assert_array_equal(start.result.returns, plain.returns)


def test_an_unseen_task_starts_from_the_mean_of_the_trained_contexts() -> None:
    encoder = TaskIdContext(spaces.Discrete(4), TaskIdContextConfig(hidden=(5,), dim=6))
    shifted = ShiftedContext(encoder, [0, 2, 3])
    with torch.no_grad():
        shifted.delta.copy_(torch.randn(6))
    first, last = encoder.mlp[0], encoder.mlp[2]
    contexts = [
        (
            last.weight @ (first.weight[:, task] + first.bias).relu() + last.bias
        ).relu()  # of a one-hot task, by hand
        for task in (0, 2, 3)
    ]
    expected = (contexts[0] + contexts[1] + contexts[2]) / 3 + shifted.delta
    given = shifted(torch.eye(4)[[1, 1]]).per_row()
    close(given, expected.expand(2, 6))
    assert not torch.equal(given[0], encoder(torch.eye(4)[[1]]).per_row()[0])


def test_a_run_takes_the_mean_over_its_trained_tasks(
    runs: dict[str, Path], agents: list[Any]
) -> None:
    curves_of(options(runs["rooms"]))
    curves_of(options(runs["all"], task="goto_obj"))
    trained = [
        [module.trained for module in agent.policy.modules() if isinstance(module, ShiftedContext)]
        for agent, _ in agents
    ]
    assert trained == [[[0, 1]], [[0, 1, 2]]]


def test_the_offset_is_added_to_the_context_of_each_mission() -> None:
    encoder = MissionContext(mission_space(), MissionContextConfig(dim=8))
    shifted = ShiftedContext(encoder, [0])
    with torch.no_grad():
        shifted.delta.copy_(torch.randn(8))
    texts = ("go to the red door", "go to the blue ball", "go to the red door")
    tokens = torch.as_tensor(np.stack([tokenize(text) for text in texts]))
    for observed in (tokens.float(), unique_rows(tokens.long())):
        close(shifted(observed).per_row(), encoder(observed).per_row() + shifted.delta)
    assert not torch.equal(*shifted(tokens.float()).per_row()[:2])


# ---------------------------------------------------------------------------------------------------- how much practice


def test_each_point_has_had_the_practice_asked_for(runs: dict[str, Path]) -> None:
    [curve] = curves_of(options(runs["rooms"], adapt_episodes=(1, 40, 400))).values()
    practiced = [point.episodes for point in curve]
    assert practiced[0] == 0
    for episodes, asked in zip(practiced[1:], (1, 40, 400), strict=True):
        assert episodes >= asked
    assert practiced == sorted(practiced)
    timesteps = [point.timesteps for point in curve]
    assert timesteps[0] == 0
    assert timesteps[1] == PER_CALL, "a first episode needs no second rollout"
    assert timesteps == sorted(timesteps)
    assert all(steps % PER_CALL == 0 for steps in timesteps)
    assert all(len(point.result.success) == 6 for point in curve)


def test_what_the_split_withheld_is_practised_when_no_task_is_named(tiny: Build) -> None:
    config = tiny(
        "task=doors",
        "context=task_id",
        "split.name=two",
        "split.tasks=[goto_door_8x8, goto_door_5x5]",
    )
    found = adaptation_tasks(config, "")
    assert [task.name for _, task in found] == ["goto_door_5x5", "goto_door_8x8"]
    assert all(suite == config.task for suite, _ in found)


def test_only_the_task_is_practised(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[tuple[str, str]]()
    step_wait = SuiteVecEnv.step_wait

    def noted(env: SuiteVecEnv) -> Any:
        seen.update((env.split, env.suite.tasks[task].env_id) for task in env.task_index)
        return step_wait(env)

    monkeypatch.setattr(SuiteVecEnv, "step_wait", noted)
    curves_of(options(runs["rooms"]))
    assert seen == {("train", "MiniGrid-GoToDoor-8x8-v0"), ("test", "MiniGrid-GoToDoor-8x8-v0")}
    seen.clear()
    curves_of(options(runs["all"], task="goto_obj"))
    assert seen == {("train", "BabyAI-GoToObj-v0"), ("test", "BabyAI-GoToObj-v0")}


def test_a_named_task_that_the_run_has_keeps_its_place(runs: dict[str, Path]) -> None:
    training = load_config(runs["all"])
    [(suite, task)] = adaptation_tasks(training, "goto_door_6x6")
    assert [each.name for each in suite.tasks] == [each.name for each in training.task.tasks]
    assert suite.tasks[1] == task
    assert curves_of(options(runs["all"], task="goto_door_6x6", episodes=2)).keys() == {
        "goto_door_6x6"
    }


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_curve_is_written_down(runs: dict[str, Path]) -> None:
    [(name, curve, path)] = adapt_run(options(runs["rooms"], adapt_episodes=(8, 100), seed=3))
    assert (
        path == runs["rooms"] / "eval" / "adapt-goto_door_8x8-context-step_000000512-seed3-6ep.json"
    )
    report = json.loads(path.read_text())
    assert (name, report["task"]["name"], report["adapt"]) == (
        "goto_door_8x8",
        "goto_door_8x8",
        "context",
    )
    assert report["task"]["env_id"] == "MiniGrid-GoToDoor-8x8-v0"
    assert [point["practiced"] for point in report["curve"]] == [point.episodes for point in curve]
    assert [point["timesteps"] for point in report["curve"]] == [point.timesteps for point in curve]
    for written, point in zip(report["curve"], curve, strict=True):
        assert point.result.summary().items() <= written.items()


def test_the_table_has_a_row_per_point(runs: dict[str, Path]) -> None:
    [curve] = curves_of(options(runs["rooms"])).values()
    columns = [list(column.cells) for column in curve_table(curve, "title").columns]
    assert columns[0] == [f"{point.episodes:,}" for point in curve]
    assert columns[2] == [f"{point.result.success_rate:.1%}" for point in curve]


def test_the_command_adapts_and_says_where_it_wrote(runs: dict[str, Path]) -> None:
    words = [
        "adapt=network",
        "adapt_episodes=4,64",
        "episodes=4",
        "n_envs=2",
        "checkpoint=last",
        "seed=7",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), f"run={runs['rooms']}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    path = runs["rooms"] / "eval" / "adapt-goto_door_8x8-network-step_000000512-seed7-4ep.json"
    assert "rooms, last checkpoint, practicing goto_door_8x8 by its network" in " ".join(
        done.stdout.split()
    )
    assert f"Written: {path}" in done.stdout
    assert len(json.loads(path.read_text())["curve"]) == 3


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapt=context", "adapt_episodes=64,16"], r"adapt_episodes must ascend, got \[64, 16\]"),
        (["adapt=context", "adapt_episodes=16,16"], r"adapt_episodes must ascend, got \[16, 16\]"),
        (["adapt=context", "adapt_episodes=0,16"], r"adapt_episodes\.0: .*greater than 0, got '0'"),
        (["task=goto_door"], "task= is what to adapt to; it needs adapt=context or adapt=network"),
        (["adapt=contxt"], "Did you mean 'context'"),
    ],
)
def test_options_that_do_not_fit_are_a_message(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_flat(EvalConfig, ["run=runs/any", *words])


def test_with_no_task_named_and_none_withheld_there_is_nothing_to_adapt_to(
    runs: dict[str, Path],
) -> None:
    with pytest.raises(
        ConfigError, match=r"adapt= needs task=.*: the run's split withheld no task"
    ):
        curves_of(options(runs["all"]))


def test_an_unknown_task_names_the_nearest(runs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'goto_dor'.*Did you mean 'goto_door'"):
        curves_of(options(runs["all"], task="goto_dor"))


def test_an_off_policy_run_cannot_be_adapted(tmp_path: Path) -> None:
    config = compose_train(["agent=dqn", "task=MiniGrid-GoToDoor-5x5-v0", f"runs_dir={tmp_path}"])
    open_run(config)
    with pytest.raises(ConfigError, match="practices with PPO or A2C, and this run's agent is dqn"):
        curves_of(options(config.run_dir, task="goto_door"))
    assert not (config.run_dir / "eval").exists()


@pytest.mark.parametrize(
    ("run", "task", "message"),
    [
        ("all", "MIRL/ReachCell-v0", "tasks of one suite must share their spaces"),
        ("mission", "MIRL/ReachCell-v0", "the observation has no key 'mission'"),
        (
            "mission",
            "MiniGrid-Dynamic-Obstacles-5x5-v0",
            "does not hold the weights of this policy",
        ),
    ],
)
def test_a_task_with_other_spaces_is_a_message(
    runs: dict[str, Path], run: str, task: str, message: str
) -> None:
    before = set((runs[run] / "eval").glob("*")) if (runs[run] / "eval").exists() else set()
    with pytest.raises(ConfigError, match=message):
        curves_of(options(runs[run], task=task))
    assert set((runs[run] / "eval").glob("*")) == before
