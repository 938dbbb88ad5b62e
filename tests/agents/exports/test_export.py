"""Exported files, in both formats, choose the actions that the policy chooses."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_setup import export_at

from mirl.agents import load_policy
from mirl.agents.exports import export as export_module
from mirl.agents.exports.export import Export
from mirl.agents.exports.target import find_context
from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.errors import ConfigError
from mirl.configs.schema import EvalConfig
from mirl.envs import SuiteVecEnv, choose_backend, tokenize
from mirl.envs.suite_spaces import suite_spaces
from mirl.policies.programs import build_program

Arrays = dict[str, np.ndarray]
Runs = Callable[..., Path]

ROOT = Path(__file__).parents[3]
SECOND_TASK = ("task=doors", "context=task_id", "name=tasks")
POPART = ("task=doors", "agent.popart=true", "name=popart")
MEMORY = ("memory.size=8", "memory.normalize=true")
MISSION = "go to the red door"
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "mission": ((), "policy.onnx"),
    "mission in pt2": ((), "policy.pt2"),
    "one mission": ((), f"{MISSION}.onnx"),
    "tasks": (SECOND_TASK, "policy.onnx"),
    "popart": (POPART, f"{MISSION}.pt2"),
    "lstm": (("memory=lstm", *MEMORY, "name=lstm"), "policy.onnx"),
    "gru in pt2": (("memory=gru", *MEMORY, "name=gru"), "policy.pt2"),
    "mi_lstm": (("memory=mi_lstm", *MEMORY, "name=mi_lstm"), f"{MISSION}.onnx"),
    "fast weights": (("memory=fast_weights", "memory.size=8", "name=fast"), "policy.onnx"),
    "attention": (("memory=attention", "memory.size=8", "name=attention"), "policy.onnx"),
    "sac": (("sac",), "policy.onnx"),
    "td3": (("td3",), "policy.pt2"),
    "tqc": (("tqc",), "policy.onnx"),
    "dqn": (("dqn",), "policy.onnx"),
}
"""Words of a run, and what is exported."""
COSTLY = ("mission in pt2", "one mission", "tasks", "mi_lstm", "fast weights", "attention")
"""Cases that share their format and their inputs with others; tracing one takes torch 10 s."""


def description_of(export: Export) -> Any:
    return json.loads(export.path.with_name(f"{export.path.name}.json").read_text())


def loaded(path: Path) -> Callable[[Arrays], Arrays]:
    """Return the program of a file, by the library of its format alone."""
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(path))
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    program = torch.export.load(path).module()

    def run(inputs: Arrays) -> Arrays:
        outputs = program({key: torch.from_numpy(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in outputs.items()}

    return run


class Pair:
    """A file and its policy, which are given the same observations."""

    def __init__(self, export: Export, run_dir: Path) -> None:
        self.inputs = description_of(export)["inputs"]
        self.program = loaded(export.path)
        self.policy = load_policy(run_dir, device="cpu")
        self.state: np.ndarray | None = None
        self.policy_state: Any = None

    def actions(self, observations: Arrays, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        feed = {key: observations[key] for key in self.inputs if key in observations}
        if "hidden_state" in self.inputs:
            if self.state is None:
                size = self.inputs["hidden_state"]["shape"][1]
                self.state = np.zeros((len(starts), size), np.float32)
            feed |= {"hidden_state": self.state, "episode_start": starts}
        for key, value in feed.items():
            assert str(value.dtype) == self.inputs[key]["dtype"]
        outputs = self.program(feed)
        self.state = outputs.get("next_hidden_state")
        expected, self.policy_state = self.policy.predict(
            observations, self.policy_state, starts, deterministic=True
        )
        return outputs["action"], expected


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.exhaustive if case in COSTLY else ()) for case in CASES],
)
def test_file_equals_policy(run_of: Runs, case: str) -> None:
    """A file gives the policy's actions on 256 random observations and in whole episodes."""
    words, word = CASES[case]
    if word.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    run_dir = run_of(*words)
    config = RunDirectory.open(run_dir).config
    export = export_at(EvalConfig(run=run_dir, export=word))
    fixed: dict[str, Any] = {}
    if not word.startswith("policy"):
        fixed[config.context.key] = find_context(MISSION, config.context, config.task)
    space, _ = suite_spaces(config.task, choose_backend(config.task, config.backend))
    space.seed(1)
    samples = [space.sample() for _ in range(256)]
    random = {key: np.stack([np.asarray(each[key]) for each in samples]) for key in space}
    pair = Pair(export, run_dir)
    assert_equal(*pair.actions(random | repeated(fixed, 256), np.ones(256, np.bool_)))
    n_envs = len(config.task.tasks)
    pair = Pair(export, run_dir)
    starts = np.ones(n_envs, np.bool_)
    with closing(SuiteVecEnv(config.task, n_envs, seed=5, seed_split="test")) as env:
        observations = env.reset()
        for _ in range(64):
            observations = {**observations, **repeated(fixed, n_envs)}
            ours, expected = pair.actions(observations, starts)
            assert_equal(ours, expected)
            observations, _, starts, _ = env.step(ours)
            if starts.all():
                break
    check = description_of(export)["check"]
    assert check["observations"] == 256
    assert check["episodes"] >= 1
    assert check["episode_timesteps"] >= 256
    assert check["episode_equal_actions"] == 1


