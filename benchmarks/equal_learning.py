"""Does the faster loop learn the same? SB3's PPO and MIRL's on DoorKey with the tutorial's network, five seeds each.

    python benchmarks/equal_learning.py [--timesteps 300000] [--seeds 5]

Both step EnvPool and have the hyperparameters of ``contenders.py``; success is that of 500 unseen episodes after
training, actions sampled. Results are written after each run.
"""

import argparse
import warnings
from typing import Any

import numpy as np
from contenders import ImageOnly, pooled, tutorial_ppo
from machine import write_results
from scipy import stats
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed

from mirl.agents import PPO
from mirl.envs import make_vec_env

TASKS = ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-8x8-v0")
LOOPS: dict[str, tuple[type[SB3PPO], dict[str, Any]]] = {
    "SB3": (SB3PPO, {}),
    "MIRL, fp32": (PPO, {}),
    "MIRL, precision=auto": (PPO, {"precision": "auto"}),
}


def success(task: str, loop: str, seed: int, timesteps: int) -> float:
    """Success on unseen episodes after training."""
    algorithm, options = LOOPS[loop]
    agent = tutorial_ppo(algorithm, pooled(task, seed=seed), seed=seed, **options)
    agent.learn(timesteps)
    unseen = ImageOnly(make_vec_env(task, 250, backend="envpool", seed=seed, split="validation"))
    set_random_seed(seed)
    returns, _ = evaluate_policy(
        agent, unseen, n_eval_episodes=500, deterministic=False, return_episode_rewards=True, warn=False
    )
    for env in (unseen, agent.env):
        env.close()  # type: ignore[union-attr]
    return float(np.mean(np.asarray(returns) > 0))


def row(task: str, loop: str, rates: list[float]) -> list[str]:
    """The mean over seeds with its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(rates) - 1) * stats.sem(rates) if len(rates) > 1 else float("nan")
    low, high = max(0.0, np.mean(rates) - half), min(1.0, np.mean(rates) + half)
    seeds = " ".join(f"{rate:.1%}" for rate in rates)
    return [task, loop, f"{np.mean(rates):.1%} ({low:.1%} – {high:.1%})", seeds]


def main() -> None:
    """Train and evaluate all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[tuple[str, str], list[float]] = {(task, loop): [] for task in TASKS for loop in LOOPS}
    for seed in range(arguments.seeds):
        for (task, loop), runs in found.items():
            runs.append(success(task, loop, seed, arguments.timesteps))
            print(f"{task:<26}{loop:<22} seed {seed} {runs[-1]:6.1%}", flush=True)  # noqa: T201
            columns = ["task", "loop", "success, mean of the seeds (95 % interval)", "seeds"]
            rows = [row(task, loop, runs) for (task, loop), runs in found.items() if runs]
            write_results(
                "equal_learning", columns, rows, {f"{task} {loop}": runs for (task, loop), runs in found.items()}
            )


if __name__ == "__main__":
    main()
