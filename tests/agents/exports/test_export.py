"""An exported program runs without MIRL and computes what the policy computes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_setup import export_at, start_run

from mirl.agents import export, load_policy
from mirl.agents.builder import build_agent
from mirl.agents.export import Export, find_context, short_name
from mirl.agents.runs.run import Run
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.networks import GoalContextConfig
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.envs import SuiteVecEnv, tokenize
from mirl.policies import specialize

Build = Callable[..., TrainConfig]
SECOND_TASK = ("task=doors", "context=task_id", "name=tasks")
POPART = ("task=doors", "agent.popart=true", "name=popart")

RUN_ALONE = """
import sys, torch
arguments = iter(sys.argv[1:])
for path, batches, answers in zip(arguments, arguments, arguments):
    program = torch.export.load(path).module()
    torch.save([program(batch) for batch in torch.load(batches, weights_only=True)], answers)
imported = {name.split(".")[0] for name in sys.modules}
assert not imported & {"mirl", "stable_baselines3", "gymnasium"}
"""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny_in: Build) -> Callable[..., Path]:
    """``run_of(*words)``: a run with one checkpoint, whose random weights depend on the context."""
    folder = tmp_path_factory.mktemp("runs")
    made: dict[tuple[str, ...], Path] = {}

    def build(*words: str) -> Path:
        if words not in made:
            run = start_run(tiny_in(folder, *words))
            config = run.config
            env = SuiteVecEnv(config.task, config.agent.n_envs, backend=config.backend)
            try:
                agent = build_agent(config, env)
                with torch.no_grad():
                    for weight in agent.policy.parameters():
                        weight.add_(0.1 * torch.randn_like(weight))
                run.save_checkpoint(agent, score=1.0)
            finally:
                env.close()
            made[words] = config.run_dir
        return made[words]

    return build


def description_of(export: Export) -> Any:
    return json.loads(export.path.with_suffix(".json").read_text())


CASES: dict[str, tuple[tuple[str, ...], str, Any]] = {
    "mission": ((), "go to the red door", tokenize("go to the red door")),
    "task": (SECOND_TASK, "goto_door_6x6", 1),
    "popart": (POPART, "go to the red door", tokenize("go to the red door")),
}


@pytest.fixture(scope="module")
def answers(
    run_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[Any], list[Any]]]:
    """Return the run of each case, batches of observations, and what its program answers.

    One process without MIRL runs all programs.
    """
    folder = tmp_path_factory.mktemp("alone")
    argv = [sys.executable, "-c", RUN_ALONE]
    played: dict[str, tuple[Path, list[Any]]] = {}
    for case, (words, name, _) in CASES.items():
        run = run_of(*words)
        export = export_at(EvalConfig(run=run, export=name))
        batches = batches_of(run)
        inputs = list(description_of(export)["inputs"])
        tensors = [{key: torch.from_numpy(batch[key]) for key in inputs} for batch in batches]
        torch.save(tensors, folder / f"{case}.in")
        argv += [str(export.path), str(folder / f"{case}.in"), str(folder / f"{case}.out")]
        played[case] = (run, batches)
    subprocess.run(argv, cwd=folder, check=True, timeout=600)
    results: dict[str, tuple[Path, list[Any], list[Any]]] = {}
    for case, (run, batches) in played.items():
        results[case] = (run, batches, torch.load(folder / f"{case}.out", weights_only=True))
    return results


def batches_of(run: Path) -> list[dict[str, Any]]:
    """Return batches of 1, 3 and 8 observations of a run's environments."""
    env = SuiteVecEnv(Run.open(run).config.task, 8, seed=1, seed_split="test")
    try:
        env.reset()
        played = [env.step(np.full(8, action))[0] for action in (2, 0, 1)]
    finally:
        env.close()
    batches: list[dict[str, Any]] = []
    for observations, size in zip(played, (1, 3, 8), strict=True):
        batches.append({key: array[:size] for key, array in observations.items()})
    return batches


@pytest.mark.parametrize("case", CASES)
def test_program_equals_policy_without_mirl(
    answers: dict[str, tuple[Path, list[Any], list[Any]]], case: str
) -> None:
    """A program runs without MIRL and computes what the policy computes."""
    run, batches, outputs = answers[case]
    _, _, context = CASES[case]
    policy = load_policy(run, device="cpu")
    key = Run.open(run).config.context.key
    for batch, (logits, values) in zip(batches, outputs, strict=True):
        # the task whose value the program gives, where no context overrules
        batch["task"] = np.zeros(len(values), np.int64)
        batch[key] = np.stack([np.asarray(context)] * len(values))
        general, _ = policy.obs_to_tensor(batch)
        with torch.no_grad():
            expected = policy.get_distribution(general).distribution.logits  # type: ignore[union-attr]
            torch.testing.assert_close(values, policy.predict_values(general), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=1e-5, atol=1e-6)


