"""Model cards say what was trained, how well it does, and where its limits are."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from mirl.agents.exports.card import card_of, card_text
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.training import train
from mirl.configs.compose import compose_train
from mirl.configs.schema import CardConfig, TrainConfig

Build = Callable[..., TrainConfig]


def card_after_training(config: TrainConfig) -> str:
    """Return the card of a run."""
    run = train(config).run
    return card_text(card_of(run, CardConfig(run=run.path, episodes=4, device="cpu")))


def test_card_has_results_and_settings(tiny: Build) -> None:
    card = card_after_training(tiny("total_timesteps=128", "fusion=film", "seed=3"))
    percent = r"\d+\.\d%"
    row = rf"^\| goto_door \| 4 \| {percent} \| {percent} – {percent} \|"
    assert re.search(row, card, re.MULTILINE)
    assert "| seed | 3 |" in card
    assert re.search(r"^\| fusion \| `film` .*at ", card, re.MULTILINE)
    assert "| held out | nothing |" in card
    _, header, _ = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "mirl"
    assert {"ppo", "film", "MiniGrid-GoToDoor-5x5-v0"} <= set(metadata["tags"])


def test_card_lists_each_subset(tiny: Build) -> None:
    """Held-out episodes have a row of their own, and their split is named."""
    card = card_after_training(tiny("total_timesteps=128", "task=goto_local", "split=objects"))
    assert "| goto_local (held out) | 4 |" in card
    assert re.search(r"^\| held out \| .*missions=", card, re.MULTILINE)


def test_card_without_success_says_so(tmp_path: Path) -> None:
    words = ["task=roles4", "total_timesteps=128", "agent.n_envs=8", "agent.n_steps=16"]
    words += ["agent.batch_size=64", "evaluation.episodes=4", "device=cpu", "progress=false"]
    card = card_after_training(compose_train([*words, "videos=false", f"runs_dir={tmp_path}"]))
    assert "| – | – |" in card
    assert "No success is reported for agent_0, agent_1" in card


def test_command_writes_the_card(tmp_path: Path, tiny: Build) -> None:
    run_dir = train(tiny("total_timesteps=128", f"runs_dir={tmp_path}")).run.path
    script = Path(__file__).parents[3] / "card.py"

    def execute(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = execute(f"run={run_dir}", "episodes=2", "device=cpu")
    path = run_dir / "README.md"
    assert (done.returncode, done.stdout) == (0, f"Written: {path}\n")
    assert "| goto_door | 2 |" in path.read_text(encoding="utf-8")
    # a run with a card is a run like others
    assert RunDirectory.open(run_dir).checkpoint("last").name == "step_000000128"
    wrong = execute(f"run={tmp_path}")
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: .* is not a run directory.*\n", wrong.stderr)
