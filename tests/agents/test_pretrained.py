"""The agents that come with MIRL act as their cards say."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mirl.agents import Run, load_pretrained, train
from mirl.agents.statistics import wilson_interval
from mirl.configs.commands.pretrained import FOLDER, pretrained_names
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError

NAMES = ("fetch_reach", "goto_door", "goto_local", "memory_s7", "mt5")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "pretrained.json"
EPISODES = 200
MAX_BYTES = 2 * 10**6
"""Size of an agent, at most."""


def test_every_agent_is_tested() -> None:
    assert pretrained_names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_agent_does_as_its_card_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval of a success rate over 200 episodes meets that of the card."""
    if name == "fetch_reach" and find_spec("gymnasium_robotics") is None:
        pytest.skip("needs gymnasium-robotics")
    monkeypatch.chdir(tmp_path)
    # other episodes than those of the card
    evaluation = Run(f"pretrained:{name}", device="cpu").evaluate(
        # few environments, because those of FetchReach take long to make
        episodes=EPISODES,
        n_envs=20,
        seed=1,
        context_use=False,
    )
    published = json.loads(RESULTS.read_text(encoding="utf-8"))["measurements"][name]
    for expected, result in zip(published, evaluation.results, strict=True):
        assert expected["task"] == result.task
        assert result.n_successes is not None
        low, high = wilson_interval(result.n_successes, result.n_episodes)
        assert low <= expected["success_interval"][1]
        assert high >= expected["success_interval"][0]
        shown = f"| {result.label} | {expected['episodes']:,} | {expected['success_rate']:.1%} |"
        assert shown in (FOLDER / name / "README.md").read_text(encoding="utf-8")
    [written] = evaluation.files
    assert written.parent == Path("runs") / f"pretrained-{name}" / "eval"


@pytest.mark.parametrize("name", NAMES)
def test_agent_is_small_and_complete(name: str) -> None:
    folder = FOLDER / name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert (config["name"], config["runs_dir"]) == (name, "runs")


def test_policy_is_loaded_by_name() -> None:
    policy = load_pretrained("goto_door", "cpu")
    [path] = (FOLDER / "goto_door").rglob("policy.safetensors")
    for key, weight in load_file(path).items():
        assert torch.equal(policy.state_dict()[key], weight)
    with pytest.raises(ConfigError, match="no agent 'goto_dor' comes with MIRL"):
        load_pretrained("goto_dor")


def test_training_continues_from_its_weights(tmp_path: Path) -> None:
    """A run of another level starts with the weights of an agent from the package."""
    words = ["task=goto_door", "start_from=pretrained:goto_door", "total_timesteps=64"]
    words += ["agent.n_envs=2", "agent.n_steps=32", "agent.batch_size=64", "agent.n_epochs=1"]
    words += ["agent.learning_rate=1e-12", "backend=gymnasium", "device=cpu", "videos=false"]
    words += ["progress=false", "evaluation.episodes=1", "evaluation.context_use=false"]
    run = train(compose_train([*words, f"runs_dir={tmp_path}"])).run
    trained = Run(run.path, "last", "cpu").policy.state_dict()
    for key, weight in load_pretrained("goto_door", "cpu").state_dict().items():
        assert torch.allclose(trained[key], weight, atol=1e-6), key