def repeated(fixed: dict[str, Any], rows: int) -> Arrays:
    return {key: np.stack([np.asarray(value)] * rows) for key, value in fixed.items()}


def assert_equal(ours: np.ndarray, expected: np.ndarray) -> None:
    """Continuous actions are equal up to rounding."""
    atol = 1e-5 if expected.dtype.kind == "f" else 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_description_lists_inputs_and_outputs(run_of: Runs) -> None:
    """The JSON file describes the inputs and outputs of the program."""
    run = run_of()
    export = export_at(EvalConfig(run=run, export=MISSION))
    assert export.path == run / "exports" / "go-to-the-red-door.pt2"
    assert export.parameters < export.policy_parameters
    assert 0 <= export.check.max_abs_difference < 1e-5
    assert description_of(export) == {
        "mission": MISSION,
        "run": run.name,
        "checkpoint": "step_000000000",
        "inputs": {
            "image": {"shape": ["batch", 7, 7, 3], "dtype": "uint8"},
            "direction": {"shape": ["batch"], "dtype": "int64"},
        },
        "outputs": {
            "action": {"shape": ["batch"], "dtype": "int64"},
            "action_logits": {"shape": ["batch", 7], "dtype": "float32"},
            "value": {"shape": ["batch", 1], "dtype": "float32"},
        },
        "action_space": "Discrete(7)",
        "parameters": export.parameters,
        "check": {"runtime": f"torch {torch.__version__}", **export.check._asdict()},
        "mirl": version("mirl"),
        "torch": torch.__version__,
    }


def test_description_names_task_of_value(run_of: Runs) -> None:
    """With PopArt, the JSON file names the task whose value the program computes."""
    for_mission = export_at(EvalConfig(run=run_of(*POPART), export=MISSION))
    assert description_of(for_mission)["value_of_task"] == "goto_door_5x5"
    run = run_of(*SECOND_TASK, "agent.popart=true", "name=both")
    for_task = export_at(EvalConfig(run=run, export="goto_door_8x8"))
    assert "value_of_task" not in description_of(for_task)


def test_differing_program_is_not_kept(run_of: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that computes something else is not written, and an earlier one is deleted."""
    run = run_of("name=differing")
    before = sorted(run.rglob("*"))
    export_at(EvalConfig(run=run, export="go to the blue door"))
    other = {"mission": tokenize(MISSION)}
    monkeypatch.setattr(
        export_module, "build_program", lambda policy, _: build_program(policy, other)
    )
    with pytest.raises(ConfigError, match=r"differs from the policy's by .*; no export was kept"):
        export_at(EvalConfig(run=run, export="go to the blue door"))
    assert sorted(run.rglob("*")) == sorted([*before, run / "exports"])


def test_unknown_words_are_no_mission(run_of: Runs) -> None:
    """A mission with words that the agent does not know, such as a file name, is an error."""
    for name, unknown in (("agent.pt2", "agent"), ("go to the redd door", "redd")):
        with pytest.raises(ConfigError, match=f"does not know {unknown}"):
            export_at(EvalConfig(run=run_of(), export=name))


def test_any_known_words_are_a_mission(run_of: Runs) -> None:
    """A mission that no task uses is exported if its words are known."""
    name = "put the red door next to the door, then go " * 6
    export = export_at(EvalConfig(run=run_of(), export=name))
    assert export.path.is_file()
    assert description_of(export)["mission"] == name


RUN_ALONE = """
import sys
import numpy as np
from runner import act, encode

observations = dict(np.load("observations.npz"))
actions = []
for row in range(len(observations["direction"])):
    observation = {key: values[row] for key, values in observations.items()}
    observation["mission"] = encode("go to the zorp door, then the red")
    actions.append(act(observation)["action"])
np.save("actions.npy", actions)
imported = {name.split(".")[0] for name in sys.modules}
assert not imported & {"mirl", "torch", "stable_baselines3", "gymnasium"}, imported
"""


def test_runner_of_the_page_acts(run_of: Runs, tmp_path: Path) -> None:
    """The runner in docs/export.md, without MIRL, gives the policy's actions for a mission."""
    pytest.importorskip("onnxruntime")
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    [runner] = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len([line for line in runner.splitlines() if line]) <= 20
    run_dir = run_of()
    export = export_at(EvalConfig(run=run_dir, export="policy.onnx"))
    for path in (export.path, export.path.with_name(f"{export.path.name}.json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "runner.py").write_text(runner, encoding="utf-8")
    with closing(SuiteVecEnv(RunDirectory.open(run_dir).config.task, 8, seed=1)) as env:
        observations = env.reset()
    # the word "zorp" is unknown and has the id of its bucket
    mission = tokenize("go to the zorp door, then the red")
    observations["mission"] = np.stack([mission] * 8)
    np.savez(tmp_path / "observations.npz", **observations)
    subprocess.run([sys.executable, "-c", RUN_ALONE], cwd=tmp_path, check=True, timeout=600)
    expected, _ = load_policy(run_dir, device="cpu").predict(observations, deterministic=True)
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), expected)
