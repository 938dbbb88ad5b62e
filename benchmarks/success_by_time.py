"""Measure success against seconds of training: MIRL, Stable-Baselines3 and CleanRL.

    python benchmarks/success_by_time.py [--seeds 3] [--seconds 90] [--out FOLDER]

On DoorKey-5x5, all train the network of MiniGrid's tutorial by PPO with the same hyperparameters.
On BabyAI-GoToLocal, Stable-Baselines3 gets the mission concatenated to the features of the image,
as its ``MultiInputPolicy`` concatenates its inputs, with MIRL's encoders and hyperparameters;
CleanRL's scripts do not read missions. Success is that of the training episodes, the seconds are
wall time, and the runs take ``--seconds`` each, one after another. After a stop, the same command
continues. Needs the machine to itself; writes ``benchmarks/results/success_by_time.json`` and
``docs/pictures/success_by_time.png``.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_results
from measurement import spread
from peers import run as run_peer
from pictures import figure

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
GOTO_LOCAL = "BabyAI-GoToLocal-v0"
SOLVED = 0.95
WINDOW = 500
"""Number of last episodes over which a success rate is computed."""
FEWEST = 100
"""Minimum number of episodes for the first success rate."""
AGENTS = {
    DOOR_KEY: ("SB3", "SB3 + EnvPool", "CleanRL + EnvPool", "MIRL"),
    GOTO_LOCAL: ("SB3", "SB3 + EnvPool", "MIRL"),
}
"""Agents of each task."""
STYLES = {
    "SB3": ("tab:gray", ":"),
    "SB3 + EnvPool": ("tab:blue", "--"),
    "CleanRL + EnvPool": ("tab:green", "-."),
    "MIRL": ("tab:orange", "-"),
}

Curve = list[dict[str, float]]
"""Rows with the seconds and timesteps so far, and the episodes and successes since the last row."""


# ------------------------------------------------------------------------------------ one training


def builders(task: str, seed: int) -> dict[str, Callable[[], Any]]:
    """Return the functions that build the agents of a task.

    Args:
        task: registered id of the task.
        seed: seed of environments and networks.
    """
    from contenders import agent_of_options, make_envpool_envs, make_python_envs, tutorial_ppo
    from stable_baselines3 import PPO as SB3PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from mirl.agents import PPO
    from mirl.configs.compose import compose_train
    from mirl.envs import make_vec_env
    from mirl.policies import FusionExtractor

    options = {"seed": seed, "ent_coef": 0.01}
    if task == DOOR_KEY:

        def on_envpool(algorithm: type[SB3PPO], **more: Any) -> Any:
            return tutorial_ppo(algorithm, make_envpool_envs(task, seed=seed), **options, **more)

        return {
            "SB3": lambda: tutorial_ppo(
                SB3PPO, make_python_envs(DummyVecEnv, task, seed), **options
            ),
            "SB3 + EnvPool": lambda: on_envpool(SB3PPO),
            "MIRL": lambda: on_envpool(PPO, precision="auto"),
        }

    def sb3(backend: str) -> Any:
        agent = compose_train(["task=goto_local"]).agent
        network = {"fusion": "concat", "sites": ("vector",)}
        return SB3PPO(
            "MultiInputPolicy",
            make_vec_env(task, agent.n_envs, backend=backend, seed=seed),
            learning_rate=agent.learning_rate,
            n_steps=agent.n_steps,
            batch_size=agent.batch_size,
            n_epochs=agent.n_epochs,
            gamma=agent.gamma,
            gae_lambda=agent.gae_lambda,
            ent_coef=agent.ent_coef,
            vf_coef=agent.vf_coef,
            policy_kwargs={
                "features_extractor_class": FusionExtractor,
                "features_extractor_kwargs": network,
            },
            seed=seed,
        )

    return {
        "SB3": lambda: sb3("gymnasium"),
        "SB3 + EnvPool": lambda: sb3("envpool"),
        "MIRL": lambda: agent_of_options("task=goto_local", f"seed={seed}"),
    }


def train(task: str, agent_name: str, seed: int, seconds: float) -> Curve:
    """Train an agent in this process and return its curve.

    Args:
        task: registered id of the task.
        agent_name: one of ``AGENTS``, except CleanRL's.
        seed: seed of environments and networks.
        seconds: time to train.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    class Recorder(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.curve: Curve = []
            self.episodes = 0
            self.successes = 0

        def _on_training_start(self) -> None:
            self.begin = time.perf_counter()

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self.episodes += 1
                    # both tasks only reward success
                    self.successes += info["episode"]["r"] > 0
            return time.perf_counter() - self.begin < seconds

        def _on_rollout_end(self) -> None:
            row = {
                "seconds": time.perf_counter() - self.begin,
                "timesteps": self.num_timesteps,
                "episodes": self.episodes,
                "successes": self.successes,
            }
            self.curve.append(row)
            self.episodes = 0
            self.successes = 0

    warnings.simplefilter("ignore")
    recorder = Recorder()
    builders(task, seed)[agent_name]().learn(10**9, callback=recorder)
    return recorder.curve


def measure(task: str, agent_name: str, seed: int, seconds: float) -> Curve:
    """Return the curve of a training in a fresh process.

    Args:
        task: registered id of the task.
        agent_name: one of ``AGENTS``.
        seed: seed of environments and networks.
        seconds: time to train.
    """
    if agent_name.startswith("CleanRL"):
        options = ("--task", task, "--seed", str(seed), "--like-sb3")
        curve: Curve = run_peer("cleanrl", seconds, *options)["settings"]["curve"]
        return curve
    words = ["--only", task, agent_name, "--seed", str(seed), "--seconds", str(seconds)]
    command = [sys.executable, __file__, *words]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    # the libraries may print other lines before the result
    printed: Curve = json.loads(finished.stdout.splitlines()[-1])
    return printed


# ----------------------------------------------------------------------------------------- results


def success_rates(curve: Curve) -> tuple[list[float], list[float]]:
    """Return the seconds of a curve, and the success rate of the last episodes at each of them.

    Args:
        curve: the curve of one training.
    """
    episodes = np.cumsum([row["episodes"] for row in curve])
    successes = np.cumsum([row["successes"] for row in curve])
    seconds = []
    rates = []
    for index, row in enumerate(curve):
        if episodes[index] < FEWEST:
            continue
        first = int(np.searchsorted(episodes, episodes[index] - WINDOW, side="right")) - 1
        before = (episodes[first], successes[first]) if first >= 0 else (0, 0)
        seconds.append(row["seconds"])
        rates.append(float((successes[index] - before[1]) / (episodes[index] - before[0])))
    return seconds, rates


def first_solved(curve: Curve) -> float | None:
    """Return the seconds until the last episodes succeed; None if they never do.

    Args:
        curve: the curve of one training.
    """
    for seconds, rate in zip(*success_rates(curve), strict=True):
        if rate >= SOLVED:
            return seconds
    return None


def table(curves: dict[str, dict[str, list[Curve]]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the table.

    Args:
        curves: the curves of each agent of each task, one per seed.
    """
    columns = ["task", "agent", "steps/s", "success at the end", f"seconds to {SOLVED:.0%}"]
    rows = []
    for task, agents in curves.items():
        for name, trainings in agents.items():
            speeds = [curve[-1]["timesteps"] / curve[-1]["seconds"] for curve in trainings]
            ends = [100 * rates[-1] for _, rates in map(success_rates, trainings) if rates]
            times = [first_solved(curve) for curve in trainings]
            solved = [seconds for seconds in times if seconds is not None]
            reached = spread(solved) if solved else "–"
            if len(solved) < len(times):
                reached += f"; {len(times) - len(solved)} of {len(times)} never"
            end = f"{spread(ends, 1)} %" if ends else "–"
            rows.append([task, name, spread(speeds), end, reached])
    return columns, rows


def draw(curves: dict[str, dict[str, list[Curve]]]) -> None:
    """Draw the curve of each seed, a panel per task.

    Args:
        curves: the curves of each agent of each task, one per seed.
    """
    with figure("success_by_time", len(curves), size=(9, 3.6)) as panels:
        for axes, (task, agents) in zip(panels, curves.items(), strict=True):
            for name, trainings in agents.items():
                color, line = STYLES[name]
                for index, curve in enumerate(trainings):
                    label = name if index == 0 else None
                    seconds, rates = success_rates(curve)
                    axes.plot(seconds, rates, color=color, linestyle=line, label=label, lw=1.2)
            axes.set(title=task, xlabel="seconds", ylabel="success", ylim=(0, 1.02))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Train every agent with every seed in turn, or only one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90, help="per training")
    parser.add_argument("--out", type=Path, default=Path("comparisons") / "success_by_time")
    parser.add_argument("--only", nargs=2, metavar=("TASK", "AGENT"), help="print one curve")
    parser.add_argument("--seed", type=int, default=0, help="with --only")
    arguments = parser.parse_args()
    if arguments.only:
        curve = train(*arguments.only, arguments.seed, arguments.seconds)
        print(json.dumps(curve))  # noqa: T201
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    curves: dict[str, dict[str, list[Curve]]] = {}
    for task, names in AGENTS.items():
        curves[task] = {name: [] for name in names}
    for seed in range(arguments.seeds):
        for task, names in AGENTS.items():
            for name in names:
                record = arguments.out / f"{task}-{name}-seed{seed}.json"
                if not record.exists():
                    curve = measure(task, name, seed, arguments.seconds)
                    record.write_text(json.dumps(curve), encoding="utf-8")
                curve = json.loads(record.read_text(encoding="utf-8"))
                curves[task][name].append(curve)
                print(task, name, seed, first_solved(curve), flush=True)  # noqa: T201
        write_results("success_by_time", *table(curves), curves)
    draw(curves)


if __name__ == "__main__":
    main()
