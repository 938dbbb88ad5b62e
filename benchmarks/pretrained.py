"""Train the agents that come with MIRL and put them into ``agents/pretrained/``, with their cards.

    python benchmarks/pretrained.py [NAME ...] [--runs FOLDER]

An existing run in FOLDER is continued, or used as it is if it is finished. Only the parts needed
for acting are kept: the configuration, the weights of the best checkpoint, and its spaces.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import yaml
from machine import RESULTS, write_results

from mirl.agents.exports.card import card_of, write_card
from mirl.agents.policy_loader import load_pretrained
from mirl.agents.runs.atomic_files import write_json, write_manifest, write_text
from mirl.agents.runs.checkpoint import POLICY, STATE, Checkpoint
from mirl.agents.runs.checkpoint_directory import INDEX
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskSummary
from mirl.agents.training import train
from mirl.configs.commands.pretrained import FOLDER
from mirl.configs.compose import compose_train
from mirl.configs.schema import CardConfig
from mirl.configs.stored import CONFIG
from mirl.policies import count_parameters

AGENTS = {
    "goto_door": ("task=goto_door",),
    "goto_local": ("task=goto_local", "total_timesteps=400_000"),
    "mt5": ("task=mt5",),
    "fetch_reach": ("task=fetch_reach",),
    "memory_s7": ("task=memory_s7", "memory=lstm", "total_timesteps=400_000"),
}
"""Training options of each agent."""
KEPT_STATE = (
    "schema_version",
    "num_timesteps",
    "n_updates",
    "precision",
    "best_score",
    "best_criterion",
    "observation_space",
    "action_space",
)
"""Entries of ``state.json`` that are kept; those about the state of the training are not."""
EPISODES = 1000
"""Test episodes of each task."""
COLUMNS = ("agent", "command", "timesteps", "parameters", "success (95 % interval)")


def pack(run: RunDirectory, name: str) -> RunDirectory:
    """Copy the parts of a run that acting needs into the package.

    Args:
        run: the trained run.
        name: name of the agent.
    """
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    best = run.checkpoint("best")
    target = folder / "checkpoints" / best.name
    target.mkdir(parents=True)
    shutil.copyfile(best.policy_path, target / POLICY)
    write_json(target / STATE, _acting_state(best))
    write_manifest(target)
    write_json(folder / "checkpoints" / INDEX, {"last": best.name, "best": best.name})
    config = run.config.model_dump(mode="json")
    # the folder in which the run was trained is irrelevant
    config.update(runs_dir="runs", name=name)
    write_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))
    return RunDirectory.open(folder)


def _acting_state(checkpoint: Checkpoint) -> dict[str, object]:
    return {key: checkpoint.state[key] for key in KEPT_STATE if key in checkpoint.state}


def write_package_card(packed: RunDirectory) -> list[TaskSummary]:
    """Write the card of a packed agent next to its weights.

    Args:
        packed: the packed agent.

    Returns:
        The numbers of its tasks.
    """
    options = CardConfig(run=packed.path, episodes=EPISODES, device="cpu")
    contents = card_of(packed, options)
    # results of packaged agents are usually written elsewhere
    card = write_card(contents)
    shutil.move(card, packed.path / card.name)
    return [result.summary() for result in contents.evaluation.results]


def table_row(name: str, tasks: list[TaskSummary]) -> list[str]:
    """Return the row of an agent in the table of the documentation.

    Args:
        name: name of the agent.
        tasks: the numbers of its tasks.
    """
    packed = RunDirectory.open(FOLDER / name)
    best = packed.checkpoint("best")
    rates = []
    for task in tasks:
        low, high = task["success_interval"] or (math.nan, math.nan)
        label = f"{task['task']}: " if len(tasks) > 1 else ""
        rates.append(f"{label}{task['success_rate']:.1%} ({low:.1%} – {high:.1%})")
    return [
        f"`{name}`",
        f"`train.py {' '.join(AGENTS[name])}`",
        f"{best.state['num_timesteps']:,}",
        f"{count_parameters(load_pretrained(name, 'cpu')):,}",
        "; ".join(rates),
    ]


def main() -> None:
    """Train, pack and evaluate the agents that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # argparse also checks the default against the choices
    parser.add_argument("names", nargs="*", choices=[[], *AGENTS], metavar="NAME", default=[])
    parser.add_argument("--runs", type=Path, default=Path("runs") / "pretrained")
    arguments = parser.parse_args()
    measured: dict[str, list[TaskSummary]] = {}
    if (RESULTS / "pretrained.json").exists():
        measured = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))["measurements"]
    for name in arguments.names or AGENTS:
        words = [f"name={name}", f"runs_dir={arguments.runs}", "videos=false", *AGENTS[name]]
        run = train(compose_train(words), report=print).run
        measured[name] = write_package_card(pack(run, name))
        rows = [table_row(each, measured[each]) for each in AGENTS if each in measured]
        write_results("pretrained", COLUMNS, rows, measured)


if __name__ == "__main__":
    main()
