"""Check that MIRL's training loop learns as much per timestep as SB3's.

    python benchmarks/equal_learning.py [--timesteps 300000] [--seeds 5]

SB3's PPO and MIRL's PPO train on DoorKey with the network of MiniGrid's tutorial. Both use EnvPool
and the hyperparameters of ``contenders.py``. The success rate is that of 500 unseen episodes after
training, with sampled actions. The results are written after each run.
"""

import argparse
import warnings
from typing import Any

import numpy as np
from contenders import ImageOnly, make_envpool_envs, tutorial_ppo
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
"""The algorithm of each training loop, and its options."""


def success_rate(task: str, loop: str, seed: int, timesteps: int) -> float:
    """Train an agent and return its success rate on unseen episodes.

    Args:
        task: The registered id of the task.
        loop: The name of the training loop.
        seed: The seed of environments and agent.
        timesteps: How long to train.
    """
    algorithm, options = LOOPS[loop]
    training_env = make_envpool_envs(task, seed=seed)
    agent = tutorial_ppo(algorithm, training_env, seed=seed, **options)
    agent.learn(timesteps)
    unseen = make_vec_env(task, 250, backend="envpool", seed=seed, split="validation")
    validation_env = ImageOnly(unseen)
    set_random_seed(seed)
    returns, _ = evaluate_policy(
        agent,
        validation_env,
        n_eval_episodes=500,
        deterministic=False,
        return_episode_rewards=True,
        warn=False,
    )
    validation_env.close()
    training_env.close()
    # DoorKey only rewards success
    return float(np.mean(np.asarray(returns) > 0))


def table_row(task: str, loop: str, rates: list[float]) -> list[str]:
    """Return a row of the table: the mean over the seeds with its 95 % interval (Student's t).

    Args:
        task: The registered id of the task.
        loop: The name of the training loop.
        rates: The success rate of each seed.
    """
    mean = np.mean(rates)
    half_width = float("nan")
    if len(rates) > 1:
        half_width = stats.t.ppf(0.975, len(rates) - 1) * stats.sem(rates)
    low = max(0.0, mean - half_width)
    high = min(1.0, mean + half_width)
    per_seed = " ".join(f"{rate:.1%}" for rate in rates)
    return [task, loop, f"{mean:.1%} ({low:.1%} – {high:.1%})", per_seed]


def main() -> None:
    """Train and evaluate every task, training loop and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timesteps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = ["task", "training loop", "mean success (95 % interval)", "success of each seed"]
    results: dict[tuple[str, str], list[float]] = {}
    for seed in range(arguments.seeds):
        for task in TASKS:
            for loop in LOOPS:
                rate = success_rate(task, loop, seed, arguments.timesteps)
                results.setdefault((task, loop), []).append(rate)
                print(f"{task:<26}{loop:<22} seed {seed} {rate:6.1%}", flush=True)  # noqa: T201
                rows = [table_row(*key, rates) for key, rates in results.items()]
                measurements = {" ".join(key): rates for key, rates in results.items()}
                write_results("equal_learning", columns, rows, measurements)


if __name__ == "__main__":
    main()
