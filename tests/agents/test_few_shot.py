"""Few-shot adaptation: its parameters, its start, its amount of practice, and its report."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from run_setup import adapt_at, start_run
from torch import Tensor

from mirl import eval as eval_command
from mirl.agents import evaluate, few_shot, load_policy, train
from mirl.agents.builder import build_agent
from mirl.agents.few_shot import CurvePoint, ShiftedContext, adaptation_tasks, curve_table
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult
from mirl.configs.compose import compose_train, parse_flat
from mirl.configs.errors import ConfigError
from mirl.configs.networks import (
    CombinedContextConfig,
    GoalContextConfig,
    MissionContextConfig,
    TaskIdContextConfig,
)
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.envs import SuiteVecEnv, mission_space, tokenize
from mirl.policies.contexts import MissionContext, TaskIdContext, build_context
from mirl.policies.features import unique_rows

ROLLOUT = few_shot.N_ENVS * few_shot.N_STEPS
"""Timesteps of a rollout."""
close = torch.testing.assert_close
Build = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_in: Build) -> dict[str, Path]:
    """Train three runs.

    ``rooms`` has task ids and holds out a task, ``all`` has task ids and holds out none, and the
    context of ``mission`` is the mission.
    """
    folder = tmp_path_factory.mktemp("runs")
    doors = ("task=doors", "context=task_id")
    words = {
        "rooms": (*doors, "split.name=rooms", "split.tasks=[goto_door_8x8]", "agent.popart=true"),
        "all": doors,
        "mission": ("task=goto_local",),
    }
    for name, own in words.items():
        train(tiny_in(folder, f"name={name}", "fusion=film", "total_timesteps=256", *own))
    return {name: folder / name for name in words}


def options(run: Path, **given: Any) -> EvalConfig:
    """Return options with a few test episodes per point."""
    shared: dict[str, Any] = {
        "run": run,
        "checkpoint": "last",
        "episodes": 6,
        "n_envs": 3,
        "device": "cpu",
    }
    return EvalConfig(**{**shared, "adapt": "context", "adapt_episodes": (8,), **given})


def curves_of(config: EvalConfig) -> dict[str, list[CurvePoint]]:
    return {adaptation.task: adaptation.curve for adaptation in adapt_at(config)}


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Tensor]]]:
    """Record the agents that adapt during the test, each with a copy of its first weights."""
    recorded: list[tuple[Any, dict[str, Tensor]]] = []
    load = few_shot._load

    def record(*arguments: Any) -> Any:
        agent = load(*arguments)
        recorded.append(
            (agent, {name: value.clone() for name, value in agent.policy.state_dict().items()})
        )
        return agent

    monkeypatch.setattr(few_shot, "_load", record)
    return recorded


def changed(agent: Any, start: dict[str, Tensor]) -> set[str]:
    return {
        name
        for name, value in agent.policy.state_dict().items()
        if not torch.equal(value, start[name])
    }


# ------------------------------------------------------------------------------- tuned parameters


@pytest.mark.parametrize(("run", "task"), [("rooms", ""), ("mission", "goto_door")])
def test_context_adaptation_changes_only_offset(
    runs: dict[str, Path], agents: list[Any], run: str, task: str
) -> None:
    """Adaptation by context changes nothing but the offset."""
    curves_of(options(runs[run], task=task))
    [(agent, start)] = agents
    deltas = {name for name in start if name.endswith("context.delta")}
    assert changed(agent, start) == deltas
    assert deltas
    for module in agent.policy.modules():
        if isinstance(module, ShiftedContext):
            assert module.delta.grad is not None
            assert (module.delta.grad != 0).any()


def test_network_adaptation_changes_all_parts(runs: dict[str, Path], agents: list[Any]) -> None:
    """Adaptation by network changes the weights of every part, and the offset."""
    curves_of(options(runs["rooms"], adapt="network"))
    [(agent, start)] = agents
    moved = changed(agent, start)
    assert any(name.endswith("context.delta") for name in moved)
    for part in ("encoder", "context.encoder", "mlp_extractor", "action_net", "value_net"):
        assert any(f"{part}." in name for name in moved), part


@pytest.mark.parametrize("mode", ["context", "network"])
def test_adaptation_starts_from_checkpoint(
    runs: dict[str, Path], agents: list[Any], mode: str
) -> None:
    """Adaptation starts from the weights of the checkpoint."""
    config = options(runs["rooms"], adapt=mode)
    curves_of(config)
    [(_, start)] = agents
    policy = load_policy(config.run, "last", "cpu")
    weights = policy.state_dict()
    own = {
        name.replace("context.encoder.", "context."): value
        for name, value in start.items()
        if "delta" not in name
    }
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], weights[name]) for name in own)


def test_learning_rates_of_both_modes(runs: dict[str, Path], agents: list[Any]) -> None:
    """The offset has its own learning rate, the network that of its training."""
    for mode in ("context", "network"):
        curves_of(options(runs["rooms"], adapt=mode))
    rates = [agent.policy.optimizer.param_groups[0]["lr"] for agent, _ in agents]
    training_rate = RunDirectory.open(runs["rooms"]).config.agent.learning_rate
    assert rates == [few_shot.CONTEXT_RATE, training_rate]
    assert rates[1] != few_shot.CONTEXT_RATE


# -------------------------------------------------------------------------------------------- start


def test_both_modes_start_equal(runs: dict[str, Path]) -> None:
    """Before practice, both modes play the same episodes."""
    first, second = (
        curves_of(options(runs["rooms"], adapt=mode, episodes=24, n_envs=8))["goto_door_8x8"]
        for mode in ("context", "network")
    )
    assert (first[0].episodes, first[0].timesteps) == (0, 0)
    np.testing.assert_array_equal(first[0].result.lengths, second[0].result.lengths)
    np.testing.assert_array_equal(first[0].result.returns, second[0].result.returns)


def test_mission_policy_starts_as_trained(runs: dict[str, Path]) -> None:
    """Before practice, a policy whose context is the mission plays as it was trained."""
    config = options(runs["mission"], task="goto_door", episodes=24, n_envs=8)
    [start, _] = curves_of(config)["goto_door"]
    suite = compose_train(["task=goto_door"]).task
    with closing(SuiteVecEnv(suite, 8, seed_split="test")) as env:
        policy = load_policy(config.run, "last", "cpu")
        [plain] = evaluate(policy, env, episodes=24, seed=config.seed)
    np.testing.assert_array_equal(start.result.lengths, plain.lengths)
    np.testing.assert_array_equal(start.result.returns, plain.returns)


def test_new_task_starts_from_mean_context() -> None:
    """A task that was not trained starts from the mean of the trained contexts."""
    space = spaces.Dict({"task": spaces.Discrete(4)})
    encoder = TaskIdContext(space, TaskIdContextConfig(hidden=(5,), dim=6))
    observations = {"task": torch.eye(4)[[1, 1]]}
    untrained = encoder(observations).per_row()
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
    given = shifted(observations).per_row()
    close(given, expected.expand(2, 6))
    assert not torch.equal(given[0], untrained[0] + shifted.delta)


def test_offset_leaves_padding_zero() -> None:
    """The offset moves the words of a text, not the zeros behind the last one."""
    space = spaces.Dict(mission=mission_space())
    shifted = ShiftedContext(MissionContext(space, MissionContextConfig(dim=8)), [0])
    texts = np.stack([tokenize("go to the red ball"), tokenize("go")])
    observations = {"mission": torch.from_numpy(texts)}
    before = shifted(observations).ungrouped().words
    with torch.no_grad():
        shifted.delta.fill_(0.5)
    after = shifted(observations).ungrouped().words
    close(after[0], before[0] + 0.5)
    close(after[1, 0], before[1, 0] + 0.5)
    assert not after[1, 1:].any()


def test_joined_task_starts_from_mean_context() -> None:
    """The mean takes the place of the task id in a joined context, too."""
    space = spaces.Dict(
        {"task": spaces.Discrete(3), "desired_goal": spaces.Box(-1, 1, (2,), np.float32)}
    )
    config = CombinedContextConfig(
        parts=(TaskIdContextConfig(hidden=(), dim=6), GoalContextConfig(dim=4)), dim=5
    )
    encoder = build_context(config, space)
    goal = torch.randn(2, 2)
    [_, of_goal] = encoder.get_submodule("parts")
    mean_id = torch.tensor([0.5, 0.0, 0.5]).expand(2, 3)
    joined = torch.cat([mean_id, of_goal({"desired_goal": goal}).per_row()], dim=1)
    expected = encoder.get_submodule("join")(joined).relu()
    shifted = ShiftedContext(encoder, [0, 2])
    given = shifted({"task": torch.eye(3)[[1, 1]], "desired_goal": goal}).per_row()
    close(given, expected)


def test_mean_is_over_trained_tasks(runs: dict[str, Path], agents: list[Any]) -> None:
    """The mean is over the tasks that the run trained."""
    curves_of(options(runs["rooms"]))
    curves_of(options(runs["all"], task="goto_obj"))
    trained = [
        [
            module.average_over
            for module in agent.policy.modules()
            if isinstance(module, TaskIdContext)
        ]
        for agent, _ in agents
    ]
    assert trained == [[[0, 1]], [[0, 1, 2]]]


def test_offset_is_added_to_each_mission() -> None:
    """The offset is added to the context of each mission."""
    space = spaces.Dict({"mission": mission_space()})
    encoder = MissionContext(space, MissionContextConfig(dim=8))
    shifted = ShiftedContext(encoder, [0])
    with torch.no_grad():
        shifted.delta.copy_(torch.randn(8))
    texts = ("go to the red door", "go to the blue ball", "go to the red door")
    tokens = torch.as_tensor(np.stack([tokenize(text) for text in texts]))
    for observed in ({"mission": tokens.float()}, {"mission": unique_rows(tokens.long())}):
        close(shifted(observed).per_row(), encoder(observed).per_row() + shifted.delta)
    assert not torch.equal(*shifted({"mission": tokens.float()}).per_row()[:2])


# ----------------------------------------------------------------------------------------- practice


def test_points_have_requested_practice(runs: dict[str, Path]) -> None:
    """Each point comes after at least as many episodes as requested."""
    [curve] = curves_of(options(runs["rooms"], adapt_episodes=(1, 40, 400))).values()
    practiced = [point.episodes for point in curve]
    assert practiced[0] == 0
    for episodes, asked in zip(practiced[1:], (1, 40, 400), strict=True):
        assert episodes >= asked
    assert practiced == sorted(practiced)
    timesteps = [point.timesteps for point in curve]
    assert timesteps[0] == 0
    assert timesteps[1] == ROLLOUT, "a first episode needs no second rollout"
    assert timesteps == sorted(timesteps)
    assert all(steps % ROLLOUT == 0 for steps in timesteps)
    assert all(len(point.result.success) == 6 for point in curve)


def test_default_tasks_are_held_out_tasks(tiny: Build) -> None:
    """If no task is named, the tasks that the run held out are practiced."""
    config = tiny(
        "task=doors",
        "context=task_id",
        "split.name=two",
        "split.tasks=[goto_door_8x8, goto_door_5x5]",
    )
    found = adaptation_tasks(config, "")
    assert [task.name for _, task in found] == ["goto_door_5x5", "goto_door_8x8"]
    assert all(suite == config.task for suite, _ in found)


def test_only_one_task_is_practiced(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the task itself is practiced and tested."""
    seen = set[tuple[str, str]]()
    step_wait = SuiteVecEnv.step_wait

    def recorded(env: SuiteVecEnv) -> Any:
        seen.update((env.seed_split, env.suite.tasks[task].env_id) for task in env.task_index)
        return step_wait(env)

    monkeypatch.setattr(SuiteVecEnv, "step_wait", recorded)
    curves_of(options(runs["rooms"]))
    assert seen == {("train", "MiniGrid-GoToDoor-8x8-v0"), ("test", "MiniGrid-GoToDoor-8x8-v0")}
    seen.clear()
    curves_of(options(runs["all"], task="goto_obj"))
    assert seen == {("train", "BabyAI-GoToObj-v0"), ("test", "BabyAI-GoToObj-v0")}


