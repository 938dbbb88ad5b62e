"""Runs that commit 5b07d77 began are evaluated, loaded and continued by the code of today.

``tests/golden/schema_2/NAME`` was written there by ``python train.py name=NAME WORD ...`` with the
words of ``RUNS``, and killed right after its checkpoint at half of its timesteps. ``eval/`` holds
that commit's evaluation of the ``last`` checkpoint. The words keep the spelling of that commit,
even where an option or a preset has another name by now.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file
from toy_goal_envs import MirrorReachEnv

from mirl import eval as evaluation
from mirl.agents import load_policy, train
from mirl.agents.runs.run_directory import RunDirectory
from mirl.configs.compose import compose_train

GOLDEN = Path(__file__).parents[1] / "golden" / "schema_2"
gym.register("GoldenReach-v0", MirrorReachEnv, max_episode_steps=8, kwargs={"n_steps": 8})

SMALL = (
    "encoder.features_dim=8",
    "context.dim=8",
    "agent.net_arch=[8]",
    "backend=gymnasium",
    "device=cpu",
    "precision=fp32",
    "progress=false",
    "evaluation.episodes=4",
    "evaluation.test_episodes=4",
)
ON_POLICY = (
    *SMALL,
    "encoder.channels=4",
    "agent.n_envs=4",
    "agent.n_steps=32",
    "agent.batch_size=64",
    "agent.n_epochs=4",
    "total_timesteps=512",
    "checkpoint_every=256",
    "evaluation.every=128",
)
# Learning rates are so large that the policies are far from uniform after a few updates. Otherwise
# the evaluation would hardly depend on their weights.
DOOR = ("task=goto_door", "agent.learning_rate=0.01", "seed=2")
MEMORY = (
    "task=memory_s7",
    "task.tasks=[{name: short, env_id: MiniGrid-MemoryS7-v0, kwargs: {max_steps: 40}}]",
    "memory=lstm",
    "memory.size=16",
    "memory.skip_connection=true",
    "agent.sequence_length=8",
    "agent.burn_in=4",
    "agent.learning_rate=0.03",
    "seed=6",
)
GOALS = (
    "task.name=reach",
    "task.tasks=[{name: reach, env_id: GoldenReach-v0, success: ever}]",
    "context=goal",
    "context.normalize=true",
    "encoder=vector",
    "encoder.hidden=[8]",
    "encoder.normalize=true",
    "sites=[vector, heads]",
    "agent=sac",
    "agent.learning_starts=40",
    "agent.buffer_size=200",
    "agent.batch_size=16",
    "total_timesteps=160",
    "checkpoint_every=80",
    "evaluation.every=40",
)
FOUR_DOORS = (
    "task=door_colours",
    "task.tasks=["
    "{name: red, env_id: MiniGrid-GoToDoor-5x5-v0, mission: red door},"
    "{name: green, env_id: MiniGrid-GoToDoor-5x5-v0, mission: green door},"
    "{name: blue, env_id: MiniGrid-GoToDoor-5x5-v0, mission: blue door},"
    "{name: grey, env_id: MiniGrid-GoToDoor-5x5-v0, mission: grey door}]",
    "split=new_colour",
    "sampling=lowest_success",
    "agent.learning_rate=0.03",
)


class GoldenRun(NamedTuple):
    """A golden run.

    Attributes:
        words: The command line that began it, without ``name=``.
        timesteps: Timesteps of its last checkpoint.
        total: Timesteps that it should reach.
        episodes: Episodes per task of its evaluation.
    """

    words: tuple[str, ...]
    timesteps: int
    total: int
    episodes: int


RUNS = {
    "ppo": GoldenRun((*DOOR, *ON_POLICY), 256, 512, episodes=64),
    "lstm": GoldenRun((*MEMORY, *ON_POLICY), 256, 512, episodes=16),
    "sac_her": GoldenRun((*GOALS, *SMALL), 80, 160, episodes=32),
    "split": GoldenRun((*FOUR_DOORS, *ON_POLICY), 256, 512, episodes=32),
}
every_run = pytest.mark.parametrize("name", RUNS)
pytestmark = pytest.mark.filterwarnings("ignore::mirl.configs.aliases.RenamedWarning")


@pytest.fixture
def run_dir(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the run to where its own command looks for it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(GOLDEN / name, Path("runs") / name))


def evaluation_words(name: str) -> list[str]:
    """Return the command line of the evaluation that ``eval/`` holds."""
    words = [f"run=runs/{name}", "checkpoint=last", f"episodes={RUNS[name].episodes}"]
    return [*words, "n_envs=4", "backend=gymnasium", "device=cpu"]


def evaluated_tasks(run_dir: Path) -> list[dict[str, Any]]:
    """Return the results per task of the only evaluation in a run directory."""
    (path,) = (run_dir / "eval").iterdir()
    tasks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return tasks


def last_checkpoint(run_dir: Path) -> Path:
    """Return the folder of the last checkpoint."""
    return max((run_dir / "checkpoints").glob("step_*"))


def saved_state(run_dir: Path) -> dict[str, Any]:
    """Return the JSON part of the last checkpoint."""
    path = last_checkpoint(run_dir) / "state.json"
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def logged_timesteps(run_dir: Path) -> list[int]:
    """Return the timesteps of the rows of ``metrics.csv`` that have them."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["time/total_timesteps"] for row in csv.DictReader(file)]
    return [int(cell) for cell in cells if cell]