def test_description_lists_inputs_and_outputs(run_of: Callable[..., Path]) -> None:
    """The JSON file describes the inputs and outputs of the program."""
    run = run_of()
    export = export_at(EvalConfig(run=run, export="go to the red door"))
    assert export.path == run / "exports" / "go-to-the-red-door.pt2"
    assert export.parameters < export.policy_parameters
    assert 0 <= export.difference < 1e-5
    assert description_of(export) == {
        "mission": "go to the red door",
        "run": run.name,
        "checkpoint": "step_000000000",
        "inputs": {
            "image": {"shape": ["batch", 7, 7, 3], "dtype": "uint8"},
            "direction": {"shape": ["batch"], "dtype": "int64"},
        },
        "outputs": {
            "action_logits": {"shape": ["batch", 7], "dtype": "float32"},
            "value": {"shape": ["batch", 1], "dtype": "float32"},
        },
        "action_space": "Discrete(7)",
        "parameters": export.parameters,
        "max_abs_difference": export.difference,
        "torch": torch.__version__,
    }


def test_description_names_task_of_value(run_of: Callable[..., Path]) -> None:
    """With PopArt, the JSON file names the task whose value the program computes."""
    for_mission = export_at(EvalConfig(run=run_of(*POPART), export="go to the red door"))
    assert description_of(for_mission)["value_of_task"] == "goto_door_5x5"
    for_task = export_at(
        EvalConfig(
            run=run_of(*SECOND_TASK, "agent.popart=true", "name=both"), export="goto_door_8x8"
        )
    )
    assert "value_of_task" not in description_of(for_task)


def test_masked_logits_must_be_equal() -> None:
    """Masked logits are left out of the scale, and must be equal."""
    lowest = torch.finfo(torch.float32).min
    theirs, value = torch.tensor([[1.0, lowest]]), torch.zeros(1, 1)
    assert export.checked_difference((theirs, value), (theirs, value)) == 0
    for wrong in (torch.tensor([[1.01, lowest]]), torch.tensor([[1.0, 2.0]])):
        with pytest.raises(ConfigError):
            export.checked_difference((wrong, value), (theirs, value))


def test_unknown_words_are_no_mission(run_of: Callable[..., Path]) -> None:
    """A mission with words that the agent does not know, such as a file name, is an error."""
    for name, unknown in (("policy.pt2", "policy, pt2"), ("go to the redd door", "redd")):
        with pytest.raises(ConfigError, match=f"does not know {unknown}"):
            export_at(EvalConfig(run=run_of(), export=name))


def test_any_known_words_are_a_mission(run_of: Callable[..., Path]) -> None:
    """A mission that no task uses is exported if its words are known."""
    name = "put the red door next to the door, then go " * 6
    export = export_at(EvalConfig(run=run_of(), export=name))
    assert export.path.is_file()
    assert description_of(export)["mission"] == name


def test_differing_program_is_not_written(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program whose outputs differ from the policy's is not written."""
    run = run_of()
    before = sorted(run.rglob("*"))
    other = tokenize("go to the red door")
    monkeypatch.setattr(export, "specialize", lambda policy, _: specialize(policy, other))
    with pytest.raises(ConfigError, match=r"differ from the policy's by .*; nothing was written"):
        export_at(EvalConfig(run=run, export="go to the blue door"))
    assert sorted(run.rglob("*")) == before


def test_tolerance_scales_with_outputs() -> None:
    """The tolerance is relative to the largest output."""
    ours, theirs = torch.tensor([[3000.01]]), torch.tensor([[3000.0]])
    assert export.checked_difference((ours,), (theirs,)) == pytest.approx(0.01, rel=0.05)
    for wrong in (theirs / 3000 + 0.001, torch.tensor([[float("nan")]])):
        with pytest.raises(ConfigError):
            export.checked_difference((theirs / 3000, wrong), (theirs / 3000, theirs / 3000))


def test_unknown_task_names_nearest() -> None:
    training = compose_train([*SECOND_TASK])
    assert find_context("goto_door_6x6", training.context, training.task) == 1
    with pytest.raises(
        ConfigError, match=r"unknown task 'goto_dor_6x6'\. Did you mean 'goto_door_6x6'"
    ):
        find_context("goto_dor_6x6", training.context, training.task)


def test_goals_cannot_be_named() -> None:
    """A goal has no name; the error says what to use instead."""
    with pytest.raises(
        ConfigError,
        match=r"is a goal, which has no name; .* mirl.policies.specialize\(policy, goal\)",
    ):
        find_context("2, 3", GoalContextConfig(), compose_train([]).task)


def test_file_names_are_short_and_distinct() -> None:
    """File names are plain, short and distinct."""
    long = "go to the red door, then " * 10
    names = [
        "go to the red door",
        "goto_door",
        "a/b",
        "a-b",
        "../x",
        long,
        long + "stop",
        "去红门",
        "去蓝门",
        "\udcff",
    ]
    files = [short_name(name) for name in names]
    assert files[:2] == ["go-to-the-red-door", "goto_door"]
    assert len({*files}) == len(names)
    assert all(len(file) <= 100 and "/" not in file and file.isascii() for file in files)