@pytest.mark.parametrize(("given", "limit"), [({}, 20), ({"max_steps": 7}, 7)])
def test_limit_is_that_of_run(runs: dict[str, Path], given: dict[str, int], limit: int) -> None:
    """Episodes are as long as in an evaluation of the run, if no other limit is given."""
    assert RunDirectory.open(runs["mission"]).config.evaluation.max_steps == 20
    [curve] = curves_of(options(runs["mission"], task="goto_local", **given)).values()
    assert max(point.result.lengths.max() for point in curve) == limit


def test_known_task_keeps_its_index(runs: dict[str, Path]) -> None:
    """A named task that the run trained keeps its index in the suite."""
    training = RunDirectory.open(runs["all"]).config
    [(suite, task)] = adaptation_tasks(training, "goto_door_6x6")
    assert [each.name for each in suite.tasks] == [each.name for each in training.task.tasks]
    assert suite.tasks[1] == task
    assert curves_of(options(runs["all"], task="goto_door_6x6", episodes=2)).keys() == {
        "goto_door_6x6"
    }


# ------------------------------------------------------------------------------------------- report


def test_curve_is_written(runs: dict[str, Path]) -> None:
    [(name, curve, path)] = adapt_at(options(runs["rooms"], adapt_episodes=(8, 100), seed=3))
    assert (
        path == runs["rooms"] / "eval" / "adapt-goto_door_8x8-context-step_000000256-seed3-6ep.json"
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


def test_table_has_row_per_point(runs: dict[str, Path]) -> None:
    [curve] = curves_of(options(runs["rooms"])).values()
    columns = [list(column.cells) for column in curve_table(curve, "title").columns]
    assert columns[0] == [f"{point.episodes:,}" for point in curve]
    assert columns[2] == [f"{point.result.success_rate:.1%}" for point in curve]


def test_curve_table_shows_dash() -> None:
    """The table of a curve with unknown success shows neither a rate nor an interval."""
    result = TaskResult("own", None, np.full(2, -5.0), np.full(2, 5))
    columns = [list(column.cells) for column in curve_table([CurvePoint(0, 0, result)], "").columns]
    assert columns == [["0"], ["0"], ["–"], ["–"], ["-5.000"]]


def test_command_adapts_and_reports_file(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command adapts and reports the file that it wrote."""
    words = [
        "adapt=network",
        "adapt_episodes=4,64",
        "episodes=4",
        "n_envs=2",
        "checkpoint=last",
        "seed=7",
    ]
    monkeypatch.setenv("COLUMNS", "200")
    assert eval_command.run([f"run={runs['rooms']}", *words]) == 0
    output = capsys.readouterr().out
    path = runs["rooms"] / "eval" / "adapt-goto_door_8x8-network-step_000000256-seed7-4ep.json"
    title = "rooms, last checkpoint, practicing goto_door_8x8 by its network"
    assert title in " ".join(output.split())
    assert f"Written: {path}" in output
    assert len(json.loads(path.read_text())["curve"]) == 3


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapt=context", "adapt_episodes=64,16"], r"adapt_episodes must ascend, got \[64, 16\]"),
        (["adapt=context", "adapt_episodes=16,16"], r"adapt_episodes must ascend, got \[16, 16\]"),
        (["adapt=context", "adapt_episodes=0,16"], r"adapt_episodes\.0: .*greater than 0, got '0'"),
        (["task=goto_door", "export=x"], "task= and export= cannot be combined"),
        (["adapt=contxt"], "Did you mean 'context'"),
    ],
)
def test_invalid_options_are_rejected(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_flat(EvalConfig, ["run=runs/any", *words])


def test_no_task_to_adapt_to(runs: dict[str, Path]) -> None:
    """With no task named and none held out there is nothing to adapt to."""
    with pytest.raises(
        ConfigError, match=r"adapt= needs task=.*, because the run held out no task"
    ):
        curves_of(options(runs["all"]))


def test_unknown_task_names_nearest(runs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'goto_dor'.*Did you mean 'goto_door'"):
        curves_of(options(runs["all"], task="goto_dor"))


def test_off_policy_run_is_rejected(tmp_path: Path) -> None:
    words = ["agent=dqn", "agent.buffer_size=50", "task=MiniGrid-GoToDoor-5x5-v0", "device=cpu"]
    config = compose_train([*words, f"runs_dir={tmp_path}"])
    run = start_run(config)
    with closing(SuiteVecEnv(config.task, config.agent.n_envs)) as env:
        run.save_checkpoint(build_agent(run.config, env))
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
def test_other_spaces_are_rejected(
    runs: dict[str, Path], run: str, task: str, message: str
) -> None:
    """A task with other spaces is rejected and writes nothing."""
    before = set((runs[run] / "eval").glob("*")) if (runs[run] / "eval").exists() else set()
    with pytest.raises(ConfigError, match=message):
        curves_of(options(runs[run], task=task))
    assert set((runs[run] / "eval").glob("*")) == before