def contents(tensors: dict[str, torch.Tensor]) -> set[tuple[Any, ...]]:
    """Return what tensors hold, without their names, which may change."""
    return {
        (tensor.dtype, tuple(tensor.shape), tuple(tensor.flatten().tolist()))
        for tensor in tensors.values()
    }


@every_run
def test_evaluation_gives_the_same_results(name: str, run_dir: Path) -> None:
    assert evaluation.run(evaluation_words(name)) == 0
    results = evaluated_tasks(run_dir)
    expected = evaluated_tasks(GOLDEN / name)
    assert len(results) == len(expected)
    for result, reference in zip(results, expected, strict=True):
        assert result["task"] == reference["task"]
        for key in ("successes", "episodes", "return_mean", "length_mean"):
            assert result[key] == pytest.approx(reference[key]), (result["task"], key)


@every_run
def test_policy_has_the_saved_weights(name: str, run_dir: Path) -> None:
    policy = load_policy(run_dir, "best", "cpu")
    assert not policy.training
    saved = load_file(RunDirectory.open(run_dir).checkpoint("best").policy_path)
    # as sets: a tensor that two modules share has two names in the policy and one in the file
    assert contents(policy.state_dict()) == contents(saved)


@every_run
def test_same_command_continues_the_run(name: str, run_dir: Path) -> None:
    run = RUNS[name]
    before = saved_state(run_dir)
    lines: list[str] = []
    words = [f"name={name}", *run.words, "videos=false"]  # which may differ
    outcome = train(compose_train(words), lines.append)
    assert outcome.finished
    assert outcome.timesteps == run.total
    assert lines[0].startswith(f"Resuming at {run.timesteps} of {run.total} timesteps")

    after = saved_state(run_dir)
    assert before["num_timesteps"] == run.timesteps
    assert after["num_timesteps"] == run.total
    assert after["n_updates"] > before["n_updates"] > 0
    timesteps = logged_timesteps(run_dir)
    assert timesteps == sorted(timesteps)
    assert timesteps[0] < run.timesteps
    assert timesteps[-1] == run.total


@pytest.mark.parametrize("name", ["sac_her"])
def test_longer_run_keeps_its_replay(name: str, run_dir: Path) -> None:
    """A run of that commit is also trained for longer than it was to be."""
    run = RUNS[name]
    total = run.total + 40
    path = last_checkpoint(run_dir) / "replay_buffer.safetensors"
    before = load_file(path)["actions"]
    words = [f"name={name}", *run.words, f"total_timesteps={total}", "videos=false"]
    train(compose_train(words))
    after = load_file(last_checkpoint(run_dir) / path.name)["actions"]
    assert (len(before), len(after)) == (run.timesteps, total)
    assert torch.equal(after[: run.timesteps], before)
